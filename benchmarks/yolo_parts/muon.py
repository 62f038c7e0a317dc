"""MuSGD of Ultralytics beside ours: how long a step takes, and how far apart the updates are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import timing


@dataclass(frozen=True)
class Muon:
    """Ultralytics' MuSGD and ours on the parameters of YOLO26n.

    Attributes:
        difference: largest of any element between the updates at a rate of 0.01, theirs computed in float32.
        as_shipped: the same with theirs in bfloat16, as it is.
        exact: the same as ``difference`` with ours in float32 throughout.
        largest: element of an update.
    """

    theirs: list[timing.Cost]
    ours: list[timing.Cost]
    exactly: list[timing.Cost]
    difference: float
    as_shipped: float
    exact: float
    largest: float


def _groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim in (2, 4)], "use_muon": True, "weight_decay": 5e-4},
        {"params": [p for p in parameters if p.ndim not in (2, 4)], "use_muon": False},
    ]


def _theirs(model: torch.nn.Module) -> torch.optim.Optimizer:
    from ultralytics.optim import MuSGD

    groups = [group | {"momentum": 0.9, "nesterov": True, "lr": 0.01} for group in _groups(model)]
    return MuSGD(groups, muon=0.2, sgd=1.0)


def _ours(model: torch.nn.Module, precision: str | None = None) -> torch.optim.Optimizer:
    from fogline.descent.own_optimizers import MuSGD

    return MuSGD(_groups(model), lr=0.01, momentum=0.9, muon=0.2, sgd=1.0, precision=precision)


def _gradients(models: Sequence[torch.nn.Module], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for same in zip(*(model.parameters() for model in models), strict=True):
        gradient = 0.01 * torch.randn(same[0].shape, generator=draws)
        for parameter in same:
            parameter.grad = gradient.clone()


def _apart(first: torch.nn.Module, make: Any, other: Any, steps: int = 3) -> tuple[float, float]:
    """The largest difference between two optimizers' updates of a few steps, and the largest update."""
    models = copy.deepcopy(first), copy.deepcopy(first)
    optimizers = make(models[0]), other(models[1])
    worst = largest = 0.0
    for step in range(steps):
        before = [[p.detach().clone() for p in model.parameters()] for model in models]
        _gradients(models, step)
        for optimizer in optimizers:
            optimizer.step()
        moved = [
            [p.detach() - q for p, q in zip(model.parameters(), old, strict=True)]
            for model, old in zip(models, before, strict=True)
        ]
        worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(*moved, strict=True)))
        largest = max(largest, *(float(a.abs().max()) for a in moved[0]))
    return worst, largest


def muon(rounds: int) -> Muon:
    """Both on the same gradients, timed in turn."""
    from ultralytics import YOLO

    first = YOLO("yolo26n.yaml").model.float()
    models = {name: copy.deepcopy(first) for name in ("theirs", "ours", "exactly")}
    made = {"theirs": _theirs, "ours": _ours, "exactly": lambda model: _ours(model, "float32")}
    _gradients(list(models.values()), 0)
    loops = {}
    for name, model in models.items():
        optimizer = made[name](model)

        def run(steps: int, optimizer: torch.optim.Optimizer = optimizer) -> int:
            for _ in range(steps):
                optimizer.step()
            return steps

        loops[name] = timing.Contender(run, seconds=0.3)
    costs = timing.interleave(loops, rounds=rounds, seconds=0.3)
    as_shipped, largest = _apart(first, _theirs, _ours)
    rounding = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = torch.Tensor.float  # theirs without its rounding
    try:
        difference, _ = _apart(first, _theirs, _ours)
        exact, _ = _apart(first, _theirs, made["exactly"])
    finally:
        torch.Tensor.bfloat16 = rounding
    return Muon(costs["theirs"], costs["ours"], costs["exactly"], difference, as_shipped, exact, largest)
