"""Optimizers by name: PyTorch's own wherever it has one, ours (Lion, Muon, MuSGD, schedule-free, Prodigy) where not."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fogline.descent.groups import ParameterRole, groups_of, parameter_groups, parameter_roles, scaled_roles
from fogline.descent.implementation import IMPLEMENTATIONS, choose_implementation
from fogline.descent.optimizer_state import init_state, load_state_tensors, state_scalars, state_tensors
from fogline.descent.own_optimizers import Lion, Muon, MuSGD, Prodigy, ScheduleFreeAdamW, to_eval, to_train
from fogline.descent.own_optimizers.muon import muon_groups
from fogline.descent.own_optimizers.musgd import musgd_groups
from fogline.errors import did_you_mean, unknown
from fogline.recipe import EXTRA_OPTIMIZERS

__all__ = [
    "OPTIMIZERS",
    "OptimizerSpec",
    "build",
    "choose_implementation",
    "init_state",
    "load_state_tensors",
    "parameter_groups",
    "set_lr",
    "spec_of",
    "state_scalars",
    "state_tensors",
    "to_eval",
    "to_train",
]

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerSpec:
    """What a name stands for.

    Attributes:
        name: the name in a recipe.
        cls: the class behind it; many names may share one.
        lr: the learning rate its authors start from.
        when: when to choose it, in one line.
        defaults: options that differ from those of the class.
        weight_decay: decay used when none is asked for; None where the method has none.
        momentum: the momentum that moves the edge of stability (beta1 for the Adam family).
        edge: which limit on `lr * sharpness` holds: "gradient" 2, "heavy_ball" 2 + 2b, "nesterov" (2 + 2b)/(1 + 2b),
            "preconditioned" (2 + 2b)/(1 - b) on the preconditioned Hessian, None where none is known.
        needs_closure: `step` evaluates the loss several times and takes a closure.
        proportional: the update is the rate times a direction that does not depend on the rate.
        schedulable: False where the rate only sets the first step (Rprop) and a schedule changes nothing.
        grouping: roles and decay to parameter groups.
    """

    name: str
    cls: type[torch.optim.Optimizer]
    lr: float
    when: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float | None = 0.0
    momentum: float = 0.0
    edge: str | None = None
    needs_closure: bool = False
    proportional: bool = True
    schedulable: bool = True
    grouping: Callable[[list[ParameterRole], float | None], Groups] = groups_of

    @property
    def options(self) -> tuple[str, ...]:
        """Names that `build(..., options=...)` accepts for this optimizer."""
        return tuple(name for name in _arguments(self.cls) if name not in _SET_ELSEWHERE)

    @property
    def implementations(self) -> tuple[str, ...]:
        """Names that `build(..., implementation=...)` accepts for this optimizer."""
        arguments = _arguments(self.cls)
        return tuple(how for how in IMPLEMENTATIONS if how == "forloop" or how in arguments)


_SET_ELSEWHERE = ("params", "lr", "weight_decay", "foreach", "fused", "differentiable", "maximize")

_SPECS = (
    OptimizerSpec("gd", torch.optim.SGD, 0.1, 'the textbook step; with batch_size="full"', edge="gradient"),
    OptimizerSpec("sgd", torch.optim.SGD, 0.1, "plain steps on mini-batches; no state, least memory", edge="gradient"),
    OptimizerSpec(
        "momentum",
        torch.optim.SGD,
        0.01,
        "convolutional networks and anything well scaled; often generalises best",
        {"momentum": 0.9},
        momentum=0.9,
        edge="heavy_ball",
    ),
    OptimizerSpec(
        "nesterov",
        torch.optim.SGD,
        0.01,
        "as momentum, damped better at high curvature",
        {"momentum": 0.9, "nesterov": True},
        momentum=0.9,
        edge="nesterov",
    ),
    OptimizerSpec(
        "adam",
        torch.optim.Adam,
        1e-3,
        "as published, weight decay coupled to the gradient; prefer adamw",
        momentum=0.9,
        edge="preconditioned",
    ),
    OptimizerSpec(
        "adamw",
        torch.optim.AdamW,
        1e-3,
        "the default: robust on almost everything",
        weight_decay=0.01,
        momentum=0.9,
        edge="preconditioned",
    ),
    OptimizerSpec(
        "nadam",
        torch.optim.NAdam,
        2e-3,
        "adamw with Nesterov momentum; a little faster on small networks",
        momentum=0.9,
    ),
    OptimizerSpec("radam", torch.optim.RAdam, 1e-3, "adam that needs no warm-up", momentum=0.9),
    OptimizerSpec("rmsprop", torch.optim.RMSprop, 1e-3, "recurrent networks and reinforcement learning"),
    OptimizerSpec("adagrad", torch.optim.Adagrad, 0.01, "sparse features; its steps shrink for ever"),
    OptimizerSpec("adadelta", torch.optim.Adadelta, 1.0, "sets its own step; of historical interest"),
    OptimizerSpec("adamax", torch.optim.Adamax, 2e-3, "adam with the infinity norm; gradients with rare huge values"),
    OptimizerSpec(
        "asgd",
        torch.optim.ASGD,
        0.01,
        "sgd with averaged iterates for convex problems",
        edge="gradient",
        proportional=False,
    ),
    OptimizerSpec(
        "rprop",
        torch.optim.Rprop,
        0.01,
        "full batch only: steps by the sign of the gradient, whatever its size",
        weight_decay=None,
        proportional=False,
        schedulable=False,
    ),
    OptimizerSpec(
        "lbfgs",
        torch.optim.LBFGS,
        1.0,
        "small smooth full-batch problems, to high accuracy",
        # The tolerances of the class are absolute: a loss in other units would stop elsewhere. Stopping is the loop's.
        {"line_search_fn": "strong_wolfe", "history_size": 10, "tolerance_grad": 0.0, "tolerance_change": 0.0},
        weight_decay=None,
        needs_closure=True,
        proportional=False,
    ),
    OptimizerSpec("lion", Lion, 1e-4, "half the memory of adamw; large batches, vision and language models"),
    OptimizerSpec(
        "muon",
        Muon,
        1e-3,
        "transformers and deep networks on a GPU: fewer steps than adamw; slow on a CPU",
        weight_decay=0.01,
        grouping=muon_groups,
    ),
    OptimizerSpec(
        "musgd",
        MuSGD,
        0.01,
        "detectors as YOLO26 trains them: momentum with a share of orthogonal steps",
        momentum=0.9,
        proportional=False,  # its decay acts on weights that have moved already
        grouping=musgd_groups,
    ),
    OptimizerSpec(
        "schedule_free",
        ScheduleFreeAdamW,
        2.5e-3,
        "when the length of the run is not known: constant schedule with warm-up, the average is evaluated",
        proportional=False,
    ),
    OptimizerSpec(
        "prodigy",
        Prodigy,
        1.0,
        "no learning rate to set: leave it at 1; several times adamw's memory",
        proportional=False,
    ),
)

OPTIMIZERS: Mapping[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}


def _eight_bit() -> OptimizerSpec:
    """AdamW with both moments in blocks of 8 bits (Dettmers et al., 2022, arXiv:2110.02861), as torchao has it."""
    try:
        module = importlib.import_module("torchao.optim")
    except ImportError as error:
        raise ImportError(
            "expected torchao, which has the optimizer 'adamw8bit', and it is not installed; "
            "pip install \"fogline[memory]\", or take 'adamw'"
        ) from error
    when = "large models: a quarter of the state of adamw, in tensors of 4096 numbers and more"
    return OptimizerSpec("adamw8bit", module.AdamW8bit, 1e-3, when, weight_decay=0.01, momentum=0.9, proportional=False)


def stability_limit(edge: str, momentum: float) -> float:
    """The largest ``lr * curvature`` at which steps on a quadratic do not grow, by the kind of `OptimizerSpec.edge`.

    Cohen et al., 2021, arXiv:2103.00065; 2022, arXiv:2207.14484, for Adam on the preconditioned Hessian.

    >>> stability_limit("gradient", 0.0), stability_limit("heavy_ball", 0.9)
    (2.0, 3.8)
    """
    b = momentum
    limits = {
        "gradient": 2.0,
        "heavy_ball": 2 + 2 * b,
        "nesterov": (2 + 2 * b) / (1 + 2 * b),
        "preconditioned": (2 + 2 * b) / (1 - b),
    }
    return limits[edge]


def spec_of(name: object) -> OptimizerSpec:
    """The specification of a name, or one made for an optimizer class.

    Raises:
        ValueError: unknown name, with the nearest known ones.
        ImportError: the optimizer comes with a package that is not installed.
        TypeError: an optimizer instance, or something that is no optimizer at all.

    Example:
        >>> spec_of("momentum").defaults["momentum"]
        0.9
        >>> spec_of("momentun")
        Traceback (most recent call last):
        ...
        ValueError: unknown optimizer 'momentun': did you mean 'momentum'?
    """
    if isinstance(name, str):
        if name in OPTIMIZERS:
            return OPTIMIZERS[name]
        if name == "adamw8bit":
            return _eight_bit()
        raise unknown("optimizer", name, [*OPTIMIZERS, *EXTRA_OPTIMIZERS])
    if isinstance(name, type) and issubclass(name, torch.optim.Optimizer):
        arguments = _arguments(name)
        parameter = arguments.get("lr")
        default = parameter.default if parameter is not None else None
        return OptimizerSpec(
            name.__name__,
            name,
            lr=float(default) if isinstance(default, int | float) else 1e-3,
            when="an optimizer class of your own",
            weight_decay=_default_decay(arguments),
            needs_closure=issubclass(name, torch.optim.LBFGS),
            proportional=False,  # nobody knows
        )
    if isinstance(name, torch.optim.Optimizer):
        raise TypeError(
            f"expected an optimizer name or class, received an instance of {type(name).__name__}: "
            f"pass the class, {type(name).__name__}, and its settings as options; the parameters are filled in"
        )
    raise TypeError(
        f"expected an optimizer name or a subclass of torch.optim.Optimizer, received {name!r}: "
        f"names are {', '.join(OPTIMIZERS)}"
    )


def build(
    model: nn.Module,
    name: str | type[torch.optim.Optimizer],
    lr: float,
    *,
    weight_decay: float | None = None,
    options: Mapping[str, Any] | None = None,
    lr_scale: Mapping[str, float] | None = None,
    implementation: str | None = None,
    lr_as_tensor: bool = False,
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
        lr_as_tensor: keep the rate as a 0-D tensor on the parameters' device, for a compiled step.

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
    optimizer = build_on(roles, name, lr, weight_decay=weight_decay, options=options, implementation=implementation)
    if lr_as_tensor:
        _make_lr_tensors(optimizer)
    return optimizer


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
    arguments = _arguments(spec.cls)
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


def _make_lr_tensors(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        first = group["params"][0]
        # Fused kernels on a GPU read the rate as float32; double rates matter only to double weights.
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=first.device)


def _arguments(cls: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(cls).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


def _takes_anything(cls: type[torch.optim.Optimizer]) -> bool:
    parameters = inspect.signature(cls).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _default_decay(arguments: Mapping[str, inspect.Parameter]) -> float | None:
    if "weight_decay" not in arguments:
        return None
    default = arguments["weight_decay"].default
    return float(default) if isinstance(default, int | float) else 0.0


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
