"""Findings as cards: what is wrong, how sure that is, why, what was seen, what to do, and what a re-run proved.

A run folder may come from anywhere: every text is escaped, and what a finding lacks or has in another form is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from fogline.explained import folded
from fogline.tables import rows_table
from fogline.words import number, plain

SEVERITIES = ("fatal", "serious", "minor")
_COLUMNS = ("cause", "severity", "confidence")
_SEEN = "Seen while it ran, not tried. <code>fogline doctor</code> tries the remedy against a control."
_SAID = "Not tried: it is said from what was seen alone."
_LONG = 20_000  # characters of a patch, and of what is said in sentences


def finding_cards(rows: Iterable[Mapping[str, Any]], *, level: int = 4) -> str:
    """The findings of a run as HTML, the gravest first; nothing where there are none.

    Args:
        rows: of the table ``findings``.
        level: of the headings.
    """
    found = sorted(((_whole(row), row.get("step")) for row in rows), key=lambda pair: _gravity(pair[0]))
    cards = "".join(finding_card(each, step=step, level=level) for each, step in found)
    return f'<div class="findings">{cards}</div>' if cards else ""


def finding_card(found: Mapping[str, Any], *, step: int | None = None, level: int = 4) -> str:
    """One finding as HTML.

    Args:
        found: as :meth:`fogline.doctor.finding.Finding.to_dict` gives it, and the table ``findings`` keeps it.
        step: at which it was seen, of a run; None of a diagnosis.
        level: of its heading; its parts have the next one.
    """
    severity = _severity(found)
    parts = [
        _head(found, severity, step, level),
        _paragraph(found.get("explanation")),
        _paragraph(_instead(found)),
        _part("Evidence", _evidence(found.get("evidence")), level),
        _part("What to do", _remedy(found), level),
        _proof(found, _SAID if step is None else _SEEN, level),
        folded(found.get("cause")),
    ]
    return f'<article class="finding {severity}">{"".join(parts)}</article>'


def _instead(found: Mapping[str, Any]) -> str:
    cause = found.get("instead_of")
    known = isinstance(cause, str) and cause
    return f"This is another reading of {cause}: nothing that was seen or tried tells the two apart." if known else ""


def _whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table as a finding: its JSON where that can be read, and its columns in any case."""
    try:
        found = json.loads(row.get("data") or "")
    except (TypeError, ValueError, RecursionError):
        found = {}
    kept = found if isinstance(found, dict) else {}
    return kept | {name: row[name] for name in _COLUMNS if name in row}


def _gravity(found: Mapping[str, Any]) -> tuple[int, float]:
    return SEVERITIES.index(_severity(found)), -(_finite(found.get("confidence")) or 0.0)


def _severity(found: Mapping[str, Any]) -> str:
    return next((name for name in SEVERITIES if name == found.get("severity")), "minor")


def _head(found: Mapping[str, Any], severity: str, step: int | None, level: int) -> str:
    sure = _finite(found.get("confidence"))
    known = sure is not None and 0 <= sure <= 1
    words = [f"{sure:.0%} sure" if known else "", "" if step is None else f"step {plain(step)}"]
    facts = "".join(f'<span class="faint">{escape(each)}</span>' for each in words if each)
    heading = f"<h{level}>{escape(plain(found.get('cause', 'unnamed')))}</h{level}>"
    return f'<header>{heading}<span class="badge {severity}">{severity}</span>{facts}</header>'


def _part(heading: str, inner: str, level: int) -> str:
    return f"<h{level + 1}>{heading}</h{level + 1}>{inner}" if inner else ""


def _paragraph(text: Any) -> str:
    return f"<p>{escape(plain(text, _LONG))}</p>" if text else ""


def _evidence(items: Any) -> str:
    seen = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    rows = [[_where(item), plain(item.get("value"), _LONG), _expected(item)] for item in seen]
    return rows_table("Evidence", ["seen", "value", "expected"], rows) if rows else ""


def _where(item: Mapping[str, Any]) -> str:
    place = f" of {plain(item['layer'])}" if item.get("layer") else ""
    when = f" at step {plain(item['step'])}" if item.get("step") is not None else ""
    return f"{plain(item.get('signal'))}{place}{when}"


def _expected(item: Mapping[str, Any]) -> str:
    wanted = item.get("expected")
    return "" if wanted in (None, "") else plain(wanted, _LONG)


def _remedy(found: Mapping[str, Any]) -> str:
    remedy = _inner(found, "remedy")
    patch = remedy.get("patch")
    code = f"<pre><code>{escape(plain(patch, _LONG))}</code></pre>" if patch else ""
    return _paragraph(remedy.get("title")) + code + _paragraph(found.get("advice"))


def _proof(found: Mapping[str, Any], untried: str, level: int) -> str:
    """What the controlled re-run showed over its seeds, or that there was none."""
    trial, remedied = _inner(found, "trial"), bool(_inner(found, "remedy"))
    if not trial:
        return f'<p class="faint untried">{untried}</p>'
    changed = "the remedy" if remedied else plain(trial.get("intervention", "what was tried"), _LONG)
    without, with_it = _mean(trial.get("without")), _mean(trial.get("with_it"))
    metric = plain(trial.get("metric", "score"))
    if without is not None and with_it is not None:
        metric += f" {number(without)} as it is, {number(with_it)} with {changed}"
    seeds = trial.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else 0
    words = (
        f"{metric}: effect {_signed(trial.get('effect'))}{_between(trial.get('interval'))} "
        f"over {count} seed{'' if count == 1 else 's'} of {plain(trial.get('steps'))} steps."
    )
    heading = "Proof" if trial.get("accepted") is True else "Tried, without gain" if remedied else "Tried"
    return _part(heading, _paragraph(words), level)


def _between(interval: Any) -> str:
    if not isinstance(interval, list) or len(interval) != 2:
        return ""
    return f" (between {_signed(interval[0])} and {_signed(interval[1])})"


def _signed(value: Any) -> str:
    change = _finite(value)
    return plain(value) if change is None else f"{change:+.2g}"


def _mean(values: Any) -> float | None:
    """The mean score of the seeds, where all of them have one."""
    scores = [_finite(value) for value in values] if isinstance(values, list) else []
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None


def _finite(value: Any) -> float | None:
    """The value where it is a finite number, else None; whole numbers that no float holds count as infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < sys.float_info.max else None


def _inner(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}
