"""What each optimizer's name stands for: PyTorch's own wherever it has one, ours where not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fogline.descent.groups import ParameterRole, groups_of
from fogline.descent.implementation import IMPLEMENTATIONS
from fogline.descent.own_optimizers import Lion, Muon, MuSGD, Prodigy, ScheduleFreeAdamW
from fogline.descent.own_optimizers.muon import muon_groups
from fogline.descent.own_optimizers.musgd import musgd_groups
from fogline.errors import needed, unknown
from fogline.recipe import EXTRA_OPTIMIZERS

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
        return tuple(name for name in arguments_of(self.cls) if name not in _SET_ELSEWHERE)

    @property
    def implementations(self) -> tuple[str, ...]:
        """Names that `build(..., implementation=...)` accepts for this optimizer."""
        arguments = arguments_of(self.cls)
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
    module = needed("torchao.optim", "memory", "torchao", instead="take 'adamw'")
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
        arguments = arguments_of(name)
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


def arguments_of(cls: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """What the class can be given by name."""
    parameters = inspect.signature(cls).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


def _default_decay(arguments: Mapping[str, inspect.Parameter]) -> float | None:
    if "weight_decay" not in arguments:
        return None
    default = arguments["weight_decay"].default
    return float(default) if isinstance(default, int | float) else 0.0
