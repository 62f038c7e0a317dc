"""What is wrong with a run: a card for each finding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fogline.dashboard.markup import plain
from fogline.dashboard.runs import mapping
from fogline.dashboard.thinned import View

_UNTRIED = "Seen while it ran, not tried. <code>fogline doctor</code> tries the remedy against a control."


def cards(view: View) -> str:
    """A card for each finding: cause, how sure, what happens, what was measured, what to do, and the proof."""
    return "".join(_card(row) for row in view.findings)


def _severity(row: Mapping[str, Any]) -> str:
    return row["severity"] if row["severity"] in ("fatal", "serious", "minor") else "minor"


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
        return f'<p class="faint proof">{_UNTRIED}</p>'
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
    effect = f"{plain(trial.get('metric'))} changed by {plain(trial.get('effect'))}{between}"
    words = (
        f"{plain(trial.get('intervention'))} {helped}: {effect}, {count} seeds of {plain(trial.get('steps'))} steps."
    )
    return f"<h4>Proof</h4><p>{escape(words)}</p>"
