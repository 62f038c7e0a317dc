"""The command that measures a learning rate. Importing this module imports PyTorch."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import typer

from fogline.cli.chart import chart
from fogline.cli.showing import knows_unicode
from fogline.plots.rate import ceiling
from fogline.rate import Rate
from fogline.words import number

_MARGIN = 10


def print_rate(rate: Rate, *, as_json: bool = False) -> None:
    """Value, interval, cost, how it was decided, warnings and a chart of the race; or all of it as JSON."""
    if as_json:
        names = ("value", "interval", "cost_steps", "evidence", "warnings")
        typer.echo(json.dumps({name: getattr(rate, name) for name in names}, allow_nan=False))
        return
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    for name, words in _facts(rate):
        typer.echo(textwrap.fill(f"{name:<{_MARGIN}}{words}", width, subsequent_indent=" " * _MARGIN))
    race = rate.evidence.get("race")
    if race is not None:
        typer.echo("")
        for line in _drawn(race, rate.value, width):
            typer.echo(line)


def _facts(rate: Rate) -> list[tuple[str, str]]:
    evidence = rate.evidence
    rule = str(evidence["rule"])
    facts = [
        ("rate", f"{rate.value:.4g}"),
        ("interval", f"{rate.interval[0]:.2g} to {rate.interval[1]:.2g}"),
        ("cost", _cost(rate.cost_steps, evidence)),
        ("decided", f"{rule[:1].upper()}{rule[1:]}."),
    ]
    if (race := evidence.get("race")) is not None:
        form = "together in one program" if race["together"] else "one after another"
        words = f"{len(race['rates'])} rates for {number(race['steps'])} steps each, {form}"
        facts.append(("race", f"{words}: {race['why']}"))
    return [*facts, *(("warning", words) for words in rate.warnings)]


def _cost(steps: int, evidence: Mapping[str, Any]) -> str:
    """
    >>> _cost(50, {"planned_steps": 250}), _cost(90, {"planned_steps": 2000, "planned_is_assumed": True}), _cost(0, {})
    ('50 steps, 20 % of the 250 that are planned', '90 steps; the length of the run is open', '0 steps')
    """
    words, planned = f"{number(steps)} steps", evidence.get("planned_steps")
    if not planned:
        return words
    if evidence.get("planned_is_assumed"):
        return f"{words}; the length of the run is open"
    return f"{words}, {100 * steps / planned:.2g} % of the {number(planned)} that are planned"


def _drawn(race: Mapping[str, Any], value: float, width: int) -> list[str]:
    """The held-out loss behind each probe; those that were lost or ended far higher are drawn at the top."""
    before = race["before"]
    if before is None and not any(score is not None for score in race["scores"]):
        return ["(no probe had a finite held-out loss)"]
    top = ceiling(before, race["scores"])
    scores = np.array([top if score is None else min(score, top) for score in race["scores"]], dtype=float)
    heading = f"held-out loss after {number(race['steps'])} steps, by learning rate"
    heading += "" if before is None else f" (before: {number(before)})"
    rates = np.array(race["rates"], dtype=float)
    lines = chart(rates, scores, width=width, unicode=knows_unicode(), logarithmic_x=True, mark=value)
    cut = sum(score is None or score > top for score in race["scores"])
    note = [f"drawn at the top: {cut} that ended higher or were lost"] if cut else []
    return [*textwrap.wrap(heading, width), *lines, *note]
