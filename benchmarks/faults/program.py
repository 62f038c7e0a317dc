"""What a program of the suite is, and how one is made from a healthy program and a plant.

A :class:`Setting` is everything a training program consists of. A base makes a healthy one; a plant is a function from
a setting to a setting with one thing changed; a :class:`Fault` says which plants give which cause.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from fogline import Recipe, Task

Pair = tuple[Tensor, Tensor]
Score = Callable[[nn.Module, Any], float]
Watch = Callable[..., Any]
"""``fogline.watch``, or anything that is called and used like it."""

STRENGTHS = ("mild", "strong")
CAUSES = frozenset(
    [
        "lr_too_high",
        "lr_too_low",
        "bad_schedule",
        "too_few_steps",
        "optimizer_mismatch",
        "batch_too_small",
        "batch_too_large",
        "regularization_too_strong",
        "vanishing_gradient",
        "exploding_gradient",
        "dead_units",
        "saturated_units",
        "bad_init",
        "symmetric_init",
        "missing_activation",
        "bottleneck",
        "output_activation",
        "double_softmax",
        "softmax_single_unit",
        "loss_mismatch",
        "output_width",
        "sum_reduction",
        "shape_broadcast",
        "unscaled_input",
        "unscaled_target",
        "train_valid_mismatch",
        "label_noise",
        "shuffled_labels",
        "constant_target",
        "class_imbalance",
        "unshuffled_data",
        "nan_in_data",
        "duplicate_leak",
        "missing_zero_grad",
        "parameters_not_optimized",
        "frozen_parameters",
        "detached_graph",
        "eval_mode_training",
        "train_mode_eval",
        "tiny_batch_norm",
        "accumulation_scale",
        "schedule_step_unit",
        "amp_scale_collapse",
        "nan_source",
        "log_of_zero",
        "epsilon_underflow",
        "overfitting",
        "underfitting",
        "metric_mismatch",
        "saddle",
    ]
)
"""Every identifier that a finding can have."""


@dataclass(frozen=True)
class Program:
    """A training program whose faults are known.

    Attributes:
        name: ``cause/base/strength``, ``healthy/base`` or ``healthy/base/variation``.
        kind: regression, mlp, cnn, rnn, transformer or loop.
        causes: the faults that were planted; empty for a healthy program.
        also: other causes that describe the same fault equally well.
        strength: ``"mild"`` or ``"strong"``; empty for a healthy program.
        half: ``"calibration"`` or ``"evaluation"``.
        twin: the name of the healthy program it was made from; its own name for a healthy one.
        make: gives the task and the recipe from a seed, fresh objects at each call; None for a loop.
        test: gives rows that are in no task, without any fault but in the units of the program's own data.
        score: of a trained model on those rows, higher is better: balanced accuracy or R^2, whatever the loss is.
        loop: trains by a hand-written loop, from a seed and :func:`fogline.watch`, and returns the run.
        bites: whether the fault makes the score clearly worse.
        reason: why it does not, where it does not.
        good: the least score that a healthy program reaches for each of the seeds 0, 1 and 2.
    """

    name: str
    kind: str
    causes: tuple[str, ...]
    also: tuple[str, ...]
    strength: str
    half: str
    twin: str
    make: Callable[[int], tuple[Task, Recipe]] | None
    test: Callable[[], Pair] | None
    score: Score | None
    loop: Callable[[int, Watch], Any] | None = None
    bites: bool = True
    reason: str = ""
    good: float | None = None


@dataclass(frozen=True)
class Habits:
    """What the author of a hand-written loop does. By default all is well; a plant changes one field.

    Attributes:
        zero_grad: when gradients are set to zero: every ``"step"``, every ``"epoch"`` or ``"never"``.
        optimized: what the optimizer is given: ``"all"`` parameters, the ``"head"``, the ``"body"``, or all parameters
            before the head was replaced (``"stale"``).
        freeze: which parameters have ``requires_grad`` off: ``""``, ``"body"`` or ``"first"``.
        detach: how the graph is cut: ``""``, all of it (``"loss"``) or on fifteen of sixteen steps (``"often"``).
        train_mode: when ``model.train()`` is called: every ``"epoch"``, ``"once"`` before the first, or ``"never"``.
        eval_mode: whether ``model.eval()`` is called before the held-out data is scored.
        accumulate: micro-batches whose gradients make a step.
        divide: whether the loss is divided by their number.
        schedule: makes a scheduler from the optimizer.
        schedule_every: when the scheduler is stepped: every ``"epoch"`` or every ``"step"``.
        scaler: makes a gradient scaler; the forward pass is then in half precision.
        loader: batches by a ``DataLoader`` instead of slices of a permutation.
    """

    zero_grad: str = "step"
    optimized: str = "all"
    freeze: str = ""
    detach: str = ""
    train_mode: str = "epoch"
    eval_mode: bool = True
    accumulate: int = 1
    divide: bool = True
    schedule: Callable[[Any], Any] | None = None
    schedule_every: str = "epoch"
    scaler: Callable[[], Any] | None = None
    loader: bool = False


@dataclass(frozen=True)
class Setting:
    """Everything a training program consists of.

    Attributes:
        model: makes the model; plants give it further keywords by :func:`functools.partial`.
        loss: of (outputs, targets), or an ``on_batch``.
        train, valid, test: inputs and targets.
        recipe: how to descend; its seed is filled in by :attr:`Program.make`.
        score: of a trained model on the test rows.
        metrics: of the task.
        units: mean and deviation of the inputs before they were standardised.
        target_units: the same of the targets.
        habits: of the hand-written loop; None trains by a recipe.
    """

    model: Callable[..., nn.Module]
    loss: Any
    train: Pair
    valid: Pair
    test: Pair
    recipe: Recipe
    score: Score
    metrics: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    units: tuple[Any, Any] = (0.0, 1.0)
    target_units: tuple[Any, Any] = (0.0, 1.0)
    habits: Habits | None = None

    def but(self, **changes: Any) -> Setting:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)


Plant = Callable[[Setting], Setting]


@dataclass(frozen=True)
class Healthy:
    """A healthy program: a base, or one of its variations.

    Attributes:
        base: its name.
        kind: as in :class:`Program`.
        setting: makes it.
        good: the least score of a well-trained model.
        label: of the variation.
    """

    base: str
    kind: str
    setting: Callable[[], Setting]
    good: float
    label: str = ""

    @property
    def key(self) -> str:
        """What a fault names it by."""
        return f"{self.base}/{self.label}" if self.label else self.base

    def vary(self, label: str, plant: Plant, good: float | None = None) -> Healthy:
        """A variation that is just as healthy."""
        return Healthy(self.base, self.kind, lambda: plant(self.setting()), self.good if good is None else good, label)


@dataclass(frozen=True)
class Fault:
    """A row of the table of faults.

    Attributes:
        causes: what is planted, one or several identifiers separated by spaces.
        base: the healthy program it is planted in, by its key.
        mild, strong: the plants.
        also: identifiers that are right as well, separated by spaces.
        harmless: why the score does not suffer, where it does not: of both strengths, or of one by its name.
        tag: tells apart two faults of the same cause in the same base.
    """

    causes: str
    base: str
    mild: Plant | None = None
    strong: Plant | None = None
    also: str = ""
    harmless: str | Mapping[str, str] = ""
    tag: str = ""

    def __post_init__(self) -> None:
        unknown = sorted({*self.causes.split(), *self.also.split()} - CAUSES)
        if unknown:
            raise ValueError(f"fault in {self.base}: expected identifiers of causes, received {unknown}")


def together(half: str, healthy: Iterable[Healthy], faults: Iterable[Fault]) -> list[Program]:
    """The programs of one half: the healthy ones, then the faulty ones beside their twins."""
    made = {item.key: item for item in healthy}
    programs = [_healthy(half, item) for item in made.values()]
    for fault in faults:
        for strength in STRENGTHS:
            plant = getattr(fault, strength)
            if plant is not None:
                programs.append(_faulty(half, made[fault.base], fault, strength, plant))
    return programs


def _healthy(half: str, item: Healthy) -> Program:
    name = f"healthy/{item.key}"
    return Program(name, item.kind, (), (), "", half, name, **_parts(item.setting, item.kind), good=item.good)


def _faulty(half: str, twin: Healthy, fault: Fault, strength: str, plant: Plant) -> Program:
    causes = tuple(fault.causes.split())
    middle = "-".join([twin.key.replace("/", "-"), *([fault.tag] if fault.tag else [])])
    harmless = fault.harmless if isinstance(fault.harmless, str) else fault.harmless.get(strength, "")
    return Program(
        f"{'+'.join(causes)}/{middle}/{strength}",
        twin.kind,
        causes,
        tuple(fault.also.split()),
        strength,
        half,
        f"healthy/{twin.key}",
        **_parts(lambda: plant(twin.setting()), twin.kind),
        bites=not harmless,
        reason=harmless,
    )


def _parts(setting: Callable[[], Setting], kind: str) -> dict[str, Any]:
    """The callables of a program. Data is made when it is first asked for, and once."""
    setting = cache(setting)

    def make(seed: int) -> tuple[Task, Recipe]:
        it = setting()
        task = Task(it.model, it.loss, copied(it.train), copied(it.valid), dict(it.metrics), name=_kind_of_model(it))
        return task, it.recipe.replace(seed=seed)

    def loop(seed: int, watch: Watch) -> Any:
        from faults.loops import train  # which knows the setting

        return train(setting(), seed, watch)

    by_hand = kind == "loop"
    return {
        "make": None if by_hand else make,
        "test": lambda: copied(setting().test),
        "score": lambda model, test: setting().score(model, test),
        "loop": loop if by_hand else None,
    }


def copied(data: Any) -> Any:
    """Fresh tensors: nothing that a program does to its data reaches another."""
    return tuple(part.clone() for part in data) if isinstance(data, tuple) else data.clone()


def _kind_of_model(setting: Setting) -> str:
    model: Any = setting.model
    while isinstance(model, partial):
        model = model.func
    return str(getattr(model, "__name__", "model"))
