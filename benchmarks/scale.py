"""How fast several processes train, beside a loop over PyTorch's DDP written by hand; and how far that would scale.

    python benchmarks/scale.py            # prints the tables
    python benchmarks/scale.py --write    # also docs/evidence/scale.md

The script starts itself under ``torchrun`` with one process and with two. In each the loops take slices of steps in
turn; all processes run the same slices. See ``timing.py`` and, for the model of the last table, ``docs/scaling.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402 - after the number of threads is set
import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

import fogline  # noqa: E402
from fogline.descent.group import World, joined  # noqa: E402
from fogline.descent.interrupts import agreeing  # noqa: E402
from fogline.descent.loop import steps  # noqa: E402
from fogline.descent.prepare import assemble, begin, keep_start  # noqa: E402
from fogline.descent.randomness import Surroundings  # noqa: E402

MOST = 1.03
"""Times the hand-written loop that ours may take."""
NETWORKS = {"10 Gbit/s, 30 us": (10e9 / 8, 30e-6), "200 Gbit/s, 5 us": (200e9 / 8, 5e-6)}
"""Bandwidth in bytes a second and latency of a message in seconds, assumed."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_EXAMPLES = 4096


@dataclass(frozen=True)
class Problem:
    """A model, its loss and its data; the batch is that of all processes."""

    title: str
    model: Callable[[], nn.Module]
    data: tuple[Tensor, Tensor]
    batch: int
    large: int  # the batch of the simulated table


class Attention(nn.Module):
    """One block of a transformer, causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, length, width))
        return x + self.mlp(self.norms[1](x))


class Language(nn.Module):
    """A small language model: the outputs are (rows, words, length), as the cross-entropy wants them."""

    def __init__(self, words: int = 64, width: int = 128, length: int = 32) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Attention(width, 4) for _ in range(4)))
        self.head = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.words(x) + self.places)).transpose(1, 2)


def problems() -> dict[str, Problem]:
    """Made with seed 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (_EXAMPLES,), generator=generator)
    words = torch.randint(64, (_EXAMPLES, 33), generator=generator)

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))

    def cnn() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(64, 10),
        )  # fmt: skip

    pictures, images = (torch.randn(_EXAMPLES, *shape, generator=generator) for shape in ((784,), (3, 32, 32)))
    return {
        "mlp": Problem("MLP 784-512-512-10", mlp, (pictures, labels), 256, 8192),
        "cnn": Problem("CNN on 32 x 32", cnn, (images, labels), 64, 8192),
        "transformer": Problem("transformer, 0.8 M", Language, (words[:, :-1], words[:, 1:]), 32, 8192),
    }


# -- the loops -----------------------------------------------------------------------------------------------------


def by_hand(problem: Problem, rank: int, size: int) -> Iterator[None]:
    """The loop as PyTorch's tutorials have it, with data sliced in memory and the fused optimizer."""
    torch.manual_seed(0)
    model = problem.model()
    trained = model if size == 1 else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    loss_fn, (X, y), own = nn.CrossEntropyLoss(), problem.data, problem.batch // size
    total, epoch = 0.0, 0
    while True:
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(epoch))
        for k, start in enumerate(range(0, len(X), problem.batch)):
            rows = order[start + rank * own : start + (rank + 1) * own]
            optimizer.zero_grad()
            loss = loss_fn(trained(X[rows]), y[rows])
            loss.backward()
            optimizer.step()
            if k % 10 == 0:
                total += loss.item()
            yield
        epoch += 1


def ours(problem: Problem, world: World | None, folder: Path, stack: ExitStack) -> Iterator[object]:
    """The loop behind ``fit``, with watching, log and checkpoints as they are by default."""
    task = fogline.Task(problem.model, nn.CrossEntropyLoss(), problem.data)
    recipe = fogline.Recipe(
        optimizer="adamw", lr=1e-3, batch_size=problem.batch, duration="1000000st", schedule="constant", warmup=0,
        guard=False, step="eager", device="cpu",
    )  # fmt: skip
    stack.enter_context(agreeing(None if world is None else world.agreement))
    start = begin(task, recipe, None, world)
    stack.enter_context(Surroundings(start.batches.device, 1))
    folder.mkdir(parents=True, exist_ok=True)
    keep_start(start, folder, world)
    descent = assemble(start, folder, world=world).descent
    stack.callback(descent.store.close)
    descent.machine.objective.model.train()
    return steps(descent, lambda report: None)


# -- one process of several ----------------------------------------------------------------------------------------


def worker(names: list[str], rounds: int, seconds: float, folder: Path) -> None:
    """Measure all problems in this process; the first writes what it found."""
    timing.StandingClock.install()
    world = joined("cpu")
    rank, size = (0, 1) if world is None else (world.rank, world.size)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in names:
        problem = problems()[name]
        with ExitStack() as stack:
            clock = timing.StandingClock()
            loops = {"by hand": by_hand(problem, rank, size), "fogline": ours(problem, world, folder / name, stack)}
            found[name] = measured(loops, clock, world, rounds, seconds)
        found[name]["parameters"] = sum(p.numel() for p in problem.model().parameters())
        if size == 1:
            found[name]["compute"] = compute(problem, max(5, rounds // 4))
    if size > 1:
        found["messages"] = messages(rounds)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    if world is not None:
        world.together("the end")


def measured(
    loops: dict[str, Iterator[Any]], clock: timing.StandingClock, world: World | None, rounds: int, seconds: float
) -> dict[str, Any]:
    """Wall and processor seconds a step of each loop, slice by slice in turn."""
    for loop in loops.values():
        for _ in range(3):
            next(loop)
    clock.leave()
    count = _steps_of(loops["by hand"], world, seconds)
    clock.start()
    times: dict[str, list[list[float]]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name in list(loops)[:: 1 if turn % 2 == 0 else -1]:
            if world is not None:
                world.sum(torch.zeros(1), "a slice")
            if name == "fogline":
                clock.come()
            began, worked = timing._perf_counter(), time.process_time()
            for _ in range(count):
                next(loops[name])
            if turn:
                times[name].append([(timing._perf_counter() - began) / count, (time.process_time() - worked) / count])
            if name == "fogline":
                clock.leave()
    return {"times": times, "steps": count}


def _steps_of(loop: Iterator[Any], world: World | None, seconds: float) -> int:
    """How many steps of the loop take so long, the same in all processes."""
    began = timing._perf_counter()
    for _ in range(5):
        next(loop)
    count = max(2, round(5 * seconds / (timing._perf_counter() - began)))
    return count if world is None else int(world.by_first(lambda: count, "the length of a slice"))


def compute(problem: Problem, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of the hand-written loop by rows of the batch, in one process."""
    sizes = [problem.batch >> k for k in range(4)]
    loops = {size: by_hand(Problem(problem.title, problem.model, problem.data, size, 0), 0, 1) for size in sizes}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(rounds + 1):
        for size in sizes:
            began = timing._perf_counter()
            for _ in range(5):
                next(loops[size])
            if turn:
                times[size].append((timing._perf_counter() - began) / 5)
    return {str(size): found for size, found in times.items()}


def messages(rounds: int) -> dict[str, list[float]]:
    """Seconds of a sum over the processes, by its bytes."""
    times: dict[str, list[float]] = {}
    for numbers in (16, 1 << 16, 1 << 18, 1 << 20, 1 << 21):
        tensor = torch.zeros(numbers)
        times[str(4 * numbers)] = []
        for turn in range(3 * rounds):
            began = timing._perf_counter()
            dist.all_reduce(tensor)
            if turn >= 3:
                times[str(4 * numbers)].append(timing._perf_counter() - began)
    return times


# -- the model -----------------------------------------------------------------------------------------------------


def line(points: dict[float, float]) -> tuple[float, float]:
    """Intercept and slope of the line through points by least squares, neither below zero."""
    x, y = list(points), list(points.values())
    slope, start = statistics.linear_regression(x, y)[0], 0.0
    start = statistics.fmean(y) - slope * statistics.fmean(x)
    return (start, slope) if start > 0 else (0.0, sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x))


def step_seconds(
    rows: float, size: int, costs: tuple[float, float], message: float, network: tuple[float, float]
) -> float:
    """``fixed + rows / n * row + 2 (n - 1) / n * bytes / bandwidth + 2 log2(n) * latency``.

    Args:
        rows: of the batch of all processes.
        size: processes.
        costs: seconds of a step without rows, and of a row.
        message: bytes of the gradients.
        network: bandwidth and latency.
    """
    fixed, row = costs
    bandwidth, latency = network
    sending = 0.0 if size == 1 else 2 * (size - 1) / size * message / bandwidth + 2 * math.log2(size) * latency
    return fixed + math.ceil(rows / size) * row + sending


# -- the page ------------------------------------------------------------------------------------------------------


def launched(names: list[str], size: int, rounds: int, seconds: float) -> dict[str, Any]:
    """What ``size`` processes under torchrun find."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(size),
            __file__,
        ]
        command += ["--worker", folder, "--problems", *names, "--rounds", str(rounds), "--seconds", str(seconds)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
    return found


def speed_table(found: dict[int, dict[str, Any]]) -> str:
    """Examples a second of both loops, and the ratio of their times within rounds."""
    rows = []
    for name, problem in problems().items():
        for size, results in found.items():
            if name not in results:
                continue
            times = results[name]["times"]
            ratio = timing.Spread.of([a[0] / b[0] for a, b in zip(times["fogline"], times["by hand"], strict=True)])
            work = timing.Spread.of([a[1] / b[1] for a, b in zip(times["fogline"], times["by hand"], strict=True)])
            speeds = [problem.batch / statistics.median(t[0] for t in times[loop]) for loop in ("by hand", "fogline")]
            held = "pass" if ratio.median <= MOST else "level" if ratio.low <= MOST else "**short**"
            cells = [f"{speed:,.0f}" for speed in speeds] + [_spread(ratio), _spread(work), held]
            rows.append([problem.title, str(problem.batch), str(size), *cells])
    header = ["model", "batch", "processes", "by hand, examples/s", "Fogline, examples/s", "Fogline / by hand"]
    return timing.table([*header, "by processor time", f"at most {MOST:g}"], rows)


def _spread(spread: timing.Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def model_tables(found: dict[int, dict[str, Any]]) -> tuple[str, str]:
    """The costs that were fitted, with the step of two processes they predict; and the simulated speed-ups."""
    sent = {float(size): statistics.median(times) for size, times in found[2]["messages"].items()}
    latency, byte = line(sent)
    here = (1 / byte if byte else math.inf, latency / 2)
    fitted, scaled = [], []
    for name, problem in problems().items():
        if name not in found[1]:
            continue
        costs = line({float(rows): statistics.median(times) for rows, times in found[1][name]["compute"].items()})
        message = 4 * found[1][name]["parameters"]
        expected = step_seconds(problem.batch, 2, costs, message, here)
        seen = statistics.median(t[0] for t in found[2][name]["times"]["by hand"])
        cells = [1e3 * costs[0], 1e6 * costs[1], message / 1e6, 1e3 * expected, 1e3 * seen]
        fitted.append([problem.title, *(f"{cell:.3g}" for cell in cells)])
        for title, network in NETWORKS.items():
            alone = step_seconds(problem.large, 1, costs, message, network)
            ups = [alone / step_seconds(problem.large, size, costs, message, network) for size in SIZES]
            scaled.append([problem.title, title, *(f"{up:.1f}" if up < 100 else f"{up:.0f}" for up in ups)])
    heads = ["model", "fixed, ms", "a row, us", "gradients, MB", "two processes: predicted, ms", "measured, ms"]
    return timing.table(heads, fitted), timing.table(["model", "network", *map(str, SIZES)], scaled, text_columns=2)


PAGE = """# Several processes

Examples a second of `fit` in one process and in two, beside a loop over `DistributedDataParallel` written by hand (in
one process a plain loop); made by `python benchmarks/scale.py --write`. The loops take slices of about {seconds} s in
turn in the same processes, {rounds} rounds; a ratio is taken within a round, medians and quartiles are given. One
thread a process, gloo over loopback, float32, AdamW, the batch is that of all processes, seed 0. Fogline's gate,
signals, log and checkpoints are on, as they are by default; the step is eager. *Pass*: the median holds the target;
*level*: it does not, but the lower quartile does; *short*: neither does.

{stamp}

{speeds}

Two processes have the two cores of this machine, which other work shares: how much faster they are than one says
something of the machine and nothing of the loops.

## The model of strong scaling

`seconds(n) = fixed + ceil(B / n) * row + 2 (n - 1) / n * bytes / bandwidth + 2 log2(n) * latency`, see
[scaling](../scaling.md). *Fixed* and *a row* are the line through the times of the hand-written loop in one process at
{parts} of its batch; what a message takes between the two processes here is fitted likewise and gives the
prediction for two.

{fitted}

The prediction takes each process to have a core of its own; on a busy machine (the load stands above) it has not.

Simulated speed-up over one process at a global batch of {large:,} by number of processes; bandwidth and latency are
assumed.

{scaled}

Nothing beyond two processes was measured. The model has no stragglers, no contention for the network and no overlap of
sending and computing; the first two make it too good, the third too bad.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=list(problems()), choices=list(problems()))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a slice")
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names, rounds, seconds = arguments.problems, arguments.rounds, arguments.seconds
    if arguments.worker is not None:
        worker(names, rounds, seconds, arguments.worker)
        return
    found = {size: launched(names, size, rounds, seconds) for size in (1, 2)}
    speeds, (fitted, scaled) = speed_table(found), model_tables(found)
    print(speeds, fitted, scaled, sep="\n\n")
    if arguments.write:
        stamped = timing.stamp(["torch", "numpy"])
        page = PAGE.format(
            seconds=f"{seconds:g}", rounds=rounds, stamp=timing.describe(stamped), speeds=speeds, fitted=fitted,
            scaled=scaled, parts="1, 1/2, 1/4 and 1/8", large=8192,
        )  # fmt: skip
        timing.write_evidence("scale", page, {"stamp": stamped, "rounds": rounds, "results": found})


if __name__ == "__main__":
    main()
