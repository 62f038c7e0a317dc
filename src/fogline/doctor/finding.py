"""What the doctor says: a cause with its evidence, the trial that proved it, and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from fogline.explained import address
from fogline.recipe import Recipe

CAUSES: dict[str, tuple[str, ...]] = {
    "step": (
        "lr_too_high", "lr_too_low", "bad_schedule", "too_few_steps", "optimizer_mismatch", "batch_too_small",
        "batch_too_large", "regularization_too_strong",
    ),
    "flow": (
        "vanishing_gradient", "exploding_gradient", "dead_units", "saturated_units", "bad_init", "symmetric_init",
        "missing_activation", "bottleneck",
    ),
    "output": (
        "output_activation", "double_softmax", "softmax_single_unit", "loss_mismatch", "output_width",
        "sum_reduction", "shape_broadcast",
    ),
    "data": (
        "unscaled_input", "unscaled_target", "train_valid_mismatch", "label_noise", "shuffled_labels",
        "constant_target", "class_imbalance", "unshuffled_data", "nan_in_data", "duplicate_leak",
    ),
    "loop": (
        "missing_zero_grad", "parameters_not_optimized", "frozen_parameters", "detached_graph", "eval_mode_training",
        "train_mode_eval", "tiny_batch_norm", "accumulation_scale", "schedule_step_unit", "amp_scale_collapse",
    ),
    "number": ("nan_source", "log_of_zero", "epsilon_underflow"),
    "fit": ("overfitting", "underfitting", "metric_mismatch", "saddle"),
}  # fmt: skip
"""Every identifier a finding can have, by group."""

Severity = Literal["fatal", "serious", "minor"]
"""``fatal``: nothing useful can be learned; ``serious``: much is lost; ``minor``: it trains all the same."""


@dataclass(frozen=True)
class Evidence:
    """One thing that was measured.

    Attributes:
        signal: what, such as "std of input column 3".
        value: what it is, a number or words.
        expected: what it would be in a healthy run.
        step, layer: where, if it has a place.
    """

    signal: str
    value: float | int | str
    expected: float | int | str = ""
    step: int | None = None
    layer: str | None = None

    def __str__(self) -> str:
        place = f" of {self.layer}" if self.layer else ""
        when = f" at step {self.step}" if self.step is not None else ""
        wanted = f" (expected {_plain(self.expected)})" if self.expected != "" else ""
        return f"{self.signal}{place}{when}: {_plain(self.value)}{wanted}"


@dataclass(frozen=True)
class Rows:
    """Examples that a remedy of the data changes.

    Attributes:
        inputs, targets: tensors, or trees of them, with the same first dimension.
        ids: their positions in the training data, int64; None for held-out rows.
    """

    inputs: Any
    targets: Any
    ids: Tensor | None = None


@dataclass(frozen=True)
class Remedy:
    """A small edit of Task or Recipe. What is None stays as it is.

    Attributes:
        title: what is done, in the imperative: "replace nn.Softmax at the end by nothing".
        patch: the same as code the user can put into the program.
        on_model: gives the changed module; may change the one it is given.
        on_loss: gives the loss to use instead.
        on_rows: gives the rows to use instead; of the training data, and of held-out data where ``also_valid``.
        on_recipe: gives the recipe to use instead.
        also_valid: whether held-out rows are changed like training rows.
        costs: it takes something away (rows, labels, steps), so that it is kept only where a trial shows a gain.
        place: remedies with the same place exclude each other ("head", "inputs", "target", "rate", ...).
        order: remedies are applied in rising order: rows, then model from body to head, then loss, then recipe.
    """

    title: str
    patch: str
    on_model: Callable[[nn.Module], nn.Module] | None = None
    on_loss: Callable[[Any], Any] | None = None
    on_rows: Callable[[Rows], Rows] | None = None
    on_recipe: Callable[[Recipe], Recipe] | None = None
    also_valid: bool = False
    costs: bool = False
    place: str = ""
    order: int = 50

    def __str__(self) -> str:
        return self.title


ROWS, BODY, HEAD, WRAP, LOSS, RECIPE, RATE = 10, 20, 30, 40, 50, 60, 70
"""The orders of remedies: ``RATE`` is last, since the rate is measured on what all the others left."""


@dataclass(frozen=True)
class Suspicion:
    """A cause that would explain what was seen, and what to do about it if it is the one.

    Attributes:
        cause: one of :data:`CAUSES`.
        strength: how likely it is before any trial, 0 to 1.
        remedies: alternatives, the smallest edit first; the first that helps is taken. Empty where no edit of Task or
            Recipe can help.
        proof: the mechanism leaves no doubt: it is a finding also without a trial.
        blocks: the program cannot be trained at all until this is mended.
        of_data: it is the data that lacks something, so that it is said where no edit helps, too.
        follows: it may well be of another fault's making, such as units that die of steps that are too long, or plain
            steps that are slow on bad first weights: where both are supposed it is left out first, and named last.
        advice: what to do where no remedy can do it, and what to change in the code.
        otherwise: another cause that would look the same, and why; no trial can tell the two apart.
        simpler: causes whose smaller edits are a part of what the remedy does: one that does most of it by itself is
            what was wrong.
    """

    cause: str
    strength: float
    evidence: tuple[Evidence, ...]
    explanation: str
    remedies: tuple[Remedy, ...] = ()
    proof: bool = False
    blocks: bool = False
    of_data: bool = False
    follows: bool = False
    severity: Severity = "serious"
    advice: str = ""
    otherwise: tuple[str, str] | None = None
    simpler: tuple[Suspicion, ...] = ()

    def __post_init__(self) -> None:
        if not any(self.cause in group for group in CAUSES.values()):
            raise ValueError(f"unknown cause {self.cause!r}")


@dataclass(frozen=True)
class Trial:
    """A controlled re-run.

    Attributes:
        intervention: what was changed.
        control: what it was compared with.
        seeds: of first weights and data order, the same for both.
        metric: what was compared; it does not depend on the loss.
        with_it, without: the score of each seed with the intervention and without it; higher is better.
        steps: of each descent.
        cost_steps: what the intervention's descents cost in all.
        accepted: whether it helped beyond the noise of the seeds.
    """

    intervention: str
    control: str
    seeds: tuple[int, ...]
    metric: str
    with_it: tuple[float, ...]
    without: tuple[float, ...]
    steps: int
    cost_steps: int
    accepted: bool

    @property
    def effect(self) -> float:
        """Mean paired difference of the scores."""
        return sum(a - b for a, b in zip(self.with_it, self.without, strict=True)) / len(self.seeds)

    @property
    def interval(self) -> tuple[float, float]:
        """Two standard errors around the effect."""
        error = self.error
        return self.effect - 2 * error, self.effect + 2 * error

    @property
    def error(self) -> float:
        """Standard error of the effect over the seeds."""
        differences = [a - b for a, b in zip(self.with_it, self.without, strict=True)]
        if len(differences) < 2:
            return 0.0
        mean = sum(differences) / len(differences)
        return math.sqrt(sum((d - mean) ** 2 for d in differences) / (len(differences) - 1) / len(differences))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that fit in JSON."""
        return asdict(self) | {"effect": self.effect, "interval": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.metric} {_mean(self.without):.3g} -> {_mean(self.with_it):.3g} "
            f"(effect {self.effect:+.2g}, {low:+.2g} to {high:+.2g}) over {len(self.seeds)} seeds of {self.steps} steps"
        )


@dataclass(frozen=True)
class Finding:
    """A cause, most likely first in a report.

    Attributes:
        cause: one of :data:`CAUSES`.
        severity: fatal, serious or minor.
        confidence: the probability that this is a cause, 0 to 1.
        evidence: what was measured.
        explanation: in plain words.
        trial: the controlled re-run, or None where none was made.
        remedy: the edit, or None where no edit of Task or Recipe can help.
        advice: what to do by hand.
        instead_of: the cause that this one is another reading of: nothing that was seen or tried tells the two apart.
    """

    cause: str
    severity: Severity
    confidence: float
    evidence: tuple[Evidence, ...]
    explanation: str
    trial: Trial | None = None
    remedy: Remedy | None = None
    advice: str = ""
    instead_of: str = ""

    @property
    def page(self) -> str:
        """Where the documentation tells more of this cause; ``fogline explain`` prints it."""
        return address(self.cause)

    @property
    def sentence(self) -> str:
        """The cause with what to do about it and where, in a line."""
        line = next((f" (at {item.value})" for item in self.evidence if item.signal == "line"), "")
        todo = self.remedy.title if self.remedy is not None else self.advice
        explanation = self.explanation.split(". ")[0].rstrip(".")
        cause = f"{self.cause} (instead of {self.instead_of})" if self.instead_of else self.cause
        return f"{cause}: {explanation}{line}" + (f"; {todo}" if todo else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that fit in JSON."""
        trial = None if self.trial is None else self.trial.to_dict()
        remedy = None if self.remedy is None else {"title": self.remedy.title, "patch": self.remedy.patch}
        plain: dict[str, Any] = _jsonable(
            {
                "cause": self.cause,
                "severity": self.severity,
                "confidence": self.confidence,
                "evidence": [asdict(item) for item in self.evidence],
                "explanation": self.explanation,
                "trial": trial,
                "remedy": remedy,
                "advice": self.advice,
                "instead_of": self.instead_of,
                "page": self.page,
            }
        )
        return plain


def untried(
    cause: str,
    confidence: float,
    evidence: Evidence,
    explanation: str,
    remedy: Remedy | None = None,
    *,
    severity: Severity = "serious",
    more: Sequence[Evidence] = (),
    line: str = "",
    advice: str = "",
) -> Finding:
    """A finding of somebody else's loop: it was seen as the loop ran, at this line of code, and nothing was tried."""
    place = (Evidence("line", line),) if line else ()
    return Finding(cause, severity, confidence, (evidence, *more, *place), explanation, None, remedy, advice)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values) if values else math.nan


def _plain(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
