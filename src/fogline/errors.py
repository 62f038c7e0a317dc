"""The words of an error: what was expected, what came, and the nearest name to what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A half-sentence that names the nearest known word, or lists all of them.

    >>> did_you_mean("adamm", ["adamw", "sgd"])
    "did you mean 'adamw'?"
    >>> did_you_mean("zzz", ["adam", "sgd"])
    "choose one of 'adam', 'sgd'"
    """
    names = list(known)
    near = get_close_matches(str(word).lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    for name in names:
        if near and name.lower() == near[0]:
            return f"did you mean {name!r}?"
    return "choose one of " + ", ".join(repr(name) for name in names)


def unknown(what: str, word: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not one of the known ones.

    >>> unknown("optimizer", "adamm", ["adamw", "sgd"])
    ValueError("unknown optimizer 'adamm': did you mean 'adamw'?")
    """
    return ValueError(f"unknown {what} {word!r}: {did_you_mean(word, known)}")
