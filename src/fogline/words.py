"""Numbers, dates and names the way people read them, the same in the terminal and in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any


def number(value: Any) -> str:
    """Four digits; whole numbers in full; what was not recorded or not finite by its name.

    >>> number(0.123456), number(1234567), number(None), number(float("inf"))
    ('0.1235', '1,234,567', 'nan', 'inf')
    """
    if value is None:
        return "nan"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else str(float(value))


def plain(value: Any, most: int = 400, deep: int = 8) -> str:
    """A value of a ``run.json`` in words, whatever it holds.

    Args:
        value: as JSON gave it.
        most: characters; what is longer ends in "…".
        deep: levels of lists and mappings in each other that are told.

    >>> plain({"rates": [0.1, 0.25], "noisy": True}), plain(None), plain("a long text", 7)
    ('rates 0.1, 0.25, noisy yes', 'none', 'a long…')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, str):
        words = value
    elif deep == 0:
        words = "…"
    elif isinstance(value, Mapping):
        words = ", ".join(f"{name} {plain(inner, most, deep - 1)}" for name, inner in value.items())
    elif isinstance(value, Sequence):
        words = ", ".join(plain(inner, most, deep - 1) for inner in value)
    else:
        words = str(value)
    return (words if len(words) <= most else words[: most - 1] + "…") or "none"


def scores_text(scores: Mapping[str, float | None]) -> str:
    """Scores on one line, with the step of the weights they belong to at the end.

    >>> scores_text({"loss": 0.25, "accuracy": 0.9, "step": 120})
    'loss 0.25, accuracy 0.9 (step 120)'
    """
    words = ", ".join(f"{name} {number(value)}" for name, value in scores.items() if name != "step")
    return f"{words} (step {scores['step']})" if "step" in scores else words


def verdict_name(verdict: Mapping[str, Any] | None) -> str:
    """The first words of the verdict in a ``run.json``; a run without one is still training.

    >>> verdict_name({"message": "Noise floor: steps of this length only jitter."}), verdict_name(None)
    ('noise floor', 'training')
    """
    return "training" if not verdict else str(verdict["message"]).split(":")[0].lower()


def verdict_sentence(verdict: Mapping[str, Any] | None) -> str:
    """The verdict's own sentence."""
    return "Training: no verdict yet." if not verdict else str(verdict["message"])


def verdict_tone(verdict: Mapping[str, Any] | None) -> str:
    """Whether a verdict is "good", "bad" or neither, "warn"; "" where there is none.

    >>> verdict_tone({"name": "CONVERGED"}), verdict_tone({"name": "STALLED"}), verdict_tone(None)
    ('good', 'warn', '')
    """
    tones = {"CONVERGED": "good", "NOISE_FLOOR": "good", "DIVERGED": "bad", "NONFINITE": "bad"}
    return tones.get(str(verdict.get("name")), "warn") if verdict else ""


def moment(when: Any) -> str:
    """A date and a time to the second in local time, from ISO text or from seconds since 1970.

    >>> moment("2026-11-22T10:00:00.123"), moment(None)
    ('2026-11-22 10:00:00', '')
    """
    if isinstance(when, int | float):
        return f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M:%S}"
    if not when:
        return ""
    parsed = datetime.fromisoformat(str(when))
    return f"{parsed.astimezone() if parsed.tzinfo else parsed:%Y-%m-%d %H:%M:%S}"


def span(seconds: Any) -> str:
    """A length of time with a fitting unit.

    >>> span(0.5), span(75), span(7300)
    ('0.50 s', '1 min 15 s', '2 h 1 min')
    """
    if not isinstance(seconds, int | float):
        return ""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
