"""From ``"auto"`` to numbers: every field of a recipe that was left open, and why it became what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fogline.data.intake import Opened
from fogline.data.streamed import WINDOW_BYTES, Streamed
from fogline.descent.length import WARMUP, most_steps
from fogline.descent.optimizers import spec_of
from fogline.descent.schedules import canonical
from fogline.recipe import Recipe

_STEPS_AIMED = 2000
WORTH_ROUNDING = 3e9
"""Operations of a forward pass from which a step is faster in bfloat16 (docs/evidence/gpu.md)."""
_SELF_PACED = ("schedule_free", "prodigy")


OPTIMIZER = "adamw"
"""Where none is asked for."""


@dataclass
class Resolved:
    """A recipe being resolved, with the reason of each choice.

    Attributes:
        recipe: as far as it is resolved.
        why: value and reason by field.
    """

    recipe: Recipe
    why: dict[str, dict[str, Any]] = field(default_factory=dict)

    def choose(self, name: str, value: Any, reason: str) -> None:
        """Set a field and remember the reason."""
        self.recipe = self.recipe.replace(**{name: value})
        self.why[name] = {"value": value, "why": reason}


def resolve_by_rule(recipe: Recipe, opened: Opened, model: nn.Module) -> Resolved:
    """Everything that needs no measurement; the learning rate and the step mode come later.

    Raises:
        ValueError: a full batch or a duration in epochs of a stream of unknown length.
    """
    found = Resolved(recipe)
    if recipe.optimizer == "auto":
        found.choose("optimizer", OPTIMIZER, "robust on almost everything")
    if recipe.device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        found.choose("device", accelerator.type if accelerator else "cpu", "the accelerator if there is one")
    _check_device(found.recipe.device)
    _batch(found, opened)
    open_ended = recipe.duration == "auto" and recipe.schedule in ("auto", "wsd")
    _schedule(found, open_ended)
    _duration(found, opened, open_ended)
    if recipe.precision == "auto" and any(p.dtype == torch.float64 for p in model.parameters()):
        found.choose("precision", "float64", "the type of the model's weights")
    if isinstance(opened.train, Streamed) and recipe.window == "auto":
        rows, size = opened.train.window_rows, opened.train.window_rows * opened.train.row_bytes / (1 << 20)
        why = f"{WINDOW_BYTES >> 20} MiB or the largest chunk; two windows of {size:.1f} MiB are in memory at most"
        found.choose("window", rows, why)
    if opened.facts.shuffle is False and recipe.shuffle:
        found.choose("shuffle", False, "the DataLoader that was given does not shuffle")
    return found


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a device that is not there
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        here = "cpu" if accelerator is None else f"cpu or {accelerator.type}"
        raise ValueError(
            f"device: expected {here}, which are here, received {name!r} ({str(error).splitlines()[0]})"
        ) from None


def batch_rows(recipe: Recipe, examples: int | None) -> int:
    """Examples of one optimizer step."""
    if recipe.batch_size == "full":
        if examples is None:
            raise ValueError("batch_size='full': expected data of known length, received a stream; give a number")
        return examples
    assert isinstance(recipe.batch_size, int)
    return recipe.batch_size * recipe.accumulate


def usual_batch_size(examples: int) -> int:
    """The power of two nearest ``1.5 * sqrt(examples)``, from 8 to 256.

    >>> usual_batch_size(100), usual_batch_size(500), usual_batch_size(10**6)
    (16, 32, 256)
    """
    return min(256, max(8, 1 << round(math.log2(max(1.0, 1.5 * math.sqrt(examples))))))


def takes_all_examples(optimizer: str | type[torch.optim.Optimizer]) -> bool:
    """Whether a method needs the gradient of all examples."""
    return spec_of(optimizer).needs_closure or optimizer in ("gd", "rprop")


def _batch(found: Resolved, opened: Opened) -> None:
    if found.recipe.batch_size != "auto":
        return
    examples = opened.train.size
    if takes_all_examples(found.recipe.optimizer):
        found.choose("batch_size", "full", "this method needs the gradient of all examples")
    elif opened.facts.batch_size is not None:
        found.choose("batch_size", opened.facts.batch_size, "the batch size of the DataLoader that was given")
    elif examples is None:
        found.choose("batch_size", 64, "a stream of unknown length")
    else:
        why = "the power of two nearest 1.5 * sqrt(examples), 8 to 256"
        found.choose("batch_size", usual_batch_size(examples), why)


def _duration(found: Resolved, opened: Opened, open_ended: bool) -> None:
    if found.recipe.duration != "auto":
        return
    examples = opened.train.size
    if open_ended:
        most = most_steps(batch_rows(found.recipe, examples), examples)
        found.why["duration"] = {"value": "auto", "why": f"until nothing more is gained, {most:,} steps at most"}
        return
    if examples is None:
        found.choose("duration", f"{_STEPS_AIMED}st", "a stream of unknown length")
        return
    steps = math.ceil(examples / batch_rows(found.recipe, examples))
    epochs = min(200, max(5, math.ceil(_STEPS_AIMED / steps)))
    found.choose("duration", f"{epochs}ep", f"about {_STEPS_AIMED} steps, 5 to 200 epochs")


def _schedule(found: Resolved, open_ended: bool) -> None:
    recipe, spec = found.recipe, spec_of(found.recipe.optimizer)
    fixed = spec.needs_closure or not spec.schedulable or recipe.optimizer in _SELF_PACED
    if recipe.schedule == "auto":
        if fixed:
            found.choose("schedule", "constant", "the method paces itself")
        elif open_ended:
            found.choose("schedule", "wsd", "the length is open: constant, and to zero once nothing more is gained")
        else:
            found.choose("schedule", "linear", "to zero, so that the last steps do not jitter")
    elif recipe.schedule != canonical(recipe.schedule):
        found.recipe = recipe.replace(schedule=canonical(recipe.schedule))
    if recipe.warmup == "auto":
        none = spec.needs_closure or not spec.schedulable or found.recipe.schedule in ("one_cycle", "constant")
        if none:
            found.choose("warmup", 0, "no warm-up is needed")
        elif open_ended:
            found.choose("warmup", WARMUP, "a number of steps, since the length is open")
        else:
            found.choose("warmup", 0.05, "5 % of the run")


def resolve_precision(found: Resolved, operations: float) -> None:
    """bfloat16 where products of matrices are most of a step; elsewhere it costs digits and gains nothing.

    Args:
        found: of which ``precision="auto"`` is resolved, and nothing else is touched.
        operations: floating-point operations of a forward pass over one batch.
    """
    if found.recipe.precision != "auto":
        return
    if found.recipe.device != "cuda" or not torch.cuda.is_bf16_supported():
        found.choose("precision", "float32", "no faster type that is safe here")
    elif operations < WORTH_ROUNDING:
        found.choose("precision", "float32", "so small a step would not be faster in bfloat16")
    else:
        found.choose("precision", "bf16", "this GPU computes in bfloat16")
