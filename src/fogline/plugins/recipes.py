"""The recipe that an optimizer and a trainer's settings amount to, for measuring its learning rate."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fogline.descent.optimizers import OPTIMIZERS
from fogline.plugins.following import unwrapped
from fogline.recipe import Recipe

_NOT_OPTIONS = (
    "params", "names", "param_names", "lr", "initial_lr", "lr_scale", "weight_decay", "foreach", "fused", "capturable",
    "differentiable", "maximize", "decoupled_weight_decay",
)  # fmt: skip
_STANDS_STILL = 1e-9


def recipe_of(optimizer: Any, model: nn.Module, **fields: Any) -> Recipe:
    """The recipe of an optimizer that was made for a model.

    The first group stands for the options of all. What its rates are to each other is kept as ``lr_scale``, a factor
    for every parameter whose group has another rate than the first.

    Args:
        optimizer: of the trainer; what is wrapped around it is looked through.
        model: whose parameters it holds.
        fields: more fields of the recipe, which go before.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> import torch
    >>> slow, fast = model[0].parameters(), model[1].parameters()
    >>> optimizer = torch.optim.SGD([{"params": slow}, {"params": fast, "lr": 0.5}], lr=0.1, momentum=0.9)
    >>> recipe = recipe_of(optimizer, model)
    >>> recipe.optimizer, dict(recipe.options), dict(recipe.lr_scale)
    ('momentum', {}, {'1.weight': 5.0, '1.bias': 5.0})
    """
    optimizer = unwrapped(optimizer)
    group = optimizer.param_groups[0]
    decays = [g["weight_decay"] for g in optimizer.param_groups if isinstance(g.get("weight_decay"), int | float)]
    found: dict[str, Any] = {
        "optimizer": _name(optimizer),
        "options": _options(optimizer, group),
        "lr_scale": _ratios(optimizer, model),
        "weight_decay": max(decays, default=None),
    }
    return Recipe().replace(**found | fields)


def _name(optimizer: Optimizer) -> str | type[Optimizer]:
    kind, group = type(optimizer), optimizer.param_groups[0]
    if kind is OPTIMIZERS["sgd"].cls:
        momentum = group.get("momentum", 0)
        return "sgd" if not momentum else "nesterov" if group.get("nesterov") else "momentum"
    name = kind.__name__.lower()
    return name if name in OPTIMIZERS and OPTIMIZERS[name].cls is kind else kind


def _options(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """The options that are not those that a recipe's name stands for."""
    name = _name(optimizer)
    usual = dict(optimizer.defaults) if not isinstance(name, str) else _usual(name)
    found = {key: value for key, value in group.items() if key not in _NOT_OPTIONS and not isinstance(value, Tensor)}
    return {key: value for key, value in found.items() if value is not None and usual.get(key) != value}


def _usual(name: str) -> dict[str, Any]:
    spec = OPTIMIZERS[name]
    made = spec.cls([nn.Parameter(Tensor(1))], lr=spec.lr, **spec.defaults)  # type: ignore[call-arg]
    return dict(made.defaults)


def _ratios(optimizer: Optimizer, model: nn.Module) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    first = _rate(optimizer.param_groups[0])
    if not first:
        return {}
    found: dict[str, float] = {}
    for group in optimizer.param_groups:
        ratio = _rate(group) / first
        if ratio != 1:
            found |= {names[id(p)]: max(ratio, _STANDS_STILL) for p in group["params"] if id(p) in names}
    return found


def _rate(group: dict[str, Any]) -> float:
    """The rate at the top of the schedule: a scheduler keeps it beside the one of the moment."""
    return float(group.get("initial_lr", group["lr"]))
