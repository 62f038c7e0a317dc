"""A folder of Parquet that is streamed: how much memory it takes, and how fast it is beside the same rows in memory.

    python benchmarks/streaming.py            # half a gigabyte
    python benchmarks/streaming.py --full     # five gigabytes
    python benchmarks/streaming.py --write    # also docs/evidence/streaming.md

The folder is generated first (the free disk is looked at) and deleted afterwards. Every measurement is a process of
its own, which trains one model with ``fogline.descend`` and says how many rows a second it took between two steps and
what its resident memory was at most (VmHWM of Linux: of the process with all its threads; worker processes are added
at their own peaks). For speed, processes that stream and processes that hold the rows in memory take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import timing

COLUMNS, CLASSES, GROUP, GROUPS_A_FILE = 64, 10, 1 << 15, 16
ROW_BYTES = 4 * COLUMNS + 8
BATCH, PASS_BATCH, WARM_UP = 256, 1024, 200
SMALL, FULL = 512 << 20, 5 * 10**9
IN_MEMORY = 1 << 30  # bytes of rows that a process holds which does not stream


@dataclass(frozen=True)
class Measured:
    """What one process found.

    Attributes:
        rows: a second, between the warm-up and the last step.
        processor: seconds of all threads, per second of wall time.
        peak: largest resident memory, MiB, of the process and its workers.
        start: seconds from the call to the first step.
        steps: counted.
    """

    rows: float
    processor: float
    peak: float
    start: float
    steps: int


def generate(folder: Path, size: int) -> int:
    """Files of row groups of 32,768 rows; 64 float32 columns of noise around one of ten class means, seed 0.

    Returns:
        Rows written.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    random = np.random.default_rng(0)
    means = random.normal(size=(CLASSES, COLUMNS)).astype(np.float32)
    written = rows = 0
    number = 0
    while written < size:
        path = folder / f"part-{number:04d}.parquet"
        names = [*(f"x{k}" for k in range(COLUMNS)), "class"]
        types = [*[arrow.float32()] * COLUMNS, arrow.int64()]
        schema = arrow.schema(list(zip(names, types, strict=True)))
        with parquet.ParquetWriter(path, schema, use_dictionary=["class"]) as writer:  # noise has no common values
            for _ in range(GROUPS_A_FILE):
                labels = random.integers(CLASSES, size=GROUP)
                inputs = random.standard_normal((GROUP, COLUMNS), dtype=np.float32) + means[labels]
                columns = [np.ascontiguousarray(inputs[:, k]) for k in range(COLUMNS)]
                writer.write_table(arrow.table([*columns, labels], names=names), row_group_size=GROUP)
                rows += GROUP
        written += path.stat().st_size
        number += 1
    return rows


def measured_here(how: str, folder: Path, steps: int, workers: int, step: str) -> Measured:
    """Train in this process; called in one of its own. A whole pass takes a linear model and batches of 1024."""
    import torch
    from torch import nn

    import fogline

    torch.manual_seed(0)
    whole = how == "pass"
    hidden = [] if whole else [nn.Linear(COLUMNS, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(COLUMNS if whole else 256, CLASSES))
    batch = PASS_BATCH if whole else BATCH
    train, valid = _held(folder) if how == "memory" else (str(folder), None)
    task = fogline.Task(model, nn.CrossEntropyLoss(), train, valid, target=None if how == "memory" else "class")
    recipe = fogline.Recipe(
        optimizer="adamw", lr=1e-3, batch_size=batch, duration=f"{steps}st", device="cpu", precision="float32",
        step=step, workers=workers, schedule="constant", warmup=0, validate_every="10000h",
    )  # fmt: skip
    watch = _Workers() if workers else None
    with tempfile.TemporaryDirectory() as runs:
        called = time.perf_counter()
        loop = fogline.descend(task, recipe, runs=runs)
        for taken in loop:
            if taken.number == 0:
                first = time.perf_counter() - called
            if taken.number == WARM_UP:
                start, used = time.perf_counter(), _processor()
            if taken.number == steps - 1:
                break
        seconds, busy = time.perf_counter() - start, _processor() - used
        loop.close()
    counted = steps - 1 - WARM_UP
    peak = _peak("self") + (watch.peak if watch else 0.0)
    return Measured(counted * batch / seconds, busy / seconds, peak, first, counted)


def _held(folder: Path) -> tuple[Any, Any]:
    """Rows of the first files as tensors, and a few held-out ones."""
    import pyarrow as arrow
    import torch
    from pyarrow import parquet

    files = sorted(folder.glob("*.parquet"))
    count = max(1, min(len(files), IN_MEMORY // (GROUP * GROUPS_A_FILE * ROW_BYTES)))
    inputs = torch.empty(count * GROUP * GROUPS_A_FILE, COLUMNS)
    labels = torch.empty(len(inputs), dtype=torch.int64)
    start = 0
    for file in files[:count]:
        for group in range(GROUPS_A_FILE):
            table = parquet.ParquetFile(file).read_row_group(group, use_threads=False)
            stop = start + table.num_rows
            for k in range(COLUMNS):
                inputs[start:stop, k] = torch.from_numpy(np.array(table.column(k).to_numpy()))
            labels[start:stop] = torch.from_numpy(np.array(table.column(COLUMNS).to_numpy()))
            start = stop
    arrow.default_memory_pool().release_unused()
    held = 40_000
    return (inputs[:-held], labels[:-held]), (inputs[-held:], labels[-held:])


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak(process: int | str) -> float:
    """Largest resident memory so far, MiB; shared pages count in every process that has them."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


class _Workers:
    """Looks at the peaks of the processes below this one, ten times a second."""

    def __init__(self) -> None:
        self._peaks: dict[str, float] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def peak(self) -> float:
        return sum(self._peaks.values())

    def _watch(self) -> None:
        while True:
            for task in Path("/proc/self/task").iterdir():
                for process in _read(task / "children").split():
                    self._peaks[process] = max(self._peaks.get(process, 0.0), _peak_of(process))
            time.sleep(0.1)


def _peak_of(process: str) -> float:
    try:
        return _peak(process)
    except OSError:  # it has ended
        return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def measured(how: str, folder: Path, steps: int, workers: int = 0, step: str = "eager") -> Measured:
    """What a fresh process finds."""
    command = [sys.executable, __file__, "--child", how, "--folder", str(folder), "--steps", str(steps)]
    command += ["--workers", str(workers), "--step", step]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(ended.stdout.splitlines()[-1]))


def compared(folder: Path, rounds: int, steps: int, step: str) -> dict[str, list[Measured]]:
    """Processes in turn: memory, streamed, memory, streamed, ..."""
    found: dict[str, list[Measured]] = {"memory": [], "streamed": []}
    for turn in range(rounds):
        for how in ("memory", "streamed") if turn % 2 else ("streamed", "memory"):
            found[how].append(measured(how, folder, steps, step=step))
    return found


def enough_disk(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.2 * size:
        raise SystemExit(f"expected {1.2 * size / 1e9:.1f} GB of free disk at {folder}, found {free / 1e9:.1f}")


def everything(arguments: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, added to what was found before; the folder is generated before and deleted behind it."""
    size = FULL if arguments.full else SMALL
    if arguments.data is not None:
        return with_folder(arguments, arguments.data, found)
    with tempfile.TemporaryDirectory(dir=arguments.place, prefix="fogline-streaming-") as name:
        enough_disk(Path(name), size)
        generate(Path(name), size)
        return with_folder(arguments, Path(name), found)


def with_folder(arguments: argparse.Namespace, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The measurements on a folder that is there."""
    files = sorted(folder.glob("*.parquet"))
    rows, written = len(files) * GROUPS_A_FILE * GROUP, sum(file.stat().st_size for file in files)
    say(f"{written / 1e9:.2f} GB of Parquet, {rows:,} rows")
    found |= {"bytes": written, "rows": rows}
    if arguments.only != "memory":
        modes = ["eager", "compiled"] if arguments.compiled else ["eager"]
        pairs = {step: compared(folder, arguments.rounds, arguments.steps, step) for step in modes}
        speed = {
            step: {how: [asdict(one) for one in each] for how, each in pair.items()} for step, pair in pairs.items()
        }
        found["speed"] = {"rounds": arguments.rounds, "steps": arguments.steps, "stamp": stamp(), "found": speed}
    if arguments.only != "speed":
        passes = {w: asdict(measured("pass", folder, rows // PASS_BATCH, w)) for w in arguments.workers or [0]}
        found["memory"] = {"stamp": stamp(), "found": passes}
    return found


def stamp() -> dict[str, Any]:
    return timing.stamp(["torch", "numpy", "pyarrow"]) | {"threads": 1}


def shares(pairs: dict[str, list[dict[str, float]]], processor: bool = False) -> str:
    """Median and range of the ratio of rows a second (of wall time, or of processor time), round by round."""
    rates = {
        how: [one["rows"] / (one["processor"] if processor else 1.0) for one in each] for how, each in pairs.items()
    }
    ratios = [ours / theirs for ours, theirs in zip(rates["streamed"], rates["memory"], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def say(text: str) -> None:
    print(text, flush=True)


def page(found: dict[str, Any]) -> str:
    """The page of evidence."""
    rows = [_speed_row(step, pairs) for step, pairs in found["speed"]["found"].items()]
    passes = [
        [
            workers,
            f"{one['steps']:,}",
            f"{one['rows']:,.0f}",
            f"{one['peak']:.0f}",
            "pass" if _fits(one) else "**short**",
        ]
        for workers, one in found["memory"]["found"].items()
    ]
    return PAGE.format(
        gigabytes=f"{found['bytes'] / 1e9:.2f}",
        rows=f"{found['rows']:,}",
        rounds=found["speed"]["rounds"],
        steps=found["speed"]["steps"],
        speed_stamp=timing.describe(found["speed"]["stamp"]),
        memory_stamp=timing.describe(found["memory"]["stamp"]),
        speed=timing.table(SPEED, rows),
        passes=timing.table(PASSES, passes),
    )


def _speed_row(step: str, pairs: dict[str, list[dict[str, float]]]) -> list[str]:
    medians = {how: {key: median(one[key] for one in each) for key in each[0]} for how, each in pairs.items()}
    ours, theirs, share = medians["streamed"], medians["memory"], shares(pairs)
    work = shares(pairs, processor=True)
    rates = f"{theirs['rows']:,.0f}", f"{ours['rows']:,.0f}"
    load = f"{theirs['processor']:.2f}", f"{ours['processor']:.2f}"
    verdict = "pass" if float(share.split()[0]) >= 0.9 else "**short**"
    return [step, *rates, share, work, *load, f"{ours['peak']:.0f}", f"{ours['start']:.1f}", verdict]


def _fits(one: dict[str, float]) -> bool:
    return one["peak"] < 1e9 / (1 << 20)


SPEED = [
    "step", "memory, rows/s", "streamed, rows/s", "streamed / memory", "by processor time", "cores, memory",
    "cores, streamed", "peak, MiB", "first step, s", "at least 0.9",
]  # fmt: skip
PASSES = ["workers", "steps", "rows/s", "peak, MiB", "under 1 GB"]
PAGE = """# Streaming

Training on a folder of Parquet that is read chunk by chunk, beside the same training on rows held in memory; made by
`python benchmarks/streaming.py --full --write` (its parts one after the other on one folder, by `--data` and `--only`).
{gigabytes} GB on disk, {rows} rows of 64 float32 columns and a class, row groups of 32,768 rows, windows of 64 MiB, an
MLP 64-256-256-10, AdamW, batch 256, seed 0. Each measurement is a process of its own.

## Speed

{speed_stamp}

Rows a second between step 200 and the last of {steps}; medians of {rounds} processes each, in turn, and the ratio of
neighbours (smallest to largest). *Cores* is processor time of all threads over wall time: reading and decoding go on in
a second thread. On a machine whose cores other programs want (see the load), wall time says little and decoding costs
what it takes; *by processor time* is the ratio of rows per second of processor time of all threads. The processes in
memory hold the rows of the first files, up to 1 GiB. *First step* is what passes before it: opening, sampling 64 row
groups, one pass over the target column, the first window.

{speed}

## Memory

{memory_stamp}

One whole pass of a linear model with batches of 1024, so that it is mostly reading. The peak is that of resident memory
(VmHWM), PyTorch included; with a worker process, its own peak is added, in which the pages that it shares with the
first count again.

{passes}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="5 GB")
    parser.add_argument("--compiled", action="store_true", help="measure compiled steps too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000, help="of a process that measures speed")
    parser.add_argument("--only", choices=["speed", "memory", "page"], help="with the rest as it was written before")
    parser.add_argument("--place", help="folder below which the data is generated and deleted")
    parser.add_argument("--data", type=Path, help="folder of data that this script generated, and that stays")
    parser.add_argument("--workers", type=int, nargs="*", help="worker processes of the whole passes; by default 0")
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    for name, kind in (("--child", str), ("--folder", Path), ("--step", str)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        workers = (arguments.workers or [0])[0]
        one = measured_here(arguments.child, arguments.folder, arguments.steps, workers, arguments.step)
        print(json.dumps(asdict(one)))
        return
    kept = timing.ROOT / "docs" / "evidence" / "streaming.json"
    before = json.loads(kept.read_text()) if arguments.only and kept.exists() else {}
    found = before if arguments.only == "page" else everything(arguments, before)
    if arguments.write:
        kept.write_text(json.dumps(found, indent=1) + "\n")
    if "speed" in found and "memory" in found:
        print(page(found))
        if arguments.write:
            timing.write_evidence("streaming", page(found), found)


if __name__ == "__main__":
    main()
