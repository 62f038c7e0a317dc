"""Plants: what is changed in a healthy setting to make it faulty, or just different."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from faults.program import Habits, Plant, Setting

SETS = ("train", "valid", "test")
LEARNT = ("train", "valid")
Change = Callable[[Tensor], Tensor]


def both(*plants: Plant) -> Plant:
    """One plant after the other."""
    return lambda setting: reduce(lambda made, plant: plant(made), plants, setting)


def recipe(**changes: Any) -> Plant:
    """Other fields of the recipe."""
    return lambda s: s.but(recipe=s.recipe.replace(**changes))


def net(**changes: Any) -> Plant:
    """Other keywords of the model's builder."""
    return lambda s: s.but(model=partial(s.model, **changes))


def loss(function: Any, **changes: Any) -> Plant:
    """Another loss, and other keywords of the model's builder with it."""
    return both(lambda s: s.but(loss=function), net(**changes))


def metric(name: str, function: Callable[[Any, Any], Any]) -> Plant:
    """One metric, by its name."""
    return lambda s: s.but(metrics={name: function})


def habits(**changes: Any) -> Plant:
    """Train by a hand-written loop with these habits (see :class:`faults.program.Habits`)."""

    def plant(setting: Setting) -> Setting:
        had = setting.habits or Habits()
        return setting.but(habits=Habits(**{**vars(had), **changes}))

    return plant


# Data


def inputs(change: Change, sets: Sequence[str] = SETS) -> Plant:
    """Other inputs in some of the sets."""
    return lambda s: s.but(**{name: (change(getattr(s, name)[0]), getattr(s, name)[1]) for name in sets})


def targets(change: Change, sets: Sequence[str] = SETS) -> Plant:
    """Other targets in some of the sets."""
    return lambda s: s.but(**{name: (getattr(s, name)[0], change(getattr(s, name)[1])) for name in sets})


def raw_inputs(factor: float = 1.0, sets: Sequence[str] = SETS) -> Plant:
    """Inputs in the units they were measured in, times a factor."""
    return lambda s: inputs(lambda x: (x * s.units[1] + s.units[0]) * factor, sets)(s)


def raw_targets(factor: float = 1.0, sets: Sequence[str] = SETS) -> Plant:
    """Targets in the units they were measured in, times a factor."""
    return lambda s: targets(lambda y: (y * s.target_units[1] + s.target_units[0]) * factor, sets)(s)


def blurred(deviation: float) -> Plant:
    """Noise on all inputs, so that the classes overlap and nobody can do well."""

    def change(x: Tensor) -> Tensor:
        return x + deviation * torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))

    return inputs(change)


def rows(count: int) -> Plant:
    """Only the first rows of the training data."""
    return lambda s: s.but(train=(s.train[0][:count], s.train[1][:count]))


def wrong_labels(share: float, classes: int) -> Plant:
    """A share of the labels, of the held-out data too, replaced by other classes."""

    def change(y: Tensor) -> Tensor:
        source = torch.Generator().manual_seed(7)
        hit = torch.rand(len(y), generator=source) < share
        other = (y.long() + torch.randint(1, classes, y.shape, generator=source)) % classes
        return torch.where(hit.reshape(-1, *[1] * (y.ndim - 1)), other.to(y.dtype), y)

    return targets(change, LEARNT)


def misaligned(share: float) -> Plant:
    """The targets of a share of the training rows shuffled among each other."""

    def change(y: Tensor) -> Tensor:
        source = torch.Generator().manual_seed(8)
        chosen = torch.randperm(len(y), generator=source)[: round(share * len(y))]
        y = y.clone()
        y[chosen] = y[chosen[torch.randperm(len(chosen), generator=source)]]
        return y

    return targets(change, LEARNT)


def rare(label: int | Sequence[int], keep: int) -> Plant:
    """All but a few of the training rows of some classes are left out; the held-out data alike."""

    def kept(pair: tuple[Tensor, Tensor], most: int) -> tuple[Tensor, Tensor]:
        labels = pair[1].reshape(len(pair[1])).long()
        use = torch.ones(len(labels), dtype=torch.bool)
        for one in [label] if isinstance(label, int) else label:
            use[(labels == one).nonzero().flatten()[most:]] = False
        return pair[0][use], pair[1][use]

    return lambda s: s.but(train=kept(s.train, keep), valid=kept(s.valid, max(1, keep // 3)))


def in_order() -> Plant:
    """Rows sorted by target and taken in that order."""

    def plant(s: Setting) -> Setting:
        order = s.train[1].reshape(len(s.train[1]), -1)[:, 0].sort(stable=True).indices
        return s.but(train=(s.train[0][order], s.train[1][order]), recipe=s.recipe.replace(shuffle=False))

    return plant


def holes(share: float, *, column: int | None = None, sets: Sequence[str] = ("train",)) -> Plant:
    """A share of the rows (at least one) with NaN in a column, or in the targets where no column is given."""

    def change(values: Tensor) -> Tensor:
        values = values.clone()
        hit = torch.randperm(len(values), generator=torch.Generator().manual_seed(9))[
            : max(1, round(share * len(values)))
        ]
        if column is None:
            values[hit] = torch.nan
        else:
            flat = values.reshape(len(values), -1)
            flat[hit, column] = torch.nan
            values = flat.reshape(values.shape)
        return values

    return (targets if column is None else inputs)(change, sets)


def leak(share: float) -> Plant:
    """A share of the held-out rows are copies of training rows."""

    def plant(s: Setting) -> Setting:
        count = min(round(share * len(s.valid[0])), len(s.train[0]))
        mixed = [torch.cat([t[:count], v[count:]]) for t, v in zip(s.train, s.valid, strict=True)]
        return s.but(valid=(mixed[0], mixed[1]))

    return plant


def one_hot(classes: int) -> Plant:
    """Labels as rows of zeros with a one."""
    return targets(lambda y: nn.functional.one_hot(y, classes).float())


def column() -> Plant:
    """Targets of shape (rows, 1) as floating-point numbers."""
    return targets(lambda y: y.float().reshape(-1, 1))


def flat() -> Plant:
    """Targets of shape (rows,)."""
    return targets(lambda y: y.reshape(len(y)))


# First weights: functions that change a model in place, given to builders as ``init``.


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim >= 2]


def _biases(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if p.ndim == 1 and "bias" in name]


@torch.no_grad()
def _apply(change: Callable[[Tensor], Any], parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        change(parameter)


def normal(std: float) -> Callable[[nn.Module], None]:
    """Matrices from a normal distribution of this deviation."""
    return lambda model: _apply(lambda p: nn.init.normal_(p, std=std), _matrices(model))


def uniform(low: float, high: float) -> Callable[[nn.Module], None]:
    """Matrices from a uniform distribution."""
    return lambda model: _apply(lambda p: nn.init.uniform_(p, low, high), _matrices(model))


def scaled(factor: float, match: str = "") -> Callable[[nn.Module], None]:
    """Matrices times a factor; those whose name contains ``match``."""
    return lambda model: _apply(
        lambda p: p.mul_(factor), [p for name, p in model.named_parameters() if p.ndim >= 2 and match in name]
    )


def constant(value: float) -> Callable[[nn.Module], None]:
    """All matrices the same number, all biases zero."""

    def init(model: nn.Module) -> None:
        _apply(lambda p: nn.init.constant_(p, value), _matrices(model))
        _apply(lambda p: nn.init.zeros_(p), _biases(model))

    return init


def kaiming() -> Callable[[nn.Module], None]:
    """He's initialisation, biases zero."""

    def init(model: nn.Module) -> None:
        _apply(lambda p: nn.init.kaiming_normal_(p, nonlinearity="relu"), _matrices(model))
        _apply(lambda p: nn.init.zeros_(p), _biases(model))

    return init


def sunk(value: float) -> Callable[[nn.Module], None]:
    """Biases of all layers but the last at this value."""
    return lambda model: _apply(lambda p: nn.init.constant_(p, value), _biases(model)[:-1])


def frozen(model: nn.Module) -> None:
    """All parameters but those of the last layer kept as they are."""
    for parameter in list(model.parameters())[:-2]:
        parameter.requires_grad_(False)


def frozen_first(model: nn.Module) -> None:
    """The parameters of the first layer kept as they are."""
    for parameter in list(model.parameters())[:2]:
        parameter.requires_grad_(False)
