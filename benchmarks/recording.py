"""What it costs to record what each example does, in one process, interleaved: with and without, eager and compiled.

    python benchmarks/recording.py               # the MLPs and the CNNs, ten minutes
    python benchmarks/recording.py --rounds 15 --write    # also docs/evidence/recording.md and recording.json

Two are those of the label benchmark (MNIST-5k and Fashion-MNIST), two those of the overhead benchmark. Every epoch is
recorded and has its file, as in the first epochs of a run, where recording is dearest. The data sets of the overhead
benchmark are small: an epoch takes a hundredth of a second, and a long run of such epochs records only some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timing

timing.one_thread()

import torch  # noqa: E402  after the number of threads is set

from labels_parts import problems as of_labels  # noqa: E402
from overhead_parts.problems import PROBLEMS, Problem  # noqa: E402
from overhead_parts.trainers import Parked, Tick  # noqa: E402

if TYPE_CHECKING:
    from fogline.progress import ProgressReport

LIMITS = {"cnn": 1.03, "mlp": 1.10}
CASES = (
    *(("mnist-mlp", mode) for mode in ("eager", "compiled")),
    *(("fashion-cnn", mode) for mode in ("eager", "compiled")),
    *(("mlp", mode) for mode in ("eager", "compiled", "chunked")),
    *(("cnn", mode) for mode in ("eager", "compiled")),
)
_SECONDS = 1.5  # of a slice: signals are written twice a second, checkpoints at most once


@dataclass(frozen=True)
class Outcome:
    """One problem and step mode, in every round: the cost with recording and without."""

    problem: Problem
    mode: str
    recorded: list[timing.Cost]
    plain: list[timing.Cost]
    note: str

    @property
    def name(self) -> str:
        return f"{self.problem.name}, {self.mode}"

    @property
    def limit(self) -> float:
        return LIMITS[self.problem.name.rpartition("-")[2]]

    @property
    def lowest(self) -> float:
        """The ratio of the lowest slices."""
        recorded, plain = (min(cost.processor for cost in costs) for costs in (self.recorded, self.plain))
        return recorded / plain

    def ratio(self, by: str = "processor") -> timing.Spread:
        return timing.ratio(self.recorded, self.plain, by)


def problem_of(name: str) -> Problem | None:
    """One of the overhead benchmark or of the label benchmark; None where its data is not there."""
    if name in PROBLEMS:
        return PROBLEMS[name]()
    found = of_labels.mnist() if name == "mnist-mlp" else of_labels.fashion()
    if found is None:
        return None
    inputs, targets = torch.from_numpy(found.inputs), torch.from_numpy(found.labels)
    return Problem(
        name, found.name, found.model, torch.nn.CrossEntropyLoss(), inputs, targets, 64, "adamw", 1e-7,
        planned_steps=1_000_000, chunked=True,
    )  # fmt: skip


def contender(problem: Problem, mode: str, record: bool) -> timing.Contender:
    """``fogline.fit`` with everything as it is by default, parked at its log points."""
    import fogline

    recipe = fogline.Recipe(
        optimizer=problem.optimizer, lr=problem.lr, batch_size=problem.batch_size,
        duration=f"{problem.planned_steps}st", schedule="constant", warmup=0, seed=0, step=mode, examples=record,
    )  # fmt: skip
    task = fogline.Task(model=problem.model(), loss=problem.loss, train=(problem.inputs, problem.targets))
    runs = Path(tempfile.mkdtemp(prefix="recording-"))

    def train(tick: Tick) -> None:
        before = 0

        def at_log_point(report: ProgressReport) -> None:
            nonlocal before
            before, steps = report.step, report.step - before
            tick(steps)

        fogline.fit(task, recipe, runs=runs, name="run", progress=at_log_point)

    run = Parked(train).run
    mechanics = json.loads((runs / "run" / "run.json").read_text(encoding="utf-8"))["mechanics"]
    return timing.Contender(run, seconds=_SECONDS, note=str(mechanics["mode"]))


def measure(problem: Problem, mode: str, rounds: int) -> Outcome:
    """Both take turns: A B B A ..."""
    pair = {kind: contender(problem, mode, kind == "recorded") for kind in ("recorded", "plain")}
    costs = timing.interleave(pair, rounds=rounds, seconds=_SECONDS)
    notes = {loop.note for loop in pair.values()}
    return Outcome(problem, mode, costs["recorded"], costs["plain"], " / ".join(sorted(notes)))


def summary(outcomes: Sequence[Outcome]) -> str:
    """A row a case."""
    rows = []
    for one in outcomes:
        by, wall = one.ratio(), one.ratio("wall")
        plain, recorded = timing.microseconds(one.plain), timing.microseconds(one.recorded)
        rows.append(
            [
                one.name,
                f"{plain.median:,.1f}",
                f"{recorded.median:,.1f}",
                f"{by.median:.3f}",
                f"{by.low:.3f} to {by.high:.3f}",
                f"{one.lowest:.3f}",
                f"{wall.median:.3f}",
                f"{one.limit:.2f}",
                "pass" if by.median <= one.limit else "**short**",
            ]
        )
    header = ["steps", "us without", "us with", "ratio", "quartiles", "lowest", "wall ratio", "at most", ""]
    return timing.table(header, rows)


@dataclass(frozen=True)
class Million:
    """What one epoch of a million examples takes: bytes on the device, on disk, and seconds of the writing thread."""

    buffer: int
    file: int
    processor: float
    wall: float


def million(rounds: int = 5) -> Million:
    """Order and write an epoch of a million examples with six columns."""
    import numpy as np

    from fogline.descent.order import permuted_range
    from fogline.record.columns import Columns
    from fogline.record.example_files import files
    from fogline.record.example_writer import Epoch, ExampleWriter

    count, columns = 1_000_000, Columns("classification", "classes", (10,), head=torch.nn.Linear(1, 1))
    values = torch.rand(columns.width, count)
    runs = Path(tempfile.mkdtemp(prefix="recording-"))
    writer = ExampleWriter(runs, columns, count, lambda epoch: permuted_range(0, epoch, 0, count, count))
    costs = []
    for number in range(rounds):
        processor, wall = time.process_time(), time.perf_counter()
        writer.write([Epoch(number, values)])
        writer.drain()
        costs.append(timing.Cost(time.perf_counter() - wall, time.process_time() - processor))
    writer.close()
    spent = [float(np.median([getattr(cost, by) for cost in costs])) for by in ("processor", "wall")]
    return Million(values.nbytes, files(runs)[0].stat().st_size, *spent)


def page(outcomes: Sequence[Outcome], large: Million, stamp: dict[str, Any]) -> str:
    """The page of evidence."""
    rounds = len(outcomes[0].plain)
    modes = "; ".join(f"{one.name}: {one.note}" for one in outcomes)
    return f"""# What recording costs

`fogline.fit` with `examples=True` over `fogline.fit` with `examples=False`, everything else as it is by default: the
same model, data and steps, in one process, in turn (A B B A ...), {rounds} rounds of {_SECONDS} s each. The ratio is
taken between slices of the same round; its median and quartiles are given, and beside them the ratio of the lowest
slices, which a busy machine disturbs least. Processor time counts all threads, the one that writes the files included.
*mnist-mlp* (784-256-128-10, 5,000 images) and *fashion-cnn* (two convolutions, 12,000 images) are the problems of
[the evidence on labels](labels.md), batches of 64. *mlp* and *cnn* are those of the benchmark of overhead, a hard case:
every epoch is recorded and has its file, and their data has 1,792 examples, so a file is written every 28 steps (MLP)
or 14 steps (CNN). A run records its first 64 epochs so, and after them fewer and fewer.

{summary(outcomes)}

Step modes that were taken: {modes}.

An epoch of 1,000,000 examples with six columns takes {large.buffer / 1e6:.0f} MB in the buffer and
{large.file / 1e6:.0f} MB on disk; to bring it into the order of the examples and write it takes
{large.processor:.2f} s of processor time of the thread that writes ({large.wall:.2f} s by the clock), beside the steps.

{timing.describe(stamp)}

Made by `python benchmarks/recording.py --rounds {rounds} --write`, on a machine that others used too. The weights are
drawn with seed 0, and the order of the data is that of seed 0.
"""


def write(outcomes: Sequence[Outcome], large: Million) -> None:
    """Write the page of evidence and its JSON."""
    stamp = timing.stamp()
    cases = {
        one.name: {"mode": one.note, "limit": one.limit, "recorded": one.recorded, "plain": one.plain}
        for one in outcomes
    }
    timing.write_evidence("recording", page(outcomes, large, stamp), {"cases": cases, "million": vars(large), **stamp})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="cases, such as mlp-eager")
    parser.add_argument("--write", action="store_true", help="write docs/evidence/recording.md and recording.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    timing.StandingClock.install()
    from fogline.record import examples

    examples.IN_FULL = sys.maxsize  # every epoch has a file
    outcomes: list[Outcome] = []
    for name, mode in CASES:
        problem = problem_of(name) if arguments.only is None or f"{name}-{mode}" in arguments.only else None
        if problem is not None:
            outcomes.append(measure(problem, mode, arguments.rounds))
            print(summary(outcomes[-1:]), flush=True)
    print(summary(outcomes))
    if arguments.write:
        write(outcomes, million())


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # parked trainers never return
