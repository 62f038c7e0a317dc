"""What it costs to record what each example does, in one process, interleaved: with and without, eager and compiled.

    python benchmarks/recording.py               # the MLP and the CNN of the overhead benchmark, a few minutes
    python benchmarks/recording.py --rounds 15 --write    # also docs/evidence/recording.md and recording.json

Every epoch is recorded and has its file, as in the first epochs of a run, where recording is dearest: the two data sets
are small, an epoch takes a hundredth of a second, and a long run of such epochs records only some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import timing

timing.one_thread()

import torch  # noqa: E402  after the number of threads is set

from overhead_parts.problems import PROBLEMS, Problem  # noqa: E402
from overhead_parts.trainers import Parked, Tick  # noqa: E402

if TYPE_CHECKING:
    from fogline.progress import ProgressReport

LIMITS = {"cnn": 1.03, "mlp": 1.10}
CASES = (("mlp", "eager"), ("mlp", "compiled"), ("mlp", "chunked"), ("cnn", "eager"), ("cnn", "compiled"))
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
        return LIMITS[self.problem.name]

    def ratio(self, by: str = "processor") -> timing.Spread:
        return timing.ratio(self.recorded, self.plain, by)


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


def measure(name: str, mode: str, rounds: int) -> Outcome:
    """Both take turns: A B B A ..."""
    problem = PROBLEMS[name]()
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
                f"{wall.median:.3f}",
                f"{one.limit:.2f}",
                "pass" if by.median <= one.limit else "**short**",
            ]
        )
    header = ["steps", "us without", "us with", "ratio", "quartiles", "wall ratio", "at most", ""]
    return timing.table(header, rows)


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
        if arguments.only is None or f"{name}-{mode}" in arguments.only:
            outcomes.append(measure(name, mode, arguments.rounds))
            print(summary(outcomes[-1:]), flush=True)
    print(summary(outcomes))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # parked trainers never return
