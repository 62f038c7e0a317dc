"""Optimizers by name: PyTorch's own wherever it has one, ours (Lion, Muon, MuSGD, schedule-free, Prodigy) where not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fogline.descent.groups import ParameterRole, parameter_roles, scaled_roles
from fogline.descent.implementation import choose_implementation as choose_implementation
from fogline.descent.optimizer_specs import OPTIMIZERS as OPTIMIZERS
from fogline.descent.optimizer_specs import OptimizerSpec as OptimizerSpec
from fogline.descent.optimizer_specs import arguments_of
from fogline.descent.optimizer_specs import spec_of as spec_of
from fogline.descent.optimizer_specs import stability_limit as stability_limit
from fogline.descent.optimizer_state import init_state as init_state
from fogline.descent.optimizer_state import load_state_tensors as load_state_tensors
from fogline.descent.optimizer_state import state_scalars as state_scalars
from fogline.descent.optimizer_state import state_tensors as state_tensors
from fogline.descent.own_optimizers import to_eval as to_eval
from fogline.descent.own_optimizers import to_train as to_train
from fogline.errors import did_you_mean


def build(
    model: nn.Module,
    name: str | type[torch.optim.Optimizer],
    lr: float,
    *,
    weight_decay: float | None = None,
    options: Mapping[str, Any] | None = None,
    lr_scale: Mapping[str, float] | None = None,
    implementation: str | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters of a model, in weight-decay groups by module type.

    Args:
        model: its parameters are read, not changed.
        name: one of `OPTIMIZERS`, or a subclass of `torch.optim.Optimizer`.
        lr: learning rate.
        weight_decay: None for the method's own default (0.01 for adamw, 0 for most).
        options: further settings of the method, such as `{"betas": (0.9, 0.95)}`.
        lr_scale: what multiplies the rate of the parameters below a module, by its name.
        implementation: "fused", "foreach" or "forloop" (see `choose_implementation`); None leaves it to PyTorch.

    Raises:
        ValueError: unknown name, option or implementation; a negative or non-finite rate or decay; weight decay for a
            method without it.
        TypeError: an optimizer instance instead of a class.

    Example:
        >>> optimizer = build(nn.Linear(2, 1), "momentum", 0.1)
        >>> type(optimizer).__name__, optimizer.param_groups[0]["momentum"]
        ('SGD', 0.9)
    """
    roles = scaled_roles(parameter_roles(model), lr_scale or {})
    return build_on(roles, name, lr, weight_decay=weight_decay, options=options, implementation=implementation)


def build_on(
    roles: list[ParameterRole],
    name: str | type[torch.optim.Optimizer],
    lr: float,
    *,
    weight_decay: float | None = None,
    options: Mapping[str, Any] | None = None,
    implementation: str | None = None,
) -> torch.optim.Optimizer:
    """`build` on parameters whose roles are known."""
    spec = spec_of(name)
    _check_number("lr", lr)
    decay = spec.weight_decay if weight_decay is None else weight_decay
    if decay:
        _check_number("weight_decay", decay)
        if spec.weight_decay is None:
            raise ValueError(
                f"expected no weight decay for {spec.name}, which has none, received {decay}: "
                "leave it out, add the penalty to the loss, or take adamw"
            )
    settings = {**spec.defaults, **_checked_options(spec, options or {})}
    if spec.cls in (torch.optim.NAdam, torch.optim.RAdam) and decay:
        settings.setdefault("decoupled_weight_decay", True)
    settings |= _implementation_flags(spec, implementation)
    arguments = arguments_of(spec.cls)
    if "capturable" in arguments and any(role.parameter.device.type == "cuda" for role in roles):
        settings.setdefault("capturable", True)  # counters on the device, where the gate can put them back
    if "weight_decay" in arguments:
        settings["weight_decay"] = decay or 0.0
    if "lr" in arguments or _takes_anything(spec.cls):
        settings["lr"] = lr
    groups = spec.grouping(roles, decay)
    try:
        optimizer = spec.cls(groups, **settings)
    except (TypeError, ValueError) as error:
        if not options:
            raise
        raise ValueError(
            f"expected options that {spec.cls.__name__} takes, received {dict(options)}: {error}"
        ) from error
    quiet_when_capturable(optimizer)
    return optimizer


def quiet_when_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Keep PyTorch from warning of steps outside a graph: short batches and checks are taken so on purpose."""
    optimizer._warned_capturable_if_run_uncaptured = True


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate `lr * group["lr_scale"]`; a rate kept as a 0-D tensor is filled in place.

    Example:
        >>> optimizer = build(nn.Linear(2, 1), "sgd", 0.1)
        >>> set_lr(optimizer, 0.05)
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """
    for group in optimizer.param_groups:
        scaled = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def _takes_anything(cls: type[torch.optim.Optimizer]) -> bool:
    parameters = inspect.signature(cls).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _check_number(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"expected {what} to be a finite number of at least 0, received {value!r}")


def _checked_options(spec: OptimizerSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    if _takes_anything(spec.cls):
        return dict(options)
    for key in options:
        if key in ("lr", "weight_decay"):
            raise ValueError(
                f"expected {key} as its own setting, received it among the options of {spec.name}: move it"
            )
        if key not in spec.options:
            raise ValueError(
                f"expected an option of {spec.name} ({', '.join(spec.options) or 'it has none'}), "
                f"received {key!r}; {did_you_mean(key, spec.options)}"
            )
    return dict(options)


def _implementation_flags(spec: OptimizerSpec, implementation: str | None) -> dict[str, bool]:
    if implementation is None:
        return {}
    supported = spec.implementations
    if implementation not in supported:
        raise ValueError(
            f"expected an implementation that {spec.name} has ({', '.join(supported)}), received {implementation!r}"
        )
    return {how: how == implementation for how in supported if how != "forloop"}
