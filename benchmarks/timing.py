"""Honest timing for the benchmarks: contenders take turns in one process, and every table says where it was made.

    rounds = interleave({"raw": raw, "ours": ours})
    ratio(rounds["ours"], rounds["raw"]).median

A machine that is busy with something else slows whatever happens to run at that moment. So contenders run in short
slices, A B C A B C ..., a ratio is taken between slices of the same round, and its median over rounds is reported.
Processor time (of all threads of the process) stands beside wall time; it is the steadier of the two.
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_perf_counter = time.perf_counter  # kept, since StandingClock may replace it
ROOT = Path(__file__).resolve().parent.parent

Slice = Callable[[int], int]
"""Runs at least that many steps of a loop that was set up before, waits for their results and says how many it ran."""


@dataclass(frozen=True)
class Contender:
    """A loop to be timed.

    Attributes:
        run: runs a number of steps.
        quantum: ``run`` is only ever called with a multiple of it (the length of a chunk).
        seconds: its slices are at least that long, so that what it does now and then falls into every slice.
        setup_seconds: what it took to get to the end of the first step, compiling included.
        note: what a reader of the table must know.
    """

    run: Slice
    quantum: int = 1
    seconds: float = 0.0
    setup_seconds: float = 0.0
    note: str = ""


class StandingClock:
    """A ``time.perf_counter`` that stands still for a loop while others have their turn.

    What a loop does by the clock (writing its log, spacing its probes, saving) it does as often as if it ran alone.
    The replaced clock costs some 0.05 us more a call, at the expense of the loop that asks for it.
    """

    offset = 0.0

    @classmethod
    def install(cls) -> None:
        """Replace ``time.perf_counter``."""
        real, own = _perf_counter, cls
        time.perf_counter = lambda: real() - own.offset

    def __init__(self) -> None:
        self._away = 0.0
        self._left = _perf_counter()

    def start(self) -> None:
        """The loop's first turn begins now."""
        StandingClock.offset, self._away = 0.0, 0.0

    def come(self) -> None:
        """The loop goes on."""
        self._away += _perf_counter() - self._left
        StandingClock.offset = self._away

    def leave(self) -> None:
        """The loop's turn is over."""
        self._left = _perf_counter()
        StandingClock.offset = 0.0


@dataclass(frozen=True)
class Cost:
    """What one slice took, in seconds a step."""

    wall: float
    processor: float


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0)
        """
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4)
        return cls(median, max(low, min(values)), min(high, max(values)))


def time_slice(run: Slice, steps: int) -> Cost:
    """Seconds a step over a slice of about so many steps."""
    processor, wall = time.process_time(), _perf_counter()
    taken = run(steps)
    return Cost((_perf_counter() - wall) / taken, (time.process_time() - processor) / taken)


def slice_length(contender: Contender, seconds: float) -> int:
    """How many steps, a multiple of the contender's quantum, take about so many seconds."""
    seconds, steps = max(seconds, contender.seconds), contender.quantum
    while True:
        one = time_slice(contender.run, steps).wall
        if steps * one > 0.25 * seconds:
            return contender.quantum * max(1, round(seconds / one / contender.quantum))
        steps *= 2 if steps * one > 0.02 * seconds else 8


def interleave(
    contenders: Mapping[str, Contender], *, rounds: int = 15, seconds: float = 0.15, warm_up: int = 1
) -> dict[str, list[Cost]]:
    """Let contenders take turns; the order is reversed in every second round.

    Args:
        contenders: by name.
        rounds: how many slices each of them gets.
        seconds: the length of a slice, about.
        warm_up: rounds that are run first and thrown away.

    Returns:
        The cost a step in every round, by name: lists of equal length.
    """
    lengths = {name: slice_length(contender, seconds) for name, contender in contenders.items()}
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    gc.collect()
    gc.freeze()  # what others imported is no part of a contender's garbage
    for turn in range(warm_up + rounds):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            cost = time_slice(contenders[name].run, lengths[name])
            if turn >= warm_up:
                costs[name].append(cost)
    return costs


def ratio(ours: Sequence[Cost], theirs: Sequence[Cost], by: str = "processor") -> Spread:
    """Ours over theirs, slice by slice of the same round.

    >>> ratio([Cost(1.0, 2.0)], [Cost(1.0, 1.0)]).median
    2.0
    """
    return Spread.of([getattr(a, by) / getattr(b, by) for a, b in zip(ours, theirs, strict=True)])


def microseconds(costs: Sequence[Cost], by: str = "processor") -> Spread:
    """Microseconds a step: median and quartiles over the rounds."""
    return Spread.of([1e6 * getattr(cost, by) for cost in costs])


def one_thread() -> None:
    """Keep PyTorch, OpenMP and XLA at one thread each; call before any of them is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
        os.environ[name] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["JAX_PLATFORMS"] = "cpu"


def stamp(packages: Iterable[str] = ("torch", "numpy")) -> dict[str, Any]:
    """Where and when a table was made: date, commit, versions and hardware. Names no person, host or path."""
    versions: dict[str, str | None] = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def describe(stamped: Mapping[str, Any]) -> str:
    """The stamp as one sentence for the foot of a table."""
    versions = ", ".join(f"{name} {version}" for name, version in stamped["versions"].items() if version)
    return (
        f"Measured {stamped['date']} at commit {stamped['commit']}: {stamped['processor']}, {stamped['cores']} cores, "
        f"{stamped['threads']} thread(s) used, load {stamped['load']} at the end, {stamped['system']}, "
        f"Python {stamped['python']}, {versions}."
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> str:
    """A markdown table; columns after the first ``text_columns`` are aligned to the right.

    >>> print(table(["loop", "us"], [["raw", 168]]))
    | loop |  us |
    |:-----|----:|
    | raw  | 168 |
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(3, len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(header)]
    rules = [":" + "-" * (width + 1) if i < text_columns else "-" * (width + 1) + ":" for i, width in enumerate(widths)]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(header), "|" + "|".join(rules) + "|", *map(line, cells)])


def write_evidence(
    name: str, markdown: str, results: Mapping[str, Any], folder: Path | None = None
) -> tuple[Path, Path]:
    """Write ``docs/evidence/<name>.md`` and ``<name>.json`` beside it; returns both paths."""
    folder = folder or ROOT / "docs" / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / f"{name}.md", folder / f"{name}.json"
    page.write_text(markdown.rstrip() + "\n", encoding="utf-8")
    data.write_text(json.dumps(results, indent=1, default=_plain) + "\n", encoding="utf-8")
    return page, data


def _plain(value: object) -> object:
    if isinstance(value, Cost | Spread):
        return {key: float(f"{number:.5g}") for key, number in asdict(value).items()}
    raise TypeError(f"expected plain values, costs or spreads, received {type(value).__name__}")


def _commit() -> str:
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "src"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} (with changes)" if changed else commit


def _processor() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
