"""Train every program and see that the healthy are good and the faulty clearly worse.

    python benchmarks/faults/check.py                        all, in a quarter of an hour on two cores
    python benchmarks/faults/check.py --half calibration --only dead_units --jobs 1

For each program: the score with each of the seeds 0, 1 and 2 and the seconds a run takes; for a faulty one the gap
to its twin in units of the deviation between seeds. A program that its cause does not hurt says why in ``reason``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import fogline
from faults import HALVES, Program, programs

LEAST_SPREAD = 0.01
"""Deviations between seeds below this are taken for it, so that three equal scores make no infinite gap."""
LEAST_GAP = 0.05
"""A fault bites where the mean score is lower by this and by two deviations."""


@dataclass(frozen=True)
class Trained:
    """What became of a program.

    Attributes:
        name: of the program.
        scores: one a seed; a program that was refused has none.
        seconds: of one run.
        refused: the error it was refused with.
    """

    name: str
    scores: tuple[float, ...]
    seconds: float
    refused: str = ""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores) if self.scores else float("-inf")

    @property
    def spread(self) -> float:
        return max(LEAST_SPREAD, statistics.stdev(self.scores)) if len(self.scores) > 1 else LEAST_SPREAD


def main() -> int:
    """Print the table; the exit code is the number of programs that are not what they claim to be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--half", choices=HALVES)
    parser.add_argument(
        "--only", nargs="*", default=[], help="train what has one of these in its name, and their twins"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--headroom", action="store_true", help="what other recipes would gain over the healthy ones")
    parser.add_argument("--json", type=Path, help="write the scores here as well")
    asked = parser.parse_args()
    begin = time.perf_counter()
    if asked.headroom:
        return print_headroom(asked.half, asked.only, asked.jobs)
    everything = programs(asked.half)
    chosen = [p for p in everything if not asked.only or any(part in p.name for part in asked.only)]
    twins = {p.twin for p in chosen}
    trained: dict[str, Trained] = {}
    wrong = 0
    with multiprocessing.get_context("spawn").Pool(asked.jobs) as pool:
        work = [p for p in everything if p in chosen or p.name in twins]  # the healthy come first in their half
        for program, result in zip(work, pool.imap(train_named, [(p.name, asked.seeds) for p in work]), strict=True):
            trained[program.name] = result
            verdict = judged(program, trained)
            wrong += verdict.startswith("WRONG")
            print(line(program, trained, verdict), flush=True)
    faulty = sum(bool(p.causes) for p in work)
    seconds = time.perf_counter() - begin
    print(f"\n{faulty} faulty, {len(work) - faulty} healthy, {wrong} wrong; {seconds:.0f} s in all")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(one) for one in trained.values()], indent=1) + "\n")
    return min(wrong, 100)


def print_headroom(half: str | None, only: list[str], jobs: int) -> int:
    """A healthy program that another recipe improves much is not healthy; loops keep their own recipe to themselves."""
    chosen = [
        p for p in programs(half) if not p.causes and p.make and (not only or any(part in p.name for part in only))
    ]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for name, own, others in pool.imap(headroom, [p.name for p in chosen]):
            best = max(others, key=lambda how: others[how])
            better = others[best] - own.mean
            mark = "MUCH" if better > max(0.03, 2 * own.spread) else ""
            print(f"{name:<60} {own.mean:6.3f} {others[best]:6.3f} {best:<14} {better:+.3f} {mark}", flush=True)
    return 0


def headroom(name: str) -> tuple[str, Trained, dict[str, float]]:
    """The mean score of a program beside those with another rate or a longer duration."""
    torch.set_num_threads(1)
    program = named(name)
    assert program.make is not None
    made = program.make

    def longer(recipe: fogline.Recipe) -> fogline.Recipe:
        length = fogline.Duration.parse(recipe.duration)
        return recipe.replace(duration=fogline.Duration(3 * length.value, length.unit))

    def faster(recipe: fogline.Recipe, factor: float) -> fogline.Recipe:
        assert not isinstance(recipe.lr, str)
        return recipe.replace(lr=factor * recipe.lr)

    ways: dict[str, Callable[[fogline.Recipe], fogline.Recipe]] = {
        "thrice as long": longer,
        "thrice the rate": partial(faster, factor=3),
        "a third of it": partial(faster, factor=1 / 3),
    }
    scores = {}
    for how, change in ways.items():
        scores[how] = train(replace(program, make=partial(_changed, made, change))).mean
    return name, train(program), scores


def _changed(
    make: Callable[[int], tuple[fogline.Task, fogline.Recipe]],
    change: Callable[[fogline.Recipe], fogline.Recipe],
    seed: int,
) -> tuple[fogline.Task, fogline.Recipe]:
    task, recipe = make(seed)
    return task, change(recipe)


def train_named(work: tuple[str, int]) -> Trained:
    """Train the program of this name with this many seeds."""
    torch.set_num_threads(1)
    name, seeds = work
    return train(named(name), seeds)


def named(name: str) -> Program:
    """The program of this name."""
    return next(p for p in programs() if p.name == name)


def train(program: Program, seeds: int = 3) -> Trained:
    """Train with the first few seeds; what fails is not an error here but a result."""
    assert program.score is not None
    assert program.test is not None
    scores: list[float] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(seeds):
            try:
                model = trained_model(program, seed, folder)
            except (ValueError, TypeError, RuntimeError) as error:
                return Trained(program.name, (), time.perf_counter() - begin, f"{type(error).__name__}: {error}")
            scores.append(program.score(model, program.test()))
    return Trained(program.name, tuple(scores), (time.perf_counter() - begin) / seeds)


def trained_model(program: Program, seed: int, folder: str) -> torch.nn.Module:
    """The model at the end of the program's own training."""
    if program.loop is not None:
        return program.loop(seed, partial(fogline.watch, runs=folder)).model  # type: ignore[no-any-return]
    assert program.make is not None
    task, recipe = program.make(seed)
    run = fogline.fit(task, recipe.replace(device="cpu", step="eager"), runs=folder, progress=False)
    assert run.model is not None
    return run.model


def judged(program: Program, trained: dict[str, Trained]) -> str:
    """Whether it is what it claims to be, in a word or two; begins with WRONG where it is not."""
    own = trained[program.name]
    if not program.causes:
        assert program.good is not None
        return "good" if own.scores and min(own.scores) >= program.good else f"WRONG: below {program.good}"
    if own.refused:
        return f"refused: {' '.join(own.refused.split())[:90]}"
    lost = gap(program, trained)
    bites = lost >= 2 and trained[program.twin].mean - own.mean >= LEAST_GAP
    if program.bites:
        return "bites" if bites else "WRONG: does not bite"
    return "not counted, though it bites" if bites else "not counted"


def gap(program: Program, trained: dict[str, Trained]) -> float:
    """Difference of the mean scores of the twin and the program, in deviations between the twin's seeds."""
    own, twin = trained[program.name], trained[program.twin]
    return (twin.mean - own.mean) / max(own.spread / 3**0.5, twin.spread)


def line(program: Program, trained: dict[str, Trained], verdict: str) -> str:
    own = trained[program.name]
    scores = " ".join(f"{score:6.3f}" for score in own.scores) or f"{'-':>20}"
    lost = f"{gap(program, trained):7.1f}" if program.causes and own.scores else " " * 7
    return f"{program.name:<72} {scores} {lost} {own.seconds:5.2f}s  {verdict}"


if __name__ == "__main__":
    sys.exit(main())
