"""Findings as cards: what is wrong, how sure that is, why, what was seen, what to do, and what a re-run proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fogline.words import number

SEVERITIES = ("fatal", "serious", "minor")
_UNTRIED = "Not tried: it is said from what was seen alone."


def finding_card(found: Mapping[str, Any], *, step: int | None = None, level: int = 4) -> str:
    """One finding as HTML.

    Args:
        found: as :meth:`fogline.doctor.finding.Finding.to_dict` gives it, and the table ``findings`` keeps it.
        step: at which it was seen, of a run.
        level: of the heading.
    """
    severity = found["severity"] if found["severity"] in SEVERITIES else "minor"
    sure = float(found["confidence"])
    at = "" if step is None else f" · step {number(step)}"
    head = (
        f'<h{level}>{escape(str(found["cause"]))}</h{level}><p class="faint"><span class="badge">{severity}</span> '
        f'<meter min="0" max="1" value="{sure:.2f}" aria-hidden="true"></meter> {sure:.0%} sure{at}</p>'
    )
    parts = [head, f"<p>{escape(str(found.get('explanation', '')))}</p>"]
    parts += [_evidence(found.get("evidence") or []), _remedy(found), _proof(found.get("trial"))]
    return f'<article class="finding {severity}">{"".join(parts)}</article>'


def _evidence(items: Sequence[Mapping[str, Any]]) -> str:
    if not items:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(_where(item))}</th><td>{escape(_value(item.get("value")))}</td>'
        f"<td>{escape(_value(item.get('expected', '')))}</td></tr>"
        for item in items
    )
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Evidence"><table><thead><tr>'
        '<th scope="col">seen</th><th scope="col">value</th><th scope="col">expected</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _where(item: Mapping[str, Any]) -> str:
    place = f" of {item['layer']}" if item.get("layer") else ""
    when = f" at step {item['step']}" if item.get("step") is not None else ""
    return f"{item['signal']}{place}{when}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def _remedy(found: Mapping[str, Any]) -> str:
    remedy, parts = found.get("remedy") or {}, []
    if remedy:
        parts.append(f"<p><strong>Remedy:</strong> {escape(str(remedy['title']))}</p>")
        if patch := remedy.get("patch"):
            parts.append(f'<pre tabindex="0"><code>{escape(str(patch))}</code></pre>')
    if advice := found.get("advice"):
        parts.append(f"<p><strong>To do:</strong> {escape(str(advice))}</p>")
    return "".join(parts)


def _proof(trial: Mapping[str, Any] | None) -> str:
    """What the controlled re-run showed, seed by seed."""
    if not trial:
        return f'<p class="faint">{_UNTRIED}</p>'
    low, high = trial["interval"]
    without, with_it = (sum(trial[name]) / len(trial[name]) for name in ("without", "with_it"))
    count = len(trial["seeds"])
    seeds = f"{count} seed{'s' if count != 1 else ''} of {number(trial['steps'])} steps"
    sentence = (
        f"{trial['metric']} {number(without)} as it is, {number(with_it)} with the remedy: effect "
        f"{trial['effect']:+.2g} (between {low:+.2g} and {high:+.2g}) over {seeds}."
    )
    heading = "Proof" if trial.get("accepted") else "Tried, without gain"
    return f"<p><strong>{heading}:</strong> {escape(sentence)}</p>"
