"""What is wrong with a run: a line of time with its marks, and a card for each finding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fogline.dashboard.markup import plain, verdict_words
from fogline.dashboard.runs import Summary, mapping
from fogline.dashboard.thinned import View
from fogline.words import number

_MARKS = 120
_QUIET = ("note",)


def timeline(view: View, summary: Summary) -> str:
    """The steps from left to right, with findings, events and the verdict where they happened.

    Places are percentages, so it fits any width; the same is in words on the cards and in the table of events.
    """
    last = max(summary.steps or 0, 1)
    findings = list(view.findings)
    events = [row for row in view.events if row["kind"] not in ("finding", *_QUIET)][-_MARKS:]
    if not findings and not events and summary.verdict is None:
        return ""
    marks = [_mark(row, last, "event", 34, f"{row['kind']}: {row['message']}") for row in events]
    marks += [_mark(row, last, f"finding {_severity(row)}", 16, str(row["cause"])) for row in findings]
    if summary.verdict is not None:
        words = verdict_words(summary.verdict)
        marks.append(
            f'<g class="verdict {summary.state}"><title>{escape(words)}</title><rect x="98%" y="6" width="8" height="38" rx="2"/></g>'
        )
    names = (("finding", "finding"), ("event", "event"), ("verdict", "verdict"))
    legend = "".join(f'<span class="key {kind}">{words}</span>' for kind, words in names)
    return (
        f'<svg class="timeline" role="img" aria-label="{len(findings)} findings and {len(events)} events over {number(last)} steps">'
        f'<line x1="2%" x2="98%" y1="25" y2="25"/>{"".join(marks)}</svg>'
        f'<p class="ends"><span>step 0</span><span class="legend">{legend}</span><span>{number(last)}</span></p>'
    )


def _mark(row: Mapping[str, Any], last: int, kind: str, height: int, words: str) -> str:
    step = row["step"] if isinstance(row["step"], int) else 0
    place = 2 + 94 * min(1.0, max(0.0, step / last))
    title = escape(plain(f"step {number(step)}: {words}", 200))
    return f'<g class="{kind}"><title>{title}</title><circle cx="{place:.2f}%" cy="{height}" r="6"/></g>'


def _severity(row: Mapping[str, Any]) -> str:
    return row["severity"] if row["severity"] in ("fatal", "serious", "minor") else "minor"


def cards(view: View) -> str:
    """A card for each finding: cause, how sure, what happens, what was measured, what to do, and the proof."""
    return "".join(_card(row) for row in view.findings)


def _card(row: Mapping[str, Any]) -> str:
    found = _parsed(row["data"])
    severity = _severity(row)
    sure = f"{float(row['confidence']):.0%} sure" if row["confidence"] == row["confidence"] else ""
    head = (
        f'<header><h3>{escape(str(row["cause"]))}</h3><span class="badge {severity}">{severity}</span>'
        f'<span class="faint">{sure}</span><span class="faint">step {plain(row["step"])}</span></header>'
    )
    parts = [
        head,
        f"<p>{escape(str(found.get('explanation', '')))}</p>",
        _evidence(found),
        _remedy(found),
        _proof(found),
    ]
    return f'<article class="finding {severity}">{"".join(parts)}</article>'


def _parsed(text: Any) -> dict[str, Any]:
    try:
        return mapping(json.loads(text))
    except (TypeError, ValueError):
        return {}


def _evidence(found: Mapping[str, Any]) -> str:
    items = found.get("evidence")
    words = [_measured(item) for item in items if isinstance(item, dict)] if isinstance(items, Sequence) else []
    return f"<h4>What was seen</h4><ul>{''.join(words)}</ul>" if words else ""


def _measured(item: Mapping[str, Any]) -> str:
    place = f" of {plain(item['layer'])}" if item.get("layer") else ""
    when = f" at step {plain(item['step'])}" if item.get("step") is not None else ""
    wanted = f", expected {plain(item['expected'])}" if item.get("expected") not in (None, "") else ""
    text = f"{plain(item.get('signal'))}{place}{when}: "
    return f"<li>{escape(text)}<strong>{escape(plain(item.get('value')))}</strong>{escape(wanted)}</li>"


def _remedy(found: Mapping[str, Any]) -> str:
    remedy, advice = mapping(found.get("remedy")), found.get("advice")
    words = f"<p>{escape(str(remedy.get('title') or advice or ''))}</p>"
    patch = f"<pre><code>{escape(str(remedy['patch']))}</code></pre>" if remedy.get("patch") else ""
    return f"<h4>What to do</h4>{words}{patch}" if remedy or advice else ""


def _proof(found: Mapping[str, Any]) -> str:
    """The controlled re-run that showed that the remedy helps, or how to have one made."""
    trial = mapping(found.get("trial"))
    if not trial:
        return '<p class="faint proof">Seen while it ran, not tried. <code>fogline doctor</code> tries the remedy against a control.</p>'
    interval = trial.get("interval")
    between = (
        f" ({plain(interval[0])} to {plain(interval[1])})" if isinstance(interval, list) and len(interval) == 2 else ""
    )
    seeds = trial.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else 0
    helped = (
        "helped beyond the noise of the seeds"
        if trial.get("accepted")
        else "did not help beyond the noise of the seeds"
    )
    words = f"{plain(trial.get('intervention'))} {helped}: {plain(trial.get('metric'))} changed by {plain(trial.get('effect'))}{between}"
    return f"<h4>Proof</h4><p>{escape(words)}, {count} seeds of {plain(trial.get('steps'))} steps.</p>"
