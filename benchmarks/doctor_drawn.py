"""The doctor on small programs drawn at random, sound ones and such with a fault.

    python benchmarks/doctor_drawn.py                          # a few of each
    python benchmarks/doctor_drawn.py --full --jobs 2 --write  # also docs/evidence/doctor-drawn.md

The programs of ``benchmarks/faults`` were written one by one, next to the doctor. These are drawn: data set, network,
method, rate, batch, length and schedule, as people put them together (``doctor_parts/drawn.py``). What is what is
measured on test rows that nobody else sees:

- a program is *sound* if, trained as it is, it comes within 0.1 of what the better of two stronger recipes reaches
  (its own for four times as long, and adamw with a measured rate for four times as long);
- a fault *does harm* if it costs more than 0.1, or was planted in what is reported rather than in what is learned.

Scores are those of ``fogline.doctor.yardstick``: 0 is the best constant answer, 1 is perfect.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402 - after the number of threads is set

import fogline  # noqa: E402
from doctor_parts.drawn import FAULTS, Drawn, draw, draw_faulty  # noqa: E402
from fogline.doctor.yardstick import Yardstick  # noqa: E402

FIRST = 210_000
"""Seeds below were used while the doctor was made."""
CLOSE = 0.1
REPORTED = ("train_valid_mismatch", "duplicate_leak")


def sound(seed: int) -> dict[str, Any]:
    """A sound program: how far from its best it is, and what is said of it."""
    program = draw(seed)
    long = {**program.recipe, "duration": f"{4 * int(program.recipe['duration'][:-2])}ep"}
    score = trained(program, program.recipe)
    best = max(trained(program, long), trained(program, {**long, "optimizer": "adamw", "lr": "auto"}))
    return {"seed": seed, "words": program.words, "score": score, "best": best} | examined(program, seed)


def faulty(seed: int) -> dict[str, Any]:
    """A program with a fault: what it costs, and what is said of it."""
    program, twin = draw_faulty(seed)
    harm = trained(twin, twin.recipe) - trained(program, program.recipe)
    row = {"seed": seed, "words": program.words, "causes": list(program.causes), "also": sorted(program.also)}
    return row | {"harm": harm} | examined(program, seed)


def trained(program: Drawn, recipe: dict[str, Any]) -> float:
    """Test score of the program trained with a recipe; 0 where it cannot be trained at all."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = fogline.fit(
                program.model(),
                program.train,
                loss=program.loss,
                valid=program.valid,
                runs=folder,
                progress=False,
                **recipe,
            )
        except (ValueError, TypeError):
            return 0.0
        with torch.no_grad():
            outputs = run.model(program.test[0])
    return Yardstick.of(program.train[1], program.loss)(outputs, program.test[1], program.loss)


def examined(program: Drawn, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    report = fogline.diagnose(program.model(), program.train, loss=program.loss, valid=program.valid, **program.recipe)
    return {
        "verdict": report.verdict,
        "found": [finding.cause for finding in report.findings],
        "confidence": [finding.confidence for finding in report.findings],
        "control": report.control,
        "reference": report.reference,
        "times_the_run": report.cost_steps / max(1, report.planned),
    }


def right(row: dict[str, Any], first: int) -> bool:
    return any(cause in (*row["causes"], *row["also"]) for cause in row["found"][:first])


def share(values: Iterable[bool]) -> str:
    found = list(values)
    return f"{sum(found)} of {len(found)} ({sum(found) / len(found):.0%})" if found else "none"


def tables(good: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]]) -> str:
    fine = [row for row in good if row["best"] - row["score"] <= CLOSE]
    harmful = [row for row in bad if row["harm"] > CLOSE or row["causes"][0] in REPORTED]
    lines = [
        ["sound programs (of those drawn)", f"{len(fine)} of {len(good)}"],
        ["false alarms: a finding for a sound program", share(bool(row["found"]) for row in fine)],
        ["programs that fall short without a planted fault, with a finding",
         share(bool(row["found"]) for row in good if row not in fine)],
        ["faults that do harm (of those planted)", f"{len(harmful)} of {len(bad)}"],
        ["detected, where it does harm", share(bool(row["found"]) for row in harmful)],
        ["first finding right", share(right(row, 1) for row in harmful)],
        ["right among three", share(right(row, 3) for row in harmful)],
    ]  # fmt: skip
    missed = [
        [row["causes"][0], row["words"], f"{row['harm']:.2f}", row["verdict"], ", ".join(row["found"]) or "nothing"]
        for row in harmful
        if not right(row, 1)
    ]
    alarms = [
        [row["words"], f"{row['score']:.2f}", f"{row['best']:.2f}", ", ".join(row["found"])]
        for row in fine
        if row["found"]
    ]
    return "\n\n".join(
        [
            timing.table(["", "found"], lines),
            "## Sound programs with a finding",
            timing.table(["program", "score", "best", "said"], alarms) if alarms else "None.",
            "## Faults whose first finding was another",
            timing.table(["planted", "program", "harm", "verdict", "said"], missed) if missed else "None.",
        ]
    )


PAGE = """# The doctor on programs drawn at random

Made by `python benchmarks/doctor_drawn.py --full --write`, seeds from {first} on, which nothing had been looked at with
before; what changed after this commit is in `docs/LOG.md`. The script says how soundness and harm are measured.

{stamp}

{tables}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="60 sound programs and three of each fault, instead of 6")
    parser.add_argument("--first", type=int, default=FIRST, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    arguments = parser.parse_args()
    counts = (60, 3 * len(FAULTS)) if arguments.full else (6, 6)
    good, bad = (
        all_of(kind, range(arguments.first, arguments.first + count), arguments.jobs)
        for kind, count in zip(("sound", "faulty"), counts, strict=True)
    )
    text = tables(good, bad)
    print(text)
    if arguments.write:
        stamped = timing.stamp(["torch", "numpy", "scikit-learn"])
        page = PAGE.format(first=arguments.first, stamp=timing.describe(stamped), tables=text)
        timing.write_evidence("doctor-drawn", page, {"stamp": stamped, "sound": good, "faulty": bad})


def one(kind: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return sound(seed) if kind == "sound" else faulty(seed)


def all_of(kind: str, seeds: range, jobs: int) -> list[dict[str, Any]]:
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        for row in pool.map(one, repeat(kind), seeds):
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
