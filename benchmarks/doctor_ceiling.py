"""How many of the programs whose data has lost something can be repaired at all, told in hindsight.

    python benchmarks/doctor_ceiling.py                      # the calibration half
    python benchmarks/doctor_ceiling.py --half all --write   # also docs/evidence/doctor-ceiling.md

``doctor.py`` counts a program as repaired where the remedied task closes 90 % of the gap to its healthy twin. Some
faults of ``benchmarks/faults`` throw away what the twin learns from: rows of a class are left out, targets are
shuffled. Here each such program is repaired in every way we know, and the way that does best *on its test rows* is
taken, which is more than any tool can know.

*Which programs*: those with one fault, of the data or of fit, that makes them worse, whose training inputs are rows of
the twin (apart from rows that are not finite) while some pair of input and target of the twin is gone: its input is
missing, or the targets are no longer ordered as those of the twin are. Other units, another order of rows and faults of
held-out rows take nothing away.

*Which repairs*: the methods of ``doctor_parts/hindsight.py``, those that the doctor knows and published ones, on

- the program as it is, without rows that are not finite;
- *the oracle of rows*: the twin, its network, loss and recipe, taught with those rows of the faulty program that are
  the twin's own, input and target, for as many steps as the longer of the two programs takes.

A program is *reparable* if one of these closes 90 % of the gap, by the mean of its test scores over three fresh seeds.
Repairs are tried with the first seed, one after another; one that closes as much there is tried with the others too,
and is the last to be tried if it holds; where none does, the best four have all seeds. The oracle of rows always has.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402 - after the number of threads is set
from scipy.stats import spearmanr  # noqa: E402
from torch import Tensor  # noqa: E402

from doctor import CLOSED, FRESH, score_of  # noqa: E402
from doctor_parts.hindsight import METHODS  # noqa: E402
from faults import HALVES, Program, programs  # noqa: E402
from fogline import Recipe, Task  # noqa: E402
from fogline.doctor.finding import CAUSES  # noqa: E402
from fogline.recipe import Duration  # noqa: E402

CACHE = timing.ROOT / "build" / "doctor-ceiling"
FINALISTS = 4
ORDERED = 0.999
"""Rank correlation above which targets are those of the twin in other units, but for rounding."""
ORACLE = "the twin's own rows"
PLAIN = f"{ORACLE}, nothing else"

Pair = tuple[Tensor, Tensor]


def lost(program: Program, twin: Program) -> bool:
    """Whether some of what the twin learns from cannot be told from the program's training rows."""
    if len(program.causes) != 1 or program.causes[0] not in (*CAUSES["data"], *CAUSES["fit"]):
        return False
    if program.make is None or twin.make is None or not program.bites:
        return False
    return rows_are_lost(usable(program.make(0)[0].train), twin.make(0)[0].train)


def rows_are_lost(rows: Pair, of_twin: Pair) -> bool:
    """Whether these are rows of the twin, but not all of them, or with targets in another order."""
    place = {key: at for at, key in enumerate(_keys(of_twin[0]))}
    found = [place.get(key) for key in _keys(rows[0])]
    if None in found or rows[1].shape[1:] != of_twin[1].shape[1:]:
        return False
    if set(found) != set(place.values()):
        return True
    ours, theirs = rows[1].flatten(), of_twin[1][torch.tensor(found)].flatten()
    if len(torch.unique(ours)) < 2:
        return True
    return bool(abs(spearmanr(ours.double(), theirs.double()).statistic) < ORDERED)


def usable(pair: Pair) -> Pair:
    """Rows of finite numbers."""
    fine = torch.stack([part.reshape(len(part), -1).double().isfinite().all(1) for part in pair]).all(0)
    return pair[0][fine], pair[1][fine]


def own(pair: Pair, of_twin: Pair) -> Pair | None:
    """The rows that are the twin's, input and target; None where there is none."""
    known = set(zip(_keys(of_twin[0]), _keys(of_twin[1]), strict=True))
    mine = torch.tensor([key in known for key in zip(_keys(pair[0]), _keys(pair[1]), strict=True)])
    return (pair[0][mine], pair[1][mine]) if bool(mine.any()) else None


def _keys(rows: Tensor) -> list[bytes]:
    return [row.tobytes() for row in rows.reshape(len(rows), -1).numpy()]


def steps(task: Task, recipe: Recipe) -> int:
    """How many a program takes."""
    rows = len(task.train[0])
    count = Duration.parse(recipe.duration).steps(rows if recipe.batch_size == "full" else int(recipe.batch_size), rows)
    assert count is not None
    return count


def repairs(program: Program, twin: Program, seed: int) -> dict[str, tuple[Task, Recipe]]:
    """All that there is a place for, by name."""
    assert program.make is not None
    assert twin.make is not None
    task, recipe = program.make(seed)
    healthy, its_recipe = twin.make(seed)
    begun = {"the program": (dataclasses.replace(task, train=usable(task.train), valid=usable(task.valid)), recipe)}
    if (rows := own(task.train, healthy.train)) is not None:
        longer = max(steps(task, recipe), steps(healthy, its_recipe))
        taught = dataclasses.replace(healthy, train=rows, valid=own(task.valid, healthy.valid))
        begun[ORACLE] = taught, its_recipe.replace(duration=f"{longer}st")
    made = {f"{name}, {by}": method(*pair) for name, pair in begun.items() for by, method in METHODS.items()}
    return {name: pair for name, pair in made.items() if pair is not None}


def measured(program: Program, twin: Program, cache: Path) -> dict[str, Any]:
    """What the oracle of rows closes of the gap, and what the best repair does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    file = cache / f"{hashlib.sha1(program.name.encode()).hexdigest()}.json"
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def scores(name: str, seeds: Sequence[int] = FRESH) -> list[float]:
        for seed in seeds:
            if f"{seed} {name}" not in known:
                known[f"{seed} {name}"] = score_of(program, *_named(program, twin, name, seed))
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known))
        return [known[f"{seed} {name}"] for seed in seeds]

    faulty, healthy = (statistics.fmean(scores(name)) for name in ("faulty", "healthy"))
    names = sorted(repairs(program, twin, FRESH[0]), key=lambda name: name != PLAIN)
    oracle = closed(faulty, healthy, statistics.fmean(scores(PLAIN))) if PLAIN in names else 0.0
    best, most = _best(names, scores, faulty, healthy)
    return {"name": program.name, "half": program.half, "cause": program.causes[0], "best": best} | {
        "oracle_closed": oracle,
        "closed": most,
        "reparable": most >= CLOSED,
    }


def _best(names: Sequence[str], scores: Callable[..., list[float]], faulty: float, healthy: float) -> tuple[str, float]:
    """The repair that closes most of the gap, the first that closes enough; and what it closes."""
    first, full = {}, {}
    for name in names:
        first[name] = scores(name, FRESH[:1])[0]
        if closed(faulty, healthy, first[name]) >= CLOSED:
            full[name] = closed(faulty, healthy, statistics.fmean(scores(name)))
            if full[name] >= CLOSED:
                return name, full[name]
    for name in sorted(names, key=lambda name: -first[name])[:FINALISTS]:
        full[name] = closed(faulty, healthy, statistics.fmean(scores(name)))
    best = max(full, key=lambda name: full[name])
    return best, full[best]


def closed(faulty: float, healthy: float, mended: float) -> float:
    """Share of the gap; all of it where there is none."""
    return (mended - faulty) / (healthy - faulty) if healthy > faulty else 1.0


def _named(program: Program, twin: Program, name: str, seed: int) -> tuple[Task, Recipe]:
    assert program.make is not None
    assert twin.make is not None
    if name in ("faulty", "healthy"):
        return (program if name == "faulty" else twin).make(seed)  # type: ignore[misc]
    return repairs(program, twin, seed)[name]


def totals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By half and cause, and for each half in all."""
    found = []
    for half in HALVES:
        inside = [row for row in rows if row["half"] == half]
        causes = sorted({row["cause"] for row in inside})
        for cause, group in [
            *((cause, [row for row in inside if row["cause"] == cause]) for cause in causes),
            ("all", inside),
        ]:
            if group:
                found.append(
                    {
                        "half": half,
                        "cause": cause,
                        "programs": len(group),
                        "reparable": sum(row["reparable"] for row in group),
                        "oracle_closed": round(statistics.fmean(row["oracle_closed"] for row in group), 3),
                        "closed": round(statistics.fmean(row["closed"] for row in group), 3),
                    }
                )
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    header = ["half", "cause", "programs", "reparable", "closed by the twin's own rows", "closed by the best"]
    lines = [
        [row["half"], row["cause"], row["programs"], row["reparable"]]
        + [f"{row[key]:.2f}" for key in ("oracle_closed", "closed")]
        for row in found
    ]
    return timing.table(header, lines, text_columns=2)


PAGE = """# What hindsight repairs

Made by `python benchmarks/doctor_ceiling.py --half all --write`, on those programs of `benchmarks/faults` whose one
fault takes from the training rows what the healthy twin learns from. Each was repaired in up to {ways} ways, with and
without the knowledge of which rows are the twin's own, until one closed {closed:.0%} of the gap to the twin on **test**
rows, which no tool can look at: then the program is reparable. Seeds: {fresh}; where none closed as much, every repair
was tried with the first, and the best {finalists} with all.

{stamp}

{table}

The best of so many by the test rows is also the luckiest: the last column says what cannot be had rather than what
can, and of reparable programs what the first that sufficed closed. What cannot be trained scores 0, so that to answer
always the same closes a part of the gap of a program whose targets are constant. Of labels that were all shuffled a few
are right by chance; the oracle knows which, and no tool can.

The programs left out of the table keep all that the twin learns from, in other units, another order, or under a fault
that is not of the data; `doctor.py` counts them as reparable, and so it does a program that the doctor repaired.
The names of the programs are in the JSON file beside this page.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=(*HALVES, "all"), default="calibration")
    parser.add_argument("--only", default="", help="programs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--write", action="store_true", help="write the page of evidence, which is of both halves")
    arguments = parser.parse_args()
    halves = HALVES if arguments.half == "all" else (arguments.half,)
    if arguments.write and (arguments.half != "all" or arguments.only):
        parser.error("the page is of both halves: --half all --write")
    rows = list(_all([name for name in _chosen(halves) if arguments.only in name[1]], arguments.jobs, arguments.cache))
    found = totals(rows)
    print(table(found))
    if arguments.write:
        stamped = timing.stamp(["torch", "numpy", "scikit-learn"])
        page = PAGE.format(
            ways=2 * len(METHODS),
            fresh=", ".join(map(str, FRESH)),
            finalists=FINALISTS,
            closed=CLOSED,
            stamp=timing.describe(stamped),
            table=table(found),
        )
        names = {key: sorted(row["name"] for row in rows if row["reparable"] is (key == "reparable")) for key in KEYS}
        timing.write_evidence("doctor-ceiling", page, {"stamp": stamped, "totals": found} | names)


KEYS = ("reparable", "irreparable")


def _chosen(halves: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for half in halves:
        by_name = {program.name: program for program in programs(half)}
        found += [(half, name) for name, program in by_name.items() if lost(program, by_name[program.twin])]
    return found


def _all(names: Sequence[tuple[str, str]], jobs: int, cache: Path) -> Iterator[dict[str, Any]]:
    """Rows in order; of the half that is not looked at while tools are made only the number is shown."""
    with ProcessPoolExecutor(jobs) as pool:
        for number, row in enumerate(pool.map(_one, names, [cache] * len(names)), 1):
            said = f"{row['name']:<48} {row['best']:<44} {row['oracle_closed']:5.2f} {row['closed']:5.2f}"
            print(f"{number}/{len(names)}", said if row["half"] == "calibration" else "", flush=True)
            yield row


def _one(name: tuple[str, str], cache: Path) -> dict[str, Any]:
    by_name = {program.name: program for program in programs(name[0])}
    program = by_name[name[1]]
    return measured(program, by_name[program.twin], cache)


if __name__ == "__main__":
    main()
