"""How long the figures and the report of a run of a million steps take, and how large the report is."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import timing
from fogline.record.store import Store

STEPS = 1_000_000
MOST_SECONDS, MOST_MEGABYTES = 2.0, 6.0
_AT_ONCE = 100_000

# Every figure in a process of its own: nothing is read before, and imports are not counted.
ONE_FIGURE = """
import sys, time
from fogline.plots import FIGURES
from fogline.run import Run
run, name = Run.open(sys.argv[1]), sys.argv[2]
begin = time.perf_counter()
FIGURES[name](run)
print(time.perf_counter() - begin)
"""
REPORT = """
import sys, time
from fogline.plots.report import write_report
from fogline.run import Run
begin = time.perf_counter()
write_report(Run.open(sys.argv[1]), sys.argv[2])
print(time.perf_counter() - begin)
"""


def make_run(folder: Path) -> None:
    """A run of a million steps with a noisy falling loss, probes of sixty layers, findings and a confusion matrix."""
    random = np.random.default_rng(0)
    store = Store(folder)
    for first in range(0, STEPS, _AT_ONCE):
        step = np.arange(first, first + _AT_ONCE)
        loss = (2.3 * np.exp(-step / (STEPS / 5)) + 0.05) * random.lognormal(0, 0.25, len(step))
        norm = random.lognormal(0, 0.5, len(step))
        columns = (step, step / 1000, 32 * step, step * 0.001, loss, 0.1 * (1 - step / STEPS), norm)
        store.steps(list(zip(*(column.tolist() for column in columns), strict=True)))
        store.flush()
    probed = range(500, STEPS, 1000)
    names = [f"encoder.layers.{k}.attention.output.dense" for k in range(60)]
    for step in probed:
        # Over the row of the step: a probe measures more of it.
        store.steps([(step, step / 1000, 32 * step, step * 0.001, 0.5, 0.05, 1.0, 0.01, 0.001, 0.1, 0.2, 0.8)])
        store.layers([(step, name, 2.0, 0.1, 0.01, 1.0, 0.3) for name in names])
    for k in range(12):
        found = {"cause": "dead_units", "severity": "minor", "confidence": 0.7, "explanation": "x", "evidence": []}
        store.finding(80_000 * k, found, "x")
    for k in range(100):
        store.scores(10_000 * k, "valid", {"loss": 2.3 * 0.97**k, "accuracy": 1 - 0.97**k})
    store.confusion([(a, b, 90 if a == b else 1) for a in range(30) for b in range(30)])
    verdict = {"name": "NOISE_FLOOR", "message": "Noise floor: the steps only jitter.", "evidence": {}}
    store.write_info({"name": folder.name, "verdict": verdict, "steps": STEPS, "recipe": {}, "task": {}})
    store.close()


def seconds(code: str, *arguments: object) -> float:
    """What the code prints, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(repeats: int) -> list[dict[str, Any]]:
    """Median seconds of each figure and of the report."""
    from fogline.plots import figures_of
    from fogline.run import Run

    with tempfile.TemporaryDirectory() as place:
        folder, page = Path(place) / "long", Path(place) / "long.html"
        make_run(folder)
        rows = [
            {"what": name, "seconds": median(seconds(ONE_FIGURE, folder, name) for _ in range(repeats))}
            for name in figures_of(Run.open(folder))
        ]
        report = median(seconds(REPORT, folder, page) for _ in range(repeats))
        return [*rows, {"what": "report", "seconds": report, "megabytes": os.path.getsize(page) / 1e6}]


def table(rows: list[dict[str, Any]]) -> str:
    """The table of the page."""
    sizes = [f"{row['megabytes']:.1f}" if "megabytes" in row else "" for row in rows]
    lines = [[row["what"], f"{row['seconds']:.2f}", size] for row, size in zip(rows, sizes, strict=True)]
    return timing.table(["figure", "seconds", "size, MB"], lines)


PAGE = """# Figures of a long run

A run of 1,000,000 steps with probes of sixty layers, made by `python benchmarks/figures.py --write` (seed 0). Median
seconds of {repeats}, each in a process of its own, without imports. A figure is to take at most {seconds:g} s; the
report, which holds every figure in both looks and Plotly itself, at most {megabytes:g} MB: **{answer}**.

{stamp}

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    arguments = parser.parse_args()
    timing.one_thread()
    rows = measure(arguments.repeats)
    print(table(rows))
    *figures, report = rows
    kept = max(row["seconds"] for row in figures) <= MOST_SECONDS and report["megabytes"] <= MOST_MEGABYTES
    if arguments.write:
        stamped = timing.stamp(["numpy", "plotly"])
        page = PAGE.format(
            repeats=arguments.repeats,
            seconds=MOST_SECONDS,
            megabytes=MOST_MEGABYTES,
            answer="it is so" if kept else "it is not so",
            stamp=timing.describe(stamped),
            table=table(rows),
        )
        timing.write_evidence("figures", page, {"stamp": stamped, "repeats": arguments.repeats, "results": rows})


if __name__ == "__main__":
    main()
