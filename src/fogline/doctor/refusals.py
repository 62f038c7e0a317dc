"""What a refused step was refused for, as a finding: its replay has named it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fogline.doctor.finding import Evidence, Finding, Remedy, Severity
from fogline.doctor.naming import HUGE, LOGARITHMS

if TYPE_CHECKING:
    from fogline.run import Run


def refused(run: Run) -> Iterator[Finding]:
    """What the first refused step was refused for; the replay has named it."""
    refusals = [row for row in run.events if row["kind"] == "refused"]
    if not refusals:
        return
    first = json.loads(refusals[0]["data"])
    share = run.info.get("refused", len(refusals)) / max(1, run.info.get("steps") or len(run.steps))
    severity: Severity = "fatal" if share > 0.5 else "serious" if share > 0.01 else "minor"
    yield refusal_finding(first, severity, len(refusals))


def refusal_finding(found: dict[str, Any], severity: Severity, count: int) -> Finding:
    """The finding behind a step that was refused.

    Args:
        found: what the replay said, see :func:`fogline.descent.replay.explain_refusal`.
        count: how many steps were.
    """
    step, operation = found["step"], found.get("operation") or {}
    layer = operation.get("module") or found.get("module")
    rows = ", ".join(map(str, found["rows"][:10]))
    seen = [Evidence("steps refused", count, 0, step)]
    if rows:
        seen.append(Evidence("rows", rows, "", step))
    if operation:
        seen.append(Evidence("first operation that is not finite", operation["name"], "", step, layer))
        seen += [Evidence("values that went in", _range(r), "finite", step, layer) for r in operation["values"][:3]]
    if found["where"] == "data":
        return Finding(
            "nan_in_data", severity, 0.97, tuple(seen),
            "These rows hold NaN or infinity, and every batch with one of them is lost.",
            remedy=Remedy("drop the rows", "keep = torch.isfinite(X).flatten(1).all(1)\nX, y = X[keep], y[keep]"),
        )  # fmt: skip
    whole = (
        found["where"] == "gradient" and layer is None and not operation
    )  # each gradient is finite, their norm is not
    if whole or any(_overflows(r) for r in operation.get("values", [])):
        return Finding(
            "lr_too_high",
            severity,
            0.7,
            tuple(seen),
            "Numbers grew from step to step until they left the range of their type: the loss had run away before.",
            remedy=Remedy("a lower learning rate", "lr a tenth of what it was"),
        )
    if operation.get("name") in LOGARITHMS and any(_reaches_zero(r) for r in operation["values"][:1]):
        return Finding(
            "log_of_zero", severity, 0.95, tuple(seen),
            f"A logarithm is taken of zero or less{f' in {layer!r}' if layer else ''}: minus infinity or NaN.",
            remedy=Remedy(
                "take the logarithm where it is safe",
                "log_softmax(x) instead of log(softmax(x)); BCEWithLogitsLoss instead of log(sigmoid(x)); or clamp_min",
            ),
        )  # fmt: skip
    return Finding(
        "nan_source", severity, 0.9 if operation else 0.75, tuple(seen),
        f"{found['message'][:1].upper()}{found['message'][1:]}.",
        advice="mend the operation that is named here, or keep the values that go into it within its range",
    )  # fmt: skip


def _range(values: dict[str, Any]) -> str:
    bad = f", {values['not_finite']:.3g} of it not finite" if values["not_finite"] else ""
    return f"{values['low']:.4g} to {values['high']:.4g}{bad}"


def _overflows(values: dict[str, Any]) -> bool:
    return bool(values["largest"] > HUGE)


def _reaches_zero(values: dict[str, Any]) -> bool:
    return bool(values["low"] <= 0)
