"""How often the doctor finds what is wrong, cries wolf, names the right cause and mends it.

    python benchmarks/doctor.py                                    # every eighth program of the calibration half
    python benchmarks/doctor.py --half calibration --full          # what constants are chosen on
    python benchmarks/doctor.py --half evaluation --full --write   # also docs/evidence/doctor.md

Programs, rules and words are those of ``benchmarks/faults``. A program is

- *detected* if there is a finding, *named first* or *among three* if a planted cause (or one that says the same) is
  the first finding, or one of the first three; a *false alarm* is a finding for a healthy program;
- *repaired* if, over three fresh seeds, training the remedied task closes 90 % of the gap between the faulty program
  and its healthy twin on test rows, and *made worse* if it ends below the faulty program by more than two standard
  errors and a tenth of the gap, and below the healthy twin too (some faults happen to do good).

Some faults throw away what the twin learns from. Which programs no repair mends even in hindsight is measured by
``doctor_ceiling.py``, and where it was, the repaired among the others are counted as well.

The cost is the time of the diagnosis over the time of ``fit`` of the same program, both on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402 - after the number of threads is set
from torch import nn  # noqa: E402

import fogline  # noqa: E402
from doctor_parts.meaning import counted, right  # noqa: E402
from faults import Program, programs  # noqa: E402

FRESH = (101, 102, 103)
CLOSED, WORSE = 0.9, 0.1
CACHE = timing.ROOT / "build" / "doctor"
CEILING = timing.ROOT / "docs" / "evidence" / "doctor-ceiling.json"


def examined(program: Program, cache: Path) -> dict[str, Any]:
    """Everything that is told of one program."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {
        "name": program.name,
        "kind": program.kind,
        "causes": list(program.causes),
        "also": list(program.also),
        "strength": program.strength,
        "bites": program.bites,
    }
    try:
        return row | (_by_loop(program) if program.make is None else _by_task(program, cache))
    except Exception as error:  # noqa: BLE001 - a crash is a result: it is counted and shown
        return row | {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-2000:]}


def _by_task(program: Program, cache: Path) -> dict[str, Any]:
    assert program.make is not None
    task, recipe = program.make(0)
    started = time.perf_counter()
    report = fogline.diagnose(task, recipe)
    seconds = time.perf_counter() - started
    found = _found(report) | {"seconds": seconds, "fit_seconds": _fit_seconds(program, cache)}
    if program.causes:
        found |= _repair(program, report, cache)
    return found


def _by_loop(program: Program) -> dict[str, Any]:
    assert program.loop is not None

    def watch(*args: Any, **kwargs: Any) -> Any:
        return fogline.watch(*args, **kwargs, runs=folder)

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = program.loop(0, watch)
        trained = time.perf_counter() - started
        started = time.perf_counter()
        report = run.diagnose()
        seconds = time.perf_counter() - started
    return _found(report) | {"seconds": seconds, "fit_seconds": trained}


def _found(report: Any) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "found": [finding.cause for finding in report.findings],
        "confidence": [finding.confidence for finding in report.findings],
        "remedies": [remedy.title for remedy in report.remedies],
        "rejected": [f"{item.cause}: {item.why}" for item in report.rejected],
        "control": report.control,
        "healed": report.healed,
        "reference": report.reference,
        "cost_steps": report.cost_steps,
        "planned": report.planned,
    }


def _repair(program: Program, report: Any, cache: Path) -> dict[str, Any]:
    twin = next(other for other in programs(program.half) if other.name == program.twin)
    faulty = [_score(program, seed, cache) for seed in FRESH]
    healthy = [_score(twin, seed, cache) for seed in FRESH]
    mended = faulty if not report.remedies else [_score(program, seed, cache, report) for seed in FRESH]
    gap = statistics.fmean(healthy) - statistics.fmean(faulty)
    gained = [after - before for after, before in zip(mended, faulty, strict=True)]
    error = statistics.stdev(gained) / len(gained) ** 0.5
    closed = statistics.fmean(gained) / gap if gap > 0 else 1.0
    lost = statistics.fmean(gained) < -max(2 * error, WORSE * abs(gap), 0.01)
    worse = lost and statistics.fmean(mended) < statistics.fmean(healthy) - 0.01
    return {
        "faulty": faulty,
        "healthy": healthy,
        "mended": mended,
        "closed": closed,
        "repaired": closed >= CLOSED,
        "worse": worse,
    }


def _score(program: Program, seed: int, cache: Path, report: Any = None) -> float:
    """Test score of a program trained with a seed, with the remedies of a report; what cannot be trained has none."""
    titles = [] if report is None else [remedy.title + remedy.patch for remedy in report.remedies]
    file = cache / f"{program.name.replace('/', '-')}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    key = f"{seed} {'; '.join(titles)}"
    if key not in known:
        known[key] = _trained_score(program, seed, report)
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known))
    return float(known[key])


def _trained_score(program: Program, seed: int, report: Any) -> float:
    assert program.make is not None
    task, recipe = program.make(seed)
    if report is not None:
        task, recipe = report.apply(task, recipe)
    return score_of(program, task, recipe)


def score_of(program: Program, task: fogline.Task, recipe: fogline.Recipe) -> float:
    """Score on the program's test rows of what this task and recipe train; what cannot be trained has none."""
    assert program.test is not None
    assert program.score is not None
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = fogline.fit(task, recipe, runs=folder, progress=False)
        except (ValueError, TypeError):  # it cannot be trained as it is
            return 0.0
        return max(-1.0, program.score(run.model, program.test()))


def _fit_seconds(program: Program, cache: Path) -> float:
    """What training the program takes, once warm."""
    assert program.make is not None
    times = []
    for _ in range(2):
        task, recipe = program.make(0)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            try:
                fogline.fit(task, recipe, runs=folder, progress=False)
            except (ValueError, TypeError):
                return 0.0
            times.append(time.perf_counter() - started)
    return min(times)


def beyond_repair(file: Path = CEILING) -> frozenset[str] | None:
    """Names of the programs that no repair we know mends, as ``doctor_ceiling.py`` found; None where it was not run."""
    return frozenset(json.loads(file.read_text())["irreparable"]) if file.exists() else None


def summary(rows: Sequence[dict[str, Any]], irreparable: frozenset[str] | None = None) -> list[tuple[str, str, str]]:
    """The lines of the table: what, how much, target."""
    single = [row for row in rows if len(row["causes"]) == 1]
    several = [row for row in rows if len(row["causes"]) > 1]
    healthy = [row for row in rows if not row["causes"]]
    lines = []
    for title, group in (("one fault", single), ("two or three faults", several)):
        if group:
            mendable = [row for row in group if "closed" in row and row["bites"]]
            lines += [
                (f"detected, {title}", _share(bool(row.get("found")) for row in group), "97 %"),
                (f"first finding right, {title}", _share(_right(row, 1) for row in group), "85 %"),
                (f"right among three, {title}", _share(_right(row, 3) for row in group), "95 %"),
                (f"repaired, {title}", _share(row["repaired"] for row in mendable), "80 %"),
            ]
            if irreparable is not None and group is single:
                # What the doctor repaired can be repaired, whatever else was tried.
                within = [row for row in mendable if row["repaired"] or row["name"] not in irreparable]
                said = "repaired, of those that hindsight repairs, one fault"
                lines.append((said, _share(row["repaired"] for row in within), "80 %"))
            lines += [
                (f"made worse, {title}", _share(row["worse"] for row in group if "worse" in row), "0 %"),
            ]
    lines.append(("false alarms on healthy programs", _share(bool(row.get("found")) for row in healthy), "2 %"))
    lines.append(("crashes", _share("error" in row for row in rows), "0 %"))
    ratios = [row["seconds"] / row["fit_seconds"] for row in rows if row.get("fit_seconds") and row["kind"] != "loop"]
    if ratios:
        quartiles = statistics.quantiles(ratios, n=4)
        lines.append(
            ("cost, times the run", f"{quartiles[1]:.2f} ({quartiles[0]:.2f} to {quartiles[2]:.2f})", "median 1.0")
        )
    return lines


def _right(row: dict[str, Any], first: int) -> bool:
    return any(cause in (*row["causes"], *row["also"]) for cause in row.get("found", [])[:first])


def _share(values: Iterable[bool]) -> str:
    found = list(values)
    return f"{sum(found)} of {len(found)} ({sum(found) / len(found):.0%})" if found else "none"


def by_cause(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each planted cause: detected, first, among three, repaired; and what was said instead."""
    lines = []
    for cause in sorted({row["causes"][0] for row in rows if len(row["causes"]) == 1}):
        group = [row for row in rows if row["causes"] == [cause]]
        missed = [", ".join(row.get("found", [])[:2]) or "nothing" for row in group if not _right(row, 1)]
        mendable = [row for row in group if "closed" in row and row["bites"]]
        lines.append(
            [
                cause,
                str(len(group)),
                str(sum(bool(row.get("found")) for row in group)),
                str(sum(_right(row, 1) for row in group)),
                str(sum(_right(row, 3) for row in group)),
                f"{sum(row['repaired'] for row in mendable)}/{len(mendable)}" if mendable else "-",
                "; ".join(missed),
            ]
        )
    header = ["cause", "programs", "detected", "first", "in three", "repaired", "said first instead"]
    return timing.table(header, lines)


def reliability(rows: Sequence[dict[str, Any]]) -> str:
    """How often findings of a confidence name a planted cause, or one that says the same.

    A side effect that is really there, such as dead units of a rate that is too high, counts as wrong.
    """
    said = [
        (confidence, cause in (*row["causes"], *row["also"]))
        for row in rows
        for cause, confidence in zip(row.get("found", []), row.get("confidence", []), strict=True)
    ]
    lines = []
    for low, high in ((0.0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
        inside = [(confidence, right) for confidence, right in said if low <= confidence < high]
        if inside:
            mean = statistics.fmean(confidence for confidence, _ in inside)
            lines.append([f"{low:g} to {high:g}", f"{mean:.2f}", _share(right for _, right in inside)])
    return timing.table(["confidence", "mean", "right"], lines)


def beside(rows: Sequence[dict[str, Any]]) -> str:
    """The published tools of ``doctor_peers.py`` and Fogline on the programs that all of them were given."""
    file = timing.ROOT / "docs" / "evidence" / "doctor-peers.json"
    if not file.exists():
        return "Not measured here: `benchmarks/doctor_peers.py` makes that table."
    peers = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    common = [row for row in rows if row["name"] in peers]
    lines = []
    for tool in ("Fogline", *dict.fromkeys(name for row in peers.values() for name in row["tools"])):
        said = {row["name"]: _said(tool, row, peers[row["name"]]) for row in common}
        faulty = [row for row in common if row["causes"]]
        named = [
            (
                right(tool, said[row["name"]][:1], [*row["causes"], *row["also"]])
                if tool != "Fogline"
                else _right(row, 1)
            )
            for row in faulty
        ]
        lines.append(
            [
                tool,
                _share(bool(said[row["name"]]) for row in faulty),
                _share(bool(said[row["name"]]) for row in common if not row["causes"]),
                _share(named),
            ]
        )
    return timing.table(["tool", "alarm at faulty ones", "alarm at healthy ones", "first alarm right"], lines)


def _said(tool: str, row: dict[str, Any], peer: dict[str, Any]) -> list[str]:
    if tool == "Fogline":
        return list(row.get("found", []))
    return counted(tool, [alarm["check"] for alarm in peer["tools"][tool]["alarms"]])


def preflight() -> str:
    """Seconds of a look at one batch of a network with a million parameters, the shortest of three."""
    X, y = torch.randn(512, 256, generator=torch.Generator().manual_seed(0)), torch.arange(512) % 10
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 700), nn.ReLU(), nn.Linear(700, 10))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        fogline.diagnose(model, (X, y), 0, loss=nn.CrossEntropyLoss(), batch_size=64, duration="5ep")
        times.append(time.perf_counter() - started)
    return f"{min(times):.2f} s for {sum(p.numel() for p in model.parameters()):,} parameters, batch 64"


PAGE = """# The doctor on programs with known faults

Made by `python benchmarks/doctor.py --half {half} --full --write`; the programs are those of `benchmarks/faults`, half
"{half}", which share no data set and no network with the half that constants were chosen on. Seeds of the repair:
{fresh}.

{history}{stamp}

{table}

{hindsight}Preflight alone (`budget=0`): {preflight}.

## Beside published tools

Any alarm at all, on those programs of this half that `doctor_peers.py` ran; what the tools name, what their severe
alarms are and what they cost is in [doctor-peers.md](doctor-peers.md).

{beside}

## How sure it was

{reliability}

## By cause

{causes}

## Healthy programs with a finding

{alarms}
"""


HINDSIGHT = """Which programs can be repaired at all, by the best of many repairs that look at the test rows and at
those of the healthy twin, is in [doctor-ceiling.md](doctor-ceiling.md): rows that were left out no edit brings back.

"""

HISTORY = """This half had been scored before. What changed since then, and the first table, is in `docs/LOG.md`;
what becomes of leaked copies, the level that a gain is measured from, how much time classical learners take, what is
tried where they get no further, which causes are said as another reading of the same, what refutes a guess and that a
part of the rows is learned from were changed for what this half had shown in its totals.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=("calibration", "evaluation"), default="calibration")
    parser.add_argument("--only", default="", help="programs whose name contains this")
    parser.add_argument("--every", type=int, default=8, help="take every so manieth program")
    parser.add_argument("--full", action="store_true", help="take every program")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path, help="write every row")
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    arguments = parser.parse_args()
    chosen = [program for program in programs(arguments.half) if arguments.only in program.name]
    chosen = chosen if arguments.full or arguments.only else chosen[:: arguments.every]
    rows = list(_all(chosen, arguments.half, arguments.jobs, arguments.cache))
    irreparable = beyond_repair()
    table = timing.table(["", "found", "target"], [list(line) for line in summary(rows, irreparable)])
    print(table, by_cause(rows), sep="\n\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.write:
        stamped = timing.stamp(["torch", "numpy", "scikit-learn"])
        alarms = [f"- {row['name']}: {', '.join(row['found'])}" for row in rows if not row["causes"] and row["found"]]
        page = PAGE.format(
            half=arguments.half,
            history=HISTORY if arguments.half == "evaluation" else "",
            fresh=", ".join(map(str, FRESH)),
            stamp=timing.describe(stamped),
            table=table,
            hindsight=HINDSIGHT if irreparable is not None else "",
            preflight=preflight(),
            beside=beside(rows),
            reliability=reliability(rows),
            causes=by_cause(rows),
            alarms="\n".join(alarms) or "None.",
        )
        timing.write_evidence("doctor", page, {"stamp": stamped, "rows": rows})


def _all(chosen: Sequence[Program], half: str, jobs: int, cache: Path) -> Iterable[dict[str, Any]]:
    """Rows in order; processes look programs up by name, since programs hold functions."""
    names = [(half, program.name, cache) for program in chosen]
    if jobs == 1:
        found: Iterable[dict[str, Any]] = map(_named, names)
        for row in found:
            _say(row)
            yield row
        return
    with ProcessPoolExecutor(jobs) as pool:
        for row in pool.map(_named, names):
            _say(row)
            yield row


def _named(what: tuple[str, str, Path]) -> dict[str, Any]:
    half, name, cache = what
    return examined(next(program for program in programs(half) if program.name == name), cache)


def _say(row: dict[str, Any]) -> None:
    closed = f" closed {row['closed']:.2f}" if "closed" in row else ""
    said = row.get("verdict", row.get("error", ""))
    print(f"{row['name']:<48} {said!s:<14.60} {','.join(row.get('found', []))}{closed}", flush=True)


if __name__ == "__main__":
    main()
