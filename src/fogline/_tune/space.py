"""What a search may choose: for a field of the recipe, or an argument of the function that makes the task.

A list names the choices, :func:`log` and :func:`between` a range, and ``"auto"`` as the learning rate the
neighbourhood of the measured one::

    {"lr": "auto", "batch_size": [32, 64], "weight_decay": fogline.log(1e-6, 1e-2), "width": fogline.between(8, 64)}
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fogline.errors import did_you_mean
from fogline.recipe import Recipe
from fogline.task import Task

FIELDS = (
    "optimizer", "lr", "batch_size", "schedule", "warmup", "weight_decay", "options", "lr_scale", "clip", "accumulate",
    "ema", "shuffle", "precision",
)  # fmt: skip
"""Fields of the recipe that a search may choose. The others change what is compared, or nothing."""
RATE = "lr / measured"
"""How the learning rate is searched: as a multiple of the one that is measured for the choices around it."""
WIDEST = 30.0
"""A learning rate is searched at most so many times below and above the measured one."""
_MOST_CHOICES = 64
_CALL = re.compile(r"(log|between)\(\s*([^,()]+)\s*,\s*([^,()]+)\s*\)")


@dataclass(frozen=True)
class Span:
    """Numbers from ``low`` to ``high``, both included; made by :func:`log` and :func:`between`."""

    low: float
    high: float
    logarithmic: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant: both ends are."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float:
        """The number that lies this share of the way from the low end to the high one.

        >>> Span(1e-4, 1e-2, logarithmic=True).at(0.5), Span(8, 64).at(0.25)
        (0.001, 22)
        """
        if self.logarithmic:
            value = math.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
            value = float(f"{value:.15g}")
        else:
            value = (1 - share) * self.low + share * self.high
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{'log' if self.logarithmic else 'between'}({self.low:g}, {self.high:g})"


Dimension = Span | tuple[Any, ...]


def log(low: float, high: float) -> Span:
    """A range whose factors count: as much is searched between 1e-4 and 1e-3 as between 1e-3 and 1e-2.

    Args:
        low, high: both above 0, both included; two whole numbers give whole numbers.

    Raises:
        ValueError, TypeError: they are no such numbers.

    >>> log(1e-4, 1e-2).at(0.5)
    0.001
    """
    _check_ends("log", low, high)
    if not low > 0:
        raise ValueError(f"log: expected a low end above 0, received {low!r}; between(...) may begin at 0")
    return Span(low, high, logarithmic=True)


def between(low: float, high: float) -> Span:
    """A range whose differences count.

    Args:
        low, high: both included; two whole numbers give whole numbers.

    Raises:
        ValueError, TypeError: they are no such numbers.

    >>> between(8, 64).whole, between(0, 0.2).whole
    (True, False)
    """
    _check_ends("between", low, high)
    return Span(low, high)


def _check_ends(name: str, low: object, high: object) -> None:
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise TypeError(f"{name}: expected two numbers, received {low!r} and {high!r}")
        if not math.isfinite(end):
            raise ValueError(f"{name}: expected finite numbers, received {low!r} and {high!r}")
    if not low < high:  # type: ignore[operator]
        raise ValueError(f"{name}: expected the low end before the high one, received {low!r} and {high!r}")


@dataclass(frozen=True)
class Space:
    """A space that was read.

    Attributes:
        dimensions: by name, in the order they were given; the learning rate is among them as it was given.
        arguments: the names that are arguments of the task's function.
    """

    dimensions: Mapping[str, Dimension | str]
    arguments: tuple[str, ...]

    def split(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Chosen values as fields of the recipe and arguments of the task's function."""
        ours = {name: value for name, value in values.items() if name not in self.arguments}
        return ours, {name: value for name, value in values.items() if name in self.arguments}

    def to_dict(self) -> dict[str, str]:
        """The space in words, the same for the same space."""
        return {
            name: "[" + ", ".join(str(label(choice)) for choice in each) + "]" if isinstance(each, tuple) else str(each)
            for name, each in self.dimensions.items()
        }


def read_space(space: Mapping[str, Any], recipe: Recipe, factory: Callable[..., Task] | None) -> Space:
    """Check a space against the recipe and the arguments of the task's function.

    Args:
        space: as the user wrote it.
        recipe: what is not searched.
        factory: the function that makes the task; None where a task was given.

    Raises:
        ValueError, TypeError: a name or a value does not fit: says what was expected, what came and what to do.
    """
    if not isinstance(space, Mapping):
        raise TypeError(f'space: expected a mapping of names to what may be chosen, or "auto", received {space!r}')
    if not space:
        raise ValueError('space: expected at least one name, received none; "auto" searches what usually matters')
    takes = arguments_of(factory)
    arguments = tuple(name for name in space if name in takes)
    for name in space:
        _check_name(name, takes, factory)
    read = {name: _read(name, given) for name, given in space.items()}
    for name, dimension in read.items():
        if name not in arguments:
            _check_fits(name, dimension, recipe)
    return Space(read, arguments)


def arguments_of(factory: Callable[..., Task] | None) -> tuple[str, ...]:
    """The names of a task function's arguments."""
    return () if factory is None else tuple(inspect.signature(factory).parameters)


def _check_name(name: object, takes: Sequence[str], factory: Callable[..., Task] | None) -> None:
    if name in takes or name in FIELDS:
        if name in takes and name in FIELDS:
            raise ValueError(
                f"space: {name!r} is a field of the recipe and an argument of the task's function; rename the argument"
            )
        return
    if name in {item.name for item in fields(Recipe)}:
        raise ValueError(
            f"space: {name!r} is not searched, because trials that differ in it cannot be compared by their held-out "
            f"loss or do not differ in it; fix it in the recipe: Recipe({name}=...)"
        )
    where = " or an argument of the task's function" if factory is not None else ""
    hint = "" if factory is not None else " (arguments of the model: give a function that makes the task)"
    raise ValueError(
        f"space: expected a field of the recipe{where}, received {name!r}: "
        f"{did_you_mean(name, (*FIELDS, *takes))}{hint}"
    )


def _read(name: str, given: Any) -> Dimension | str:
    if name == "lr" and given == "auto":
        return "auto"
    if isinstance(given, Span):
        return given
    if isinstance(given, str) or not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise TypeError(
            f"space: expected a list of choices, fogline.log(low, high) or fogline.between(low, high) for {name!r}, "
            f"received {given!r}; what is not searched belongs in the recipe"
        )
    choices = tuple(given)
    if name == "lr":
        raise TypeError(
            f"space: expected fogline.log(low, high) or 'auto' for 'lr', received the list {list(choices)!r}; it is "
            "searched from the measured rate on"
        )
    if not 2 <= len(choices) <= _MOST_CHOICES:
        raise ValueError(f"space: expected 2 to {_MOST_CHOICES} choices for {name!r}, received {len(choices)}")
    if len(set(map(label, choices))) < len(choices):
        raise ValueError(f"space: expected choices of {name!r} that differ, received {list(choices)!r}")
    return choices


def _check_fits(name: str, dimension: Dimension | str, recipe: Recipe) -> None:
    """Every choice, or both ends, must be values that the recipe takes."""
    tried = dimension if isinstance(dimension, tuple) else ()
    if isinstance(dimension, Span):
        tried = (dimension.low, dimension.high)
    for value in tried:
        try:
            recipe.replace(**{name: value})
        except (ValueError, TypeError) as error:
            raise type(error)(f"space, {name!r}: {error}") from None


def label(choice: Any) -> Any:
    """A choice as it is stored: plain values as they are, everything else by its name or in words."""
    if choice is None or isinstance(choice, bool | int | float | str):
        return choice
    return getattr(choice, "__name__", None) or json.dumps(choice, default=repr, sort_keys=True)


def default_space(recipe: Recipe, batch_size: int | None, decay: float | None) -> dict[str, Any]:
    """What usually matters: the rate, the batch size, the decay, and the optimizer where the recipe leaves it open.

    Args:
        recipe: as it was asked for; what it says is kept.
        batch_size: the usual one for the data; None where it is not to be chosen.
        decay: the optimizer's own; None where it has none.

    >>> default_space(Recipe(lr=0.1, optimizer="adamw"), 64, 0.01)
    {'batch_size': [32, 64, 128], 'weight_decay': Span(low=0.0001, high=1.0, logarithmic=True)}
    """
    space: dict[str, Any] = {"lr": "auto"} if recipe.lr == "auto" else {}
    if recipe.optimizer == "auto":
        space["optimizer"] = ["adamw", "momentum"]
    if recipe.batch_size == "auto" and batch_size is not None:
        space["batch_size"] = sorted({max(1, batch_size // 2), batch_size, batch_size * 2})
    if recipe.weight_decay is None and decay is not None:
        space["weight_decay"] = log(1e-4, 1.0) if recipe.optimizer != "auto" and decay > 0 else log(1e-6, 1e-1)
    return space


def parse_dimension(text: str) -> tuple[str, Any]:
    """A dimension as it is written on the command line: ``NAME=log(LOW,HIGH)``, ``between(...)``, ``[A,B]``, ``auto``.

    Raises:
        ValueError: it is none of these.

    >>> parse_dimension("weight_decay=log(1e-6, 1e-2)")
    ('weight_decay', Span(low=1e-06, high=0.01, logarithmic=True))
    >>> parse_dimension("optimizer=[adamw, momentum]"), parse_dimension("batch_size=[32,64]")
    (('optimizer', ['adamw', 'momentum']), ('batch_size', [32, 64]))
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if equals and name.isidentifier():
        if value == "auto":
            return name, value
        call = _CALL.fullmatch(value)
        if call is not None:
            ends = [_plain(call[2]), _plain(call[3])]
            return name, (log if call[1] == "log" else between)(*ends)
        if value.startswith("[") and value.endswith("]"):
            return name, [_plain(part) for part in value[1:-1].split(",") if part.strip()]
    raise ValueError(
        f"expected NAME=log(LOW,HIGH), NAME=between(LOW,HIGH), NAME=[A,B,...] or lr=auto, received {text!r}"
    )


def _plain(text: str) -> Any:
    words = text.strip().strip("\"'")
    if words in ("null", "None", "none"):
        return None
    if words.lower() in ("true", "false"):
        return words.lower() == "true"
    for convert in (int, float):
        try:
            return convert(words)
        except ValueError:
            continue
    return words
