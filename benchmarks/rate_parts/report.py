"""The tables of the rate benchmark, from filled cells."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import timing
from rate_parts import peers, verified
from rate_parts.grid import Cell, Trained
from rate_parts.tasks import Problem

FAILED = 0.25
NEAR = 0.02
_DRAWS = 4000
_LABELS = {
    "fogline": "**Fogline**",
    "verified": "**Fogline**, verified a tenth into the run",
    "fastai_minimum": "fastai, `minimum`",
    "fastai_valley": "fastai, `valley`",
    "torch_lr_finder": "torch-lr-finder",
    "lightning": "Lightning, `Tuner.lr_find`",
    "optuna": "Optuna, 20 short trials, equal cost",
    "default": "SGD 0.01, AdamW and Muon 1e-3",
    "ultralytics": "Ultralytics' rule",
    "prodigy": "Prodigy (whole optimizer)",
    "schedule_free": "schedule-free AdamW (whole optimizer)",
    "dadapt_adam": "D-Adaptation Adam (whole optimizer)",
    "dadapt_sgd": "D-Adaptation SGD (whole optimizer)",
}
_SCORED_BEFORE = (
    "This set had been scored twice before: when the race had no rungs, and when it had them and only runs of 2,000 "
    "steps and more were verified. What came of that chose no constant and no rule: those are of the calibration set "
    "(`docs/LOG.md`)."
)
_PACKAGES = (
    "torch", "numpy", "fastai", "torch-lr-finder", "lightning", "optuna", "prodigyopt", "schedulefree", "dadaptation",
    "scikit-learn",
)  # fmt: skip


def make(
    cells: Sequence[Cell],
    problems: Mapping[str, Problem],
    finders: Sequence[str],
    left_out: Sequence[str],
    which: str,
    sections: Sequence[str] = (),
) -> tuple[str, dict[str, Any]]:
    """The page and the numbers behind it; ``sections`` are of other cells."""
    scores = {name: found for name in finders if (found := scores_of(name, cells))}
    ranked = sorted(scores, key=lambda name: _mean(row["regret"] for row in scores[name]))
    stamped = timing.stamp(_PACKAGES)
    parts = [
        f"# Learning-rate finders: {which} set",
        _introduction(cells, problems, left_out),
        _SCORED_BEFORE if which == "evaluation" else "",
        "## Regret and cost by finder",
        _finder_table(scores, ranked),
        _finder_notes(cells, finders),
        "## Fogline by task",
        _task_table(scores.get("fogline", []), cells),
        _coverage(scores.get("fogline", []), cells),
        "## Time to a good model, probing included",
        _time_table(cells),
        *sections,
        "## Failures",
        _failures(scores, ranked),
        "## What was measured",
        _method(problems, cells),
        timing.describe(stamped),
    ]
    numbers = {
        "stamp": stamped,
        "set": which,
        "left_out": list(left_out),
        "summary": {name: _summary(scores[name]) for name in ranked},
        "scores": scores,
        "cells": [_plain(cell) for cell in cells],
    }
    return "\n\n".join(part for part in parts if part) + "\n", numbers


def scores_of(name: str, cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """A row for each cell in which a finder or a whole optimizer was tried."""
    rows = []
    for cell in cells:
        where = {"task": cell.task, "optimizer": cell.optimizer, "seed": cell.seed, "planned": cell.steps}
        if name in cell.others:
            run = cell.others[name]
            cost = verified.cost(cell) if name == verified.NAME else 0
            told = {"rate": None, "cost_steps": cost, "note": _note(run.loss)}
            rows.append(where | told | {"regret": cell.regret(run.loss), "kept_regret": kept_regret(cell, run)})
        elif name in cell.proposals:
            rows.append(where | _scored(cell, cell.proposals[name]))
    return rows


def _scored(cell: Cell, proposal: Mapping[str, Any]) -> dict[str, Any]:
    rate = proposal["rate"]
    told = {name: proposal[name] for name in ("rate", "cost_steps", "interval", "note", "warnings")}
    if rate is None:
        return told | {"regret": 1.0, "kept_regret": 1.0, "clock_steps": None}
    run = cell.runs[repr(rate)]
    step = run.processor / max(1, run.steps)
    scores = {"regret": cell.regret(run.loss), "kept_regret": kept_regret(cell, run)}
    return told | scores | {"clock_steps": proposal["processor"] / step, "note": _note(run.loss) or proposal["note"]}


def kept_regret(cell: Cell, run: Trained) -> float:
    """Regret by the lowest held-out loss along a run, against the lowest along any run at a rate."""
    lowest = min(_kept(other) for other in cell.runs.values())
    return min(1.0, max(0.0, (_kept(run) - lowest) / (cell.initial - lowest)))


def _kept(run: Trained) -> float:
    """The lowest held-out loss along a run; infinite for one that broke before the first."""
    return min((loss for _, loss in run.curve), default=math.inf)


def _note(loss: float) -> str:
    return "" if math.isfinite(loss) else "a step was not finite"


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    regrets, kept = [row["regret"] for row in rows], [row["kept_regret"] for row in rows]
    clocks = [row["clock_steps"] for row in rows if row.get("clock_steps") is not None]
    low, high = bootstrap(rows)
    return {
        "cells": len(rows),
        "mean": _mean(regrets),
        "mean_low": low,
        "mean_high": high,
        "median": statistics.median(regrets),
        "worst": max(regrets),
        "failures": sum(regret > FAILED for regret in regrets),
        "kept_mean": _mean(kept),
        "kept_worst": max(kept),
        "cost_steps": _mean(row["cost_steps"] for row in rows),
        "cost_share": _mean(row["cost_steps"] / row["planned"] for row in rows),
        "clock_steps": statistics.median(clocks) if clocks else None,
        "by_optimizer": {
            optimizer: _mean(row["regret"] for row in rows if row["optimizer"] == optimizer)
            for optimizer in dict.fromkeys(row["optimizer"] for row in rows)
        },
    }


def bootstrap(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """95 % interval of the mean regret: tasks are drawn again, each with all of its cells, which are alike."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row["regret"])
    sums = np.array([sum(regrets) for regrets in by_task.values()])
    counts = np.array([len(regrets) for regrets in by_task.values()])
    drawn = np.random.default_rng(0).integers(len(sums), size=(_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _introduction(cells: Sequence[Cell], problems: Mapping[str, Problem], left_out: Sequence[str]) -> str:
    tasks = dict.fromkeys(cell.task for cell in cells)
    optimizers = ", ".join(dict.fromkeys(cell.optimizer for cell in cells))
    seeds = len({cell.seed for cell in cells})
    lines = [
        f"{len(tasks)} tasks, optimizers {optimizers}, {seeds} seed(s): {len(cells)} cells. Regret is the share of the "
        "possible descent that was missed, `(L(rate) - L*) / (L0 - L*)`, clipped to 0 and 1: L is the held-out loss of "
        "the last weights of a run that was really made at the proposed rate, L0 that before training, L* the lowest "
        f"of the cell (grid and proposals). Above {FAILED}, or without a number, it is a failure.",
        *left_out,
    ]
    return "\n\n".join(lines)


def _finder_table(scores: Mapping[str, Sequence[Mapping[str, Any]]], ranked: Sequence[str]) -> str:
    optimizers = list(dict.fromkeys(row["optimizer"] for rows in scores.values() for row in rows))
    header = ["finder", "mean regret", "95 %", "median", "worst", "failures", "kept: mean regret", "kept: worst"]
    header += ["cost, steps", "of the run", "by clock"]
    rows = []
    for name in ranked:
        summary = _summary(scores[name])
        clock = "-" if summary["clock_steps"] is None else f"{summary['clock_steps']:.0f}"
        by = [summary["by_optimizer"].get(optimizer) for optimizer in optimizers]
        rows.append(
            [
                _LABELS[name], f"{summary['mean']:.3f}", f"{summary['mean_low']:.3f} to {summary['mean_high']:.3f}",
                f"{summary['median']:.3f}", f"{summary['worst']:.2f}", f"{summary['failures']} of {summary['cells']}",
                f"{summary['kept_mean']:.3f}", f"{summary['kept_worst']:.2f}",
                f"{summary['cost_steps']:.0f}", f"{100 * summary['cost_share']:.1f} %", clock,
                *("-" if mean is None else f"{mean:.3f}" for mean in by),
            ]
        )  # fmt: skip
    return timing.table([*header, *optimizers], rows)


def _finder_notes(cells: Sequence[Cell], finders: Sequence[str]) -> str:
    rules = {cell.proposals["fogline"]["note"] for cell in cells if "fogline" in cell.proposals}
    lines = [
        "Kept: the regret of what a trainer with checkpoints keeps, by the lowest held-out loss along each run (one "
        "every 2 % of it) on both sides; a run that broke keeps what it had. All else is by the last weights.",
        "Costs: training steps taken, a mean over the cells; their share of the planned run; and what the finder took "
        "in processor time, in steps of the run that follows (the median). The last columns are mean regrets by "
        "optimizer. The interval is a bootstrap over tasks. A whole optimizer is tried once a task and seed, with its "
        "authors' settings, against the best of the AdamW grid (D-Adaptation SGD: of the momentum grid).",
    ]
    if rules - {"find_lr"}:
        lines.append(f"Fogline's row is that of {', '.join(f'`{rule}`' for rule in sorted(rules) if rule)}.")
    if any(verified.NAME in cell.others for cell in cells):
        lines.append(verified.moved(cells))
    absent = {name: why for cell in cells for name, why in cell.absent.items() if name in finders}
    lines += [f"{_LABELS[name]} was not there: {why}." for name, why in sorted(absent.items())]
    return "\n\n".join(lines)


def _task_table(rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell]) -> str:
    if not rows:
        return "Not asked."
    known = {(cell.task, cell.optimizer, cell.seed): cell for cell in cells}
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["seed"]):
        grouped[row["task"], row["optimizer"]].append(row)
    lines = []
    for (task, optimizer), members in sorted(grouped.items()):
        best = [known[task, optimizer, row["seed"]].best_of_grid.rate for row in members]
        lines.append(
            [
                task, optimizer, _joined((row["rate"] for row in members), "{:.2g}"), _joined(best, "{:.2g}"),
                _joined((row["regret"] for row in members), "{:.3f}"),
                f"{_mean(row['cost_steps'] for row in members):.0f}", members[0]["planned"],
            ]
        )  # fmt: skip
    header = ["task", "optimizer", "proposed", "best of the grid", "regret by seed", "cost", "planned steps"]
    return timing.table(header, lines, text_columns=2)


def _coverage(rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell]) -> str:
    known = {(cell.task, cell.optimizer, cell.seed): cell for cell in cells}
    told = [row for row in rows if row.get("interval")]
    if not told:
        return ""
    exact = near = 0
    for row in told:
        cell, (low, high) = known[row["task"], row["optimizer"], row["seed"]], row["interval"]
        inside = [cell.runs[repr(rate)] for rate in cell.grid if low <= rate <= high]
        exact += low <= cell.best_of_grid.rate <= high
        near += any(cell.regret(run.loss) <= NEAR for run in inside) or row["regret"] <= NEAR
    width = statistics.median(math.log10(row["interval"][1] / row["interval"][0]) for row in told)
    return (
        f"The interval (median width {width:.2f} decades) holds the best rate of the grid in {exact} of {len(told)} "
        f"cells, and some rate with a regret of at most {NEAR} in {near}."
    )


def steps_to(run: Trained, target: float, cost: int) -> float:
    """Steps until the held-out loss first was as low as that, probing included; infinite where it never was."""
    return next((step + cost for step, loss in run.curve if loss <= target), math.inf)


def _time_table(cells: Sequence[Cell]) -> str:
    levels: dict[str, Callable[[Cell], float]] = {
        "1.01 of the grid's best loss": lambda cell: cell.best_of_grid.loss + 0.01 * abs(cell.best_of_grid.loss),
        "95 % of the descent": lambda cell: cell.best.loss + 0.05 * (cell.initial - cell.best.loss),
    }
    found = [cell for cell in cells if cell.optimizer == "adamw" and {"fogline", "default"} <= set(cell.proposals)]
    if not found:
        return "Neither was asked with AdamW."
    parts = [
        "AdamW cells: steps until the held-out loss, looked at every 2 % of the run, was first as low as that, with "
        "the steps of the finder added; the median over seeds, `-` for never."
    ]
    grouped: dict[str, list[Cell]] = defaultdict(list)
    for cell in found:
        grouped[cell.task].append(cell)
    rows = []
    for task, members in grouped.items():
        row: list[object] = [task, members[0].steps]
        for target in levels.values():
            row += [_steps(members, name, target) for name in ("fogline", "default")]
        rows.append(row)
    header = ["task", "planned"]
    header += [f"{who}: {level}" for level in levels for who in ("Fogline", "AdamW 1e-3")]
    parts.append(timing.table(header, rows))
    parts += [_sooner(found, level, target) for level, target in levels.items()]
    return "\n\n".join(parts)


def _reached(cell: Cell, name: str, target: Callable[[Cell], float]) -> float:
    proposal = cell.proposals[name]
    if proposal["rate"] is None:
        return math.inf
    return steps_to(cell.runs[repr(proposal["rate"])], target(cell), proposal["cost_steps"])


def _steps(members: Sequence[Cell], name: str, target: Callable[[Cell], float]) -> str:
    median = statistics.median_high([_reached(cell, name, target) for cell in members])
    return "-" if math.isinf(median) else f"{median:.0f}"


def _sooner(cells: Sequence[Cell], level: str, target: Callable[[Cell], float]) -> str:
    pairs = [(_reached(cell, "fogline", target), _reached(cell, "default", target)) for cell in cells]
    ours, theirs = (sum(not math.isinf(pair[k]) for pair in pairs) for k in (0, 1))
    sooner, later = (sum(a < b for a, b in pairs), sum(a > b for a, b in pairs))
    return (
        f"{level[0].upper()}{level[1:]}: Fogline's rate came there in {ours} of {len(pairs)} cells, AdamW 1e-3 in "
        f"{theirs}; Fogline was sooner in {sooner}, later in {later}."
    )


def _failures(scores: Mapping[str, Sequence[Mapping[str, Any]]], ranked: Sequence[str]) -> str:
    lines = []
    for name in ranked:
        failed = [row for row in scores[name] if row["regret"] > FAILED]
        if not failed:
            continue
        said = "; ".join(_failure(row) for row in failed)
        lines.append(f"- {_LABELS[name]} ({len(failed)}): {said}")
    return "\n".join(lines) or "None."


def _failure(row: Mapping[str, Any]) -> str:
    at = "" if row["rate"] is None else f" at {row['rate']:.2g}"
    note = f" ({row['note']})" if row["note"] and (row["rate"] is None or "finite" in row["note"]) else ""
    return f"{row['task']}/{row['optimizer']}/{row['seed']} {row['regret']:.2f}{at}{note}"


def _method(problems: Mapping[str, Problem], cells: Sequence[Cell]) -> str:
    tasks = dict.fromkeys(cell.task for cell in cells)
    rows = [[name, problems[name].title, problems[name].batch_size, problems[name].steps] for name in tasks]
    text = (
        "Every run of a cell has the same first weights, batches and length; the schedule is linear to zero after 5 % "
        "of warm-up. The grid has 20 rates, 1e-5 to 10 for SGD with momentum 0.9 and 1e-5 to 1 for AdamW and Muon, "
        "evenly spaced on a logarithmic scale, and goes on where an end wins. A run with a loss or gradient that is "
        "not finite counts as nothing learned. The seed decides split or draw of the data, first weights and order. "
        "Finders that score held-out data (Fogline, Optuna) see the data that the regret is measured on. fastai, "
        "torch-lr-finder and Lightning run in their own packages with their own defaults, on the cell's optimizer and "
        f"batches; Optuna's TPE has {peers.TRIALS} trials, each a short run annealed to zero, that together take as "
        "many steps as Fogline's finder. Ultralytics' rule for AdamW serves Muon too, whose steps are scaled alike. "
        "Muon is tried on models with hidden matrices only."
    )
    return f"{text}\n\n{timing.table(['task', 'what', 'batch', 'steps'], rows, text_columns=2)}"


def _plain(cell: Cell) -> dict[str, Any]:
    """A cell without curves and evidence."""
    return {
        "task": cell.task,
        "optimizer": cell.optimizer,
        "seed": cell.seed,
        "initial": cell.initial,
        "grid": [[rate, _finite(cell.runs[repr(rate)].loss)] for rate in cell.grid],
        "lowest": cell.best.loss,
        "best_rate": cell.best_of_grid.rate,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _joined(values: Iterable[float | None], how: str) -> str:
    return " / ".join("none" if value is None else how.format(value) for value in values)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
