"""What entered the operations of a batch, and which of it lies where their derivative is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import Batch, cast, float_type, leaves, rows_of
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import operation
from fogline.doctor.case import CPU, FAILURES, Program
from fogline.doctor.closeup import some_rows
from fogline.doctor.examination import Examination

_MOST_NODES = 20_000
_LOGS = ("Log", "Log2", "Log10", "Log1P")


@dataclass(frozen=True)
class Hazard:
    """An operation that was given a value it has no finite result or slope for.

    Attributes:
        name: as the field calls it.
        low, high: of what went in.
        bad: how many of the values it has no answer to; ``share`` of all of them.
        zero: whether those were zeros; else they were negative, or infinite.
        guarded: a constant was added, or a clamp stands before it, and did not help.
        rows: of the batch, where its first dimension is that of the rows.
    """

    name: str
    low: float
    high: float
    bad: int
    share: float
    zero: bool
    guarded: bool
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """Loss and hazards of one forward pass."""

    loss: float
    finite_gradient: bool
    hazards: tuple[Hazard, ...]
    outputs: Any
    targets: Any


def _look(exam: Examination, *, trained: bool) -> Look | None:
    """The program on some rows, with first or trained weights; None where it cannot be run or a row is not finite."""
    key = "numbers_trained" if trained else "numbers"
    if key not in exam.notes:
        exam.notes[key] = _looked(exam, some_rows(exam), trained)
    found = exam.notes[key]
    assert found is None or isinstance(found, Look)
    return found


def _looked(exam: Examination, batch: Batch, trained: bool) -> Look | None:
    if not trained:
        return looked_at(exam.program, batch)
    begun = exam.observed.start if exam.observed is not None else None
    return None if begun is None else _seen(copied(begun.objective.model).cpu().train(), exam.program, batch)


def looked_at(variant: Program, batch: Batch) -> Look | None:
    """A program on a batch, with the first weights of the run's own seed."""
    return _seen(variant.new_model(variant.case.recipe.seed), variant, batch)


def _seen(model: nn.Module, variant: Program, batch: Batch) -> Look | None:
    if not _finite(batch):
        return None
    floats = float_type(model)
    objective = Objective(model, variant.loss)
    with private_randomness(CPU), torch.enable_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            batch = _followed(cast(batch, floats)) if objective.supervised else cast(batch, floats)
            outputs, loss = objective.with_outputs(batch)
            parameters = [p for p in model.parameters() if p.requires_grad]
            if not isinstance(loss, Tensor) or loss.ndim or loss.grad_fn is None:
                return None
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        except FAILURES:  # the program's own, told by other causes
            return None
    rows = rows_of(batch)
    finite = all(g is None or bool(torch.isfinite(g.square().sum())) for g in gradients)  # as steps are judged
    hazards = tuple(hazard for node in _nodes(loss.grad_fn) for hazard in _hazards(node, rows))
    targets = batch[1] if objective.supervised else None
    return Look(
        float(loss.detach()), finite, hazards, outputs.detach() if isinstance(outputs, Tensor) else None, targets
    )


def _followed(batch: Batch) -> Batch:
    """The batch with a history of its inputs, so that autograd keeps what is made of them before the first weights."""
    inputs, targets = batch
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        inputs = inputs.detach().requires_grad_().clone()
    return inputs, targets


def _finite(batch: Batch) -> bool:
    return all(not leaf.is_floating_point() or bool(torch.isfinite(leaf).all()) for leaf in leaves(batch))


def _nodes(start: Any) -> Iterator[Any]:
    """From the loss back, breadth first."""
    queue, seen = [start], {start}
    while queue and len(seen) < _MOST_NODES:
        node = queue.pop(0)
        yield node
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                queue.append(before)


def _hazards(node: Any, rows: int) -> Iterator[Hazard]:
    name = operation(node)
    if name in _LOGS:
        value = _saved(node, "_saved_self")
        bad = None if value is None else (value + 1 if name == "Log1P" else value) <= 0
        yield from _hazard("log", node, value, bad, rows)
    elif name in ("Sqrt", "Rsqrt"):
        value = _saved(node, "_saved_result")
        if value is not None:
            yield from _hazard("square root", node, value, (value == 0) | ~torch.isfinite(value), rows)
    elif name == "Div":
        value = _saved(node, "_saved_other")
        if value is not None:
            yield from _hazard("division", node, value, value == 0, rows)
    elif name == "Exp":
        value = _saved(node, "_saved_result")
        if value is not None:
            yield from _hazard("exp", node, value, torch.isinf(value.square()), rows)  # as the norm of a slope has it
    elif name == "Pow":
        value, power = _saved(node, "_saved_self"), getattr(node, "_saved_exponent", None)
        if value is not None and isinstance(power, (int, float)) and power != int(power):
            yield from _hazard("power", node, value, value < 0 if power > 1 else value <= 0, rows)
    elif name == "Std":
        value = _saved(node, "_saved_result")
        if value is not None:
            yield from _hazard("standard deviation", node, value, (value == 0) | torch.isnan(value), rows)
    elif name in ("Acos", "Asin", "Atanh"):
        value = _saved(node, "_saved_self")
        if value is not None:
            yield from _hazard(name.lower(), node, value, value.abs() >= 1, rows)
    elif name in ("Softmax", "LogSoftmax"):
        value = _saved(node, "_saved_result")
        if value is not None and not bool(torch.isnan(value).all()):  # else it was given numbers that are none
            yield from _hazard("softmax", node, value, torch.isnan(value), rows)


def _saved(node: Any, name: str) -> Tensor | None:
    value = getattr(node, name, None)
    return value.detach() if isinstance(value, Tensor) and value.is_floating_point() and value.numel() else None


def _hazard(name: str, node: Any, value: Tensor | None, bad: Tensor | None, rows: int) -> Iterator[Hazard]:
    if value is None or bad is None or not bool(bad.any()):
        return
    finite = value[torch.isfinite(value)].float()
    where: tuple[int, ...] = ()
    if value.ndim and value.shape[0] == rows:
        where = tuple(bad.reshape(rows, -1).any(1).nonzero().flatten().tolist())
    yield Hazard(
        name,
        float(finite.min()) if finite.numel() else math.nan,
        float(finite.max()) if finite.numel() else math.nan,
        int(bad.sum()),
        float(bad.float().mean()),
        bool((value[bad] == 0).all()),
        _guarded(node),
        where,
    )


def _guarded(node: Any) -> bool:
    """Whether a clamp or an added constant stands right before an operation."""
    for _ in range(6):
        before = [following for following, _ in node.next_functions if following is not None]
        if len(before) != 1:
            return False
        node = before[0]
        name = operation(node)
        if name.startswith("Clamp"):
            return True
        if name == "Add":
            return sum(following is not None for following, _ in node.next_functions) == 1
        if name not in ("Rsub", "Sub", "ToCopy", "Index", "Select", "Squeeze", "Unsqueeze", "View", "Gather", "Mul"):
            return False
    return False


def broken(look: Look | None) -> bool:
    return look is not None and not (math.isfinite(look.loss) and look.finite_gradient)


def first_hazard(look: Look | None, *, logs: bool, guarded: bool | None = None) -> Hazard | None:
    """The operation nearest to the data that was given what it has no answer to."""
    if look is None:
        return None
    for hazard in reversed(look.hazards):
        is_log = hazard.name == "log" and hazard.zero
        if is_log == logs and (guarded is None or hazard.guarded == guarded):
            return hazard
    return None


def when(exam: Examination) -> tuple[Look | None, bool]:
    """The look at which the numbers break, and whether that is at once; (None, False) where they do not."""
    first = _look(exam, trained=False)
    if broken(first):
        return first, True
    seen = exam.observed
    if seen is None or not seen.refused:
        return None, False
    last = _look(exam, trained=True)
    return (last, False) if broken(last) else (None, False)


def batch_is_fine(exam: Examination) -> bool:
    loss = exam.anatomy.loss
    gradients = exam.anatomy.gradients.values()
    return (
        loss is not None and math.isfinite(loss) and all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
    )
