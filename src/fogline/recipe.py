"""How to descend: a frozen value that round-trips through JSON and TOML."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.optim import Optimizer

from fogline.errors import did_you_mean, unknown

UNITS = {"ep": "epochs", "st": "steps", "ex": "examples", "s": "seconds", "min": "minutes", "h": "hours"}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]+)\s*", re.IGNORECASE)

OPTIMIZERS = (
    "gd", "sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "adamax",
    "asgd", "rprop", "lbfgs", "lion", "muon", "musgd", "schedule_free", "prodigy",
)  # fmt: skip
"""Names an optimizer can be given by; what stands behind them is in :mod:`fogline.descent.optimizers`."""
EXTRA_OPTIMIZERS = ("adamw8bit",)
"""Names of optimizers that another package brings: ``pip install "fogline[memory]"``."""
SCHEDULES = ("constant", "linear", "cosine", "one_cycle", "wsd", "plateau")
PRECISIONS = ("auto", "float32", "float64", "bf16", "fp16")
_MEANT = {"learning_rate": "lr", "epochs": 'duration="20ep"', "steps": 'duration="1000st"', "scheduler": "schedule"}
_TABLES = ("options", "lr_scale")  # fields that are mappings
STEPS = ("auto", "eager", "compiled", "chunked")
PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True)
class Duration:
    """A length of training with its unit: ``"20ep"``, ``"1000st"``, ``"5min"``, ``"1e6ex"``.

    >>> Duration.parse("20ep")
    Duration(value=20.0, unit='ep')
    >>> Duration.parse("1e6ex").steps(batch_size=64, examples=1000)
    15625
    >>> str(Duration.parse("2.5min"))
    '2.5min'
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str | Duration) -> Duration:
        """Read a duration.

        Raises:
            TypeError: for a bare number: the unit is part of a duration.
            ValueError: for an unknown unit or a value that is not positive.
        """
        if isinstance(text, Duration):
            return text
        if not isinstance(text, str):
            raise TypeError(
                f"expected a duration with its unit such as '20ep', '1000st', '5min' or '1e6ex', received {text!r}"
            )
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ValueError(f"expected a number and a unit such as '20ep', '1000st' or '5min', received {text!r}")
        value, unit = float(match[1]), match[2].lower()
        if unit not in UNITS:
            raise unknown("unit of duration", unit, UNITS)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"expected a positive duration, received {text!r}")
        return cls(value, unit)

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"

    @property
    def seconds(self) -> float | None:
        """The length in seconds, or None when it counts steps, examples or epochs."""
        return self.value * _SECONDS[self.unit] if self.unit in _SECONDS else None

    def steps(
        self,
        batch_size: int,
        examples: int | None,  # in one epoch; None for a stream of unknown length
    ) -> int | None:
        """The length in optimizer steps (at least 1), or None when it is measured in time.

        An epoch has ``ceil(examples / batch_size)`` steps: its last batch may be short.
        """
        if self.seconds is not None:
            return None
        if self.unit == "st":
            return max(1, math.ceil(self.value))
        if self.unit == "ex":
            return max(1, math.ceil(self.value / batch_size))
        if examples is None:
            raise ValueError(
                f"expected a duration in steps, examples or time for a stream of unknown length, received '{self}'; "
                "write e.g. '1000st'"
            )
        return max(1, math.ceil(self.value * math.ceil(examples / batch_size)))


@dataclass(frozen=True)
class Recipe:
    """How to descend. ``"auto"`` is resolved by measurement or rule when a run starts, and the run records to what.

    Raises:
        ValueError, TypeError: for a field that cannot be used, naming what was expected.

    >>> Recipe(optimizer="adamw", lr=1e-3, duration="20ep").replace(seed=1).seed
    1
    >>> Recipe.from_json(Recipe(lr=0.1).to_json()) == Recipe(lr=0.1)
    True
    """

    optimizer: str | type[Optimizer] = "auto"
    """A name (``fogline.OPTIMIZERS`` lists them) or a ``torch.optim.Optimizer`` class; ``"adamw8bit"`` keeps its state
    in 8 bits, where torchao is installed."""
    lr: float | Literal["auto"] = "auto"
    """The learning rate at the top of the schedule."""
    batch_size: int | Literal["auto", "full"] = "auto"
    """Examples a step over all processes; ``"full"`` is batch gradient descent, 1 is stochastic."""
    duration: str | Duration = "auto"
    """How long to train, with its unit."""
    schedule: str = "auto"
    """How the learning rate moves: constant, linear, cosine, one_cycle, wsd, plateau."""
    warmup: float | int | Literal["auto"] = "auto"
    """Warm-up as a share of the run (below 1) or a number of steps."""
    weight_decay: float | None = None
    """Decay of the matrices of linear and convolution layers; None is the optimizer's own default."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the optimizer, such as ``{"betas": (0.9, 0.95)}``."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    """What multiplies the rate of the parameters below a module, by its name: ``{"head": 10.0}``. The ratios hold
    whatever the rate is set to."""
    clip: float | Literal["adaptive"] | None = None
    """Largest gradient norm; ``"adaptive"`` follows the run's own norms."""
    accumulate: int = 1
    """Batches whose gradients make one step: k batches of b are one batch of k*b."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then validated and kept."""
    precision: str = "auto"
    """auto, float32, float64, bf16 or fp16 (mixed, with float32 weights)."""
    seed: int = 0
    """Decides the data order and every random number of the run."""
    shuffle: bool = True
    """Whether each epoch has its own order; the validation data never has."""
    validate_every: str | Duration = "1ep"
    """How often the held-out data is scored."""
    patience: int | None = None
    """Stop after this many validations without a better held-out loss; None never stops early."""
    checkpoint_every: str | Duration = "auto"
    """How often the run is saved; ``"auto"`` spends at most one percent of the time on it."""
    keep: int = 2
    """Checkpoints kept on disk."""
    guard: bool | Literal["auto"] = "auto"
    """Whether a loss that runs away goes back to the last good state at a third of the rate, at most three times; auto:
    where the learning rate was measured."""
    step: str = "auto"
    """eager, compiled (one graph a step), chunked (several steps a call) or auto: by measurement, and on a CUDA device
    as one CUDA graph where the step can be one."""
    workers: int = 0
    """Processes that load data which is not in memory."""
    window: int | Literal["auto"] = "auto"
    """Examples shuffled together and kept in memory where the data is read bit by bit; auto: 64 MiB of a table in
    chunks, and the order of its own for an ``IterableDataset``."""
    checkpoint_activations: bool | Literal["auto"] = "auto"
    """Whether the layers of a block are computed again on the way back instead of kept; auto: once the memory does not
    suffice."""
    watch: float = 0.02
    """Share of the time that signals may cost."""
    examples: bool | Literal["auto"] = "auto"
    """Whether to record what each training example does, epoch by epoch; auto: where the examples have numbers to know
    them by (all data but streams), an epoch of them takes at most 256 MB, and ``watch`` is not 0."""
    device: str = "auto"
    """Where to train: auto takes the accelerator if there is one."""
    parallel: str = "ddp"
    """Of several processes: ``"ddp"``, each holds the whole model; ``"fsdp"``, each holds a part of weights, gradients
    and optimizer state."""

    def __post_init__(self) -> None:
        _check(self)

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed; an unknown field is an error that names the nearest."""
        known = [item.name for item in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                meant = f"did you mean {_MEANT[name]}?" if name in _MEANT else did_you_mean(name, known)
                raise TypeError(f"unknown recipe field {name!r}: {meant}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as written to ``run.json``."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values |= {name: dict(values[name]) for name in _TABLES}
        for name in ("duration", "validate_every", "checkpoint_every"):
            values[name] = str(values[name])
        if isinstance(self.optimizer, type):
            values["optimizer"] = f"{self.optimizer.__module__}:{self.optimizer.__qualname__}"
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of :meth:`to_dict`; missing fields take their defaults."""
        values = dict(values)
        options = values.get("options", {})
        values["options"] = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
        name = values.get("optimizer", "auto")
        if isinstance(name, str) and ":" in name:
            module, _, attribute = name.partition(":")
            values["optimizer"] = getattr(importlib.import_module(module), attribute)
        return cls().replace(**values)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        return cls.from_dict(json.loads(text))

    def to_toml(self) -> str:
        """TOML has no null: a field that is None is left out, which means the same."""
        values = self.to_dict()
        tables = {name: values.pop(name) for name in _TABLES}
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
        for title, table in tables.items():
            entries = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in table.items()]
            lines += ["", f"[{title}]", *entries] if entries else []
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        return cls.from_dict(tomllib.loads(text))


def _check(recipe: Recipe) -> None:
    _check_optimizer(recipe.optimizer)
    if str(recipe.schedule).lower().replace("-", "_") not in ("auto", *SCHEDULES):
        raise unknown("schedule", recipe.schedule, ["auto", *SCHEDULES])
    if recipe.precision not in PRECISIONS:
        raise unknown("precision", recipe.precision, PRECISIONS)
    if recipe.step not in STEPS:
        raise unknown("step mode", recipe.step, STEPS)
    if recipe.parallel not in PARALLEL:
        raise unknown("way of training in parallel", recipe.parallel, PARALLEL)
    if recipe.batch_size not in ("auto", "full"):
        _number("batch_size", recipe.batch_size, least=1, whole=True, also="'full' or 'auto'")
    if recipe.lr != "auto":
        _number("lr", recipe.lr, above=0, also="'auto'")
    if recipe.clip not in (None, "adaptive"):
        _number("clip", recipe.clip, above=0, also="'adaptive' or None")
    if recipe.window != "auto":
        _number("window", recipe.window, least=1, whole=True, also="'auto'")
    if recipe.checkpoint_activations not in (True, False, "auto"):
        received = f"received {recipe.checkpoint_activations!r}"
        raise TypeError(f"checkpoint_activations: expected True, False or 'auto', {received}")
    if recipe.warmup != "auto":
        _number("warmup", recipe.warmup, least=0, also="'auto'")
    if recipe.weight_decay is not None:
        _number("weight_decay", recipe.weight_decay, least=0)
    if recipe.ema is not None:
        _number("ema", recipe.ema, above=0, below=1)
    if recipe.patience is not None:
        _number("patience", recipe.patience, least=1, whole=True)
    for name, least in (("accumulate", 1), ("keep", 1), ("workers", 0), ("seed", 0)):
        _number(name, getattr(recipe, name), least=least, whole=True)
    for name, value in recipe.lr_scale.items():
        _number(f"lr_scale of {name!r}", value, above=0)
    if recipe.guard not in (True, False, "auto"):
        raise TypeError(f"guard: expected True, False or 'auto', received {recipe.guard!r}")
    if recipe.examples not in (True, False, "auto"):
        raise TypeError(f"examples: expected True, False or 'auto', received {recipe.examples!r}")
    _number("watch", recipe.watch, least=0, below=1)
    for name in ("duration", "checkpoint_every", "validate_every"):
        if not (getattr(recipe, name) == "auto" and name != "validate_every"):
            Duration.parse(getattr(recipe, name))


def _check_optimizer(optimizer: object) -> None:
    if isinstance(optimizer, Optimizer):
        raise TypeError(
            f"expected an optimizer's name or class, received an instance of {type(optimizer).__name__}; "
            f"pass the class torch.optim.{type(optimizer).__name__} and its options in Recipe(options=...)"
        )
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        return
    if not isinstance(optimizer, str):
        raise TypeError(f"expected an optimizer's name or class, received {optimizer!r}")
    if optimizer not in ("auto", *OPTIMIZERS, *EXTRA_OPTIMIZERS):
        raise unknown("optimizer", optimizer, ["auto", *OPTIMIZERS, *EXTRA_OPTIMIZERS])


def _number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
    also: str = "",
) -> None:
    kind = "a whole number" if whole else "a number"
    limits = [f"at least {least:g}"] if least > -math.inf else [f"above {above:g}"] if above > -math.inf else []
    limits += [f"below {below:g}"] if below < math.inf else []
    wanted = f"{name}: expected {kind} {' and '.join(limits)}{f' or {also}' if also else ''}, received {value!r}"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(wanted)
    if not (math.isfinite(value) and value >= least and value > above and value < below):
        raise ValueError(wanted)
