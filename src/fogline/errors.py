"""The words of an error: what was expected, what came, what to do, and the nearest name to what was meant."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class LostError(RuntimeError):
    """The processes of a run have lost each other; the text says which is late and what it does, if that is known."""


def misfit(
    expected: str, received: object, remedy: str, where: str = "", error: type[Exception] = ValueError
) -> Exception:
    """The error for what does not fit: what was expected, what came, what to do.

    >>> misfit("labels from 0 to 2", "labels -1, 1", "map them", where="valid")
    ValueError('valid: expected labels from 0 to 2, received labels -1, 1; map them')
    """
    place = f"{where}: " if where else ""
    return error(f"{place}expected {expected}, received {received}; {remedy}")


def some(items: Sequence[Any], most: int = 5) -> str:
    """The first few, and how many more there are.

    >>> some([1, 2, 3], most=2)
    '1, 2 and 1 more'
    """
    shown = ", ".join(map(str, items[:most]))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


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


def needed(module: str, extra: str, package: str | None = None, instead: str = "") -> Any:
    """Import a module of an optional package.

    Args:
        module: its name.
        extra: of this library, that brings the package.
        package: its name for pip, by default the extra's.
        instead: what does without it.

    Raises:
        ModuleNotFoundError: it is not installed; names the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, and something of its own is missing
        raise ModuleNotFoundError(
            f"expected the package {package or extra!r}, which is not installed; do: pip install 'fogline[{extra}]'"
            + (f", or {instead}" if instead else ""),
            name=error.name,
        ) from error
