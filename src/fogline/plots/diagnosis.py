"""A diagnosis as one self-contained HTML file: the answer, a card for each cause, what was tried."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from fogline.plots import CAPTIONS
from fogline.plots.cards import finding_card
from fogline.plots.report import captioned, looks_of, table, write_page
from fogline.plots.trials import trials_figure

if TYPE_CHECKING:
    from fogline.doctor.report import Report

_TONES = {"healthy": "good", "faulty": "bad"}


def tried_figure(report: Report, *, dark: bool = False) -> go.Figure:
    """The trials of a diagnosis, those that were accepted first, then those that were not."""
    found: list[dict[str, Any]] = [finding.to_dict() for finding in report.findings]
    found += [
        {"cause": f"{item.cause} (no)", "trial": item.trial.to_dict()}
        for item in report.rejected
        if item.trial is not None
    ]
    return trials_figure(found, dark=dark)


def write_diagnosis(report: Report, path: str | Path, *, title: str = "Why does it not learn?") -> Path:
    """Write a diagnosis as a page that loads nothing; its folder is made if need be. Returns the path."""
    headline, *lines = report.headline.splitlines()
    tone = _TONES.get(report.verdict, "warn")
    parts = [f'<div class="verdict {tone}" role="note"><p>{escape(headline)}</p></div>']
    parts += [f"<p>{escape(line)}</p>" for line in lines]
    cards = "".join(finding_card(finding.to_dict(), level=3) for finding in report.findings)
    parts.append(f'<h2>Causes</h2><div class="findings">{cards}</div>' if cards else "")
    tried = any(finding.trial for finding in report.findings) or any(item.trial for item in report.rejected)
    figures = [looks_of("figure-0", tried_figure(report), tried_figure(report, dark=True))] if tried else []
    if tried:
        parts.append(f'<h2>What was tried</h2><div class="figures">{captioned("figure-0", CAPTIONS["trials"])}</div>')
    if report.rejected:
        rows = [[item.cause, item.why] for item in report.rejected]
        parts.append(table("Tried without help, or without need", ["cause", "why not"], rows))
    parts += [f'<p class="faint">{escape(note)}</p>' for note in (*report.notes, report.cost)]
    return write_page(path, title, "\n".join(parts), figures)
