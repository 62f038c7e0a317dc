"""One run in the terminal: verdict, findings, scores, a chart of the loss, events. Plain text; no colour is needed."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from fogline.cli.chart import chart
from fogline.cli.listing import last_step
from fogline.cli.saying import encodable, say
from fogline.record.store import Table, count_rows, read_groups, read_info, read_table
from fogline.words import moment, number, scores_text, verdict_name, verdict_sentence

EVENTS_SHOWN = 12
MARKS_SHOWN = 5
LONG, GROUPS = 50_000, 1000


def print_ending(folder: Path, *, err: bool = False) -> None:
    """The last lines of a training command: the verdict's sentence, the scores, and where the run lies."""
    info = read_info(folder)
    say(verdict_sentence(info.get("verdict")), err=err)
    if info.get("scores"):
        say(f"held out: {scores_text(info['scores'])}", err=err)
    say(f"run: {folder}", err=err)


def print_run(folder: Path) -> None:
    """Everything worth knowing about one run, at most as wide as the terminal.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    info = read_info(folder)
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    for line in (_heading(folder, info), _filled(verdict_sentence(info.get("verdict")), width), ""):
        say(line)
    for line in _facts(info, *last_step(folder)):
        say(_filled(line, width, subsequent_indent=" " * 8))
    findings = read_table(folder, "findings", "id")
    say("\ntraining loss by step")
    _print_loss(_losses(folder), findings, width)
    _print_findings(findings, width)
    _print_scores(read_table(folder, "scores", "step, split, name"))
    _print_events(read_table(folder, "events", "id"), width)


def _heading(folder: Path, info: dict[str, Any]) -> str:
    return f"{folder.name}: {verdict_name(info.get('verdict'))} ({moment(info.get('started'))})"


def _losses(folder: Path) -> Table:
    """The training loss by step; of a long run its means over groups of steps."""
    if count_rows(folder, "steps") <= LONG:
        return read_table(folder, "steps", columns=("step", "loss"))
    groups = read_groups(folder, "loss", GROUPS)
    return Table({"step": groups["step"], "loss": groups["mean"]})


def _facts(info: dict[str, Any], step: int | None, loss: float | None) -> list[str]:
    task, recipe = info.get("task") or {}, info.get("recipe") or {}
    words = [str(task.get("model") or "model")]
    if task.get("parameters"):
        words.append(f"{task['parameters']:,} parameters")
    if task.get("train_examples"):
        words.append(f"{task['train_examples']:,} training examples")
    lines = ["task    " + ", ".join(words)]
    named = ("optimizer", "lr", "batch_size", "duration", "schedule", "seed")
    lines.append("recipe  " + ", ".join(f"{name} {_value(recipe[name])}" for name in named if name in recipe))
    if step is not None:
        lines.append(f"steps   {info['steps'] if info.get('verdict') else step}, last loss {number(loss)}")
    if info.get("scores"):
        lines.append(f"scores  {scores_text(info['scores'])}: held out, the weights kept")
    return lines


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_scores(scores: Table) -> None:
    if not len(scores):
        return
    say("\nscores            first      best      last")
    named = list(dict.fromkeys(zip(scores["split"], scores["name"], strict=True)))
    for split, name in named:
        values = scores["value"][(scores["split"] == split) & (scores["name"] == name)]
        finite = values[np.isfinite(values)]
        # Only of a loss is it known which way is better.
        best = number(float(finite.min())) if name == "loss" and len(finite) else ""
        say(f"{split + ' ' + name:<14} {number(float(values[0])):>9} {best:>9} {number(float(values[-1])):>9}")


def _print_loss(steps: Table, findings: Table, width: int) -> None:
    """The chart, with the findings pointed at."""
    if not len(steps):
        say("(no steps yet)")
        return
    x = steps["step"].astype(float)
    marks = [(max(x[0], float(row["step"])), str(row["cause"])) for row in findings][:MARKS_SHOWN]
    for line in chart(x, steps["loss"], width=width, unicode=knows_unicode(), marks=marks):
        say(line)


def _print_findings(findings: Table, width: int) -> None:
    if not len(findings):
        return
    say("\nfindings")
    for row in findings:
        found = json.loads(row["data"])
        head = f"  step {int(row['step'])}  {row['cause']} ({row['severity']}, {row['confidence']:.0%} sure)"
        say(_filled(f"{head}: {found['explanation']}", width, subsequent_indent="    "))
        remedy = (found.get("remedy") or {}).get("title") or found.get("advice")
        if remedy:
            say(_filled(f"remedy: {remedy}", width, initial_indent="    ", subsequent_indent="      "))
        say(f"    more: fogline explain {row['cause']}")


def _print_events(events: Table, width: int) -> None:
    rows = [row for row in events if row["kind"] != "finding"]  # those are shown in full above
    if not rows:
        return
    say("\nevents")
    if len(rows) > EVENTS_SHOWN:
        say(f"  ... {len(rows) - EVENTS_SHOWN} earlier ones are in the report")
    for row in rows[-EVENTS_SHOWN:]:
        line = f"  step {int(row['step'])}  {row['kind']}: {row['message']}"
        say(_filled(line, width, subsequent_indent="    "))


def _filled(text: str, width: int, initial_indent: str = "", subsequent_indent: str = "") -> str:
    """Wrapped after its characters are those that the terminal knows: one may become several."""
    known = encodable(text, sys.stdout.encoding or "ascii")
    return textwrap.fill(known, width, initial_indent=initial_indent, subsequent_indent=subsequent_indent)


def knows_unicode() -> bool:
    """Whether what is printed can hold braille dots."""
    try:
        "⣿┤".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
