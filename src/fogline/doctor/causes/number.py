"""Causes in the numbers themselves: NaN and infinity, logarithms of zero, constants below what a float can hold.

Autograd keeps what went into each operation that needs it for its derivative, so the values that entered a logarithm,
a root or a division can be looked at, wherever it stands.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline.data.source import Batch, cast, leaves
from fogline.descent.objective import Objective
from fogline.descent.optimizers import spec_of
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.descent.replay import explain_refusal
from fogline.doctor.anatomy import operation, rms
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.closeup import some_rows, wide
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, RECIPE, Evidence, Remedy, Suspicion
from fogline.doctor.standing import resolved, standing, steps_of

_MOST_NODES = 20_000
_SAFE = 1e-6
"""Probabilities are kept this far from 0 and 1: float32 still tells 1 - 1e-6 from 1."""
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
    if trained:
        begun = exam.observed.start if exam.observed is not None else None
        if begun is None:
            return None
        model = copy.deepcopy(begun.objective.model).cpu().train()
    else:
        model = exam.program.new_model(exam.case.recipe.seed)
    if not _finite(batch):
        return None
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    objective = Objective(model, exam.program.loss)
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
    rows = len(leaves(batch)[0])
    finite = all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
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
            yield from _hazard("exp", node, value, torch.isinf(value), rows)
    elif name == "Pow":
        value, power = _saved(node, "_saved_self"), getattr(node, "_saved_exponent", None)
        if value is not None and isinstance(power, (int, float)) and power != int(power):
            yield from _hazard("power", node, value, value < 0 if power > 1 else value <= 0, rows)
    elif name in ("Std", "LinalgVectorNorm", "Norm"):
        value = _saved(node, "_saved_result")
        if value is not None and name == "Std":
            yield from _hazard("standard deviation", node, value, value == 0, rows)


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


def _broken(look: Look | None) -> bool:
    return look is not None and not (math.isfinite(look.loss) and look.finite_gradient)


def _first_hazard(look: Look | None, *, logs: bool, guarded: bool | None = None) -> Hazard | None:
    """The operation nearest to the data that was given what it has no answer to."""
    if look is None:
        return None
    for hazard in reversed(look.hazards):
        is_log = hazard.name == "log" and hazard.zero
        if is_log == logs and (guarded is None or hazard.guarded == guarded):
            return hazard
    return None


def _when(exam: Examination) -> tuple[Look | None, bool]:
    """The look at which the numbers break, and whether that is at once; (None, False) where they do not."""
    first = _look(exam, trained=False)
    if _broken(first):
        return first, True
    seen = exam.observed
    if seen is None or not seen.refused:
        return None, False
    last = _look(exam, trained=True)
    return (last, False) if _broken(last) else (None, False)


def log_of_zero(exam: Examination) -> Suspicion | None:
    """The logarithm of an exact zero: a probability that has become too small for the floating-point type."""
    look, at_once = _when(exam)
    hazard = _first_hazard(look, logs=True, guarded=False)
    if look is None or hazard is None:
        return None
    return _of_log(exam, "log_of_zero", look, hazard, at_once, "and nothing keeps it from reaching 0")


def _of_log(exam: Examination, cause: str, look: Look, hazard: Hazard, at_once: bool, why: str) -> Suspicion:
    rows = f"rows {', '.join(map(str, hazard.rows[:8]))} of a batch" if hazard.rows else "a batch"
    return Suspicion(
        cause,
        0.9,
        (
            Evidence("values of exactly 0 given to a logarithm", hazard.bad, 0),
            Evidence("what went in", f"{hazard.low:.3g} to {hazard.high:.3g}", "above 0"),
            Evidence("loss", look.loss, "finite"),
        ),
        f"A logarithm is given exactly 0 ({rows}), {why}: the loss or its gradient is then infinite or not a number, "
        "and one such row spoils the whole step.",
        tuple(_safer(exam, look)),
        proof=True,
        blocks=at_once and not _batch_is_fine(exam),
        severity="fatal" if at_once else "serious",
        advice="compute the loss from logits: nn.CrossEntropyLoss or nn.BCEWithLogitsLoss take the logarithm safely",
    )


def _batch_is_fine(exam: Examination) -> bool:
    loss = exam.anatomy.loss
    gradients = exam.anatomy.gradients.values()
    return (
        loss is not None and math.isfinite(loss) and all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
    )


class Clamped(nn.Module):
    """A loss on probabilities that are kept away from 0 and 1, where their logarithms are infinite."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = self.loss(outputs.clamp(_SAFE, 1 - _SAFE), targets)
        return found


def nll_of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of probabilities and labels, or rows of probabilities."""
    logarithms = outputs.clamp(_SAFE, 1).log()
    if targets.is_floating_point():
        return -(targets * logarithms).sum(1).mean()
    return F.nll_loss(logarithms, targets)


def _safer(exam: Examination, look: Look) -> Iterator[Remedy]:
    """The same loss in a form that cannot overflow, where one of PyTorch's own gives the same numbers; else a clamp."""
    if not exam.case.supervised or not isinstance(look.outputs, Tensor) or not isinstance(look.targets, Tensor):
        return
    for name, loss in _KNOWN.items():
        if _same(exam.program.loss, loss, look):
            yield Remedy(f"use {name}", f"loss={name}", on_loss=_replacing(loss), place="loss", order=LOSS)
            break
    outputs = look.outputs[torch.isfinite(look.outputs)]
    if outputs.numel() and float(outputs.min()) >= 0 and float(outputs.max()) <= 1:
        yield Remedy(
            "keep the probabilities away from 0 and 1 before the loss",
            "loss=lambda outputs, targets: your_loss(outputs.clamp(1e-6, 1 - 1e-6), targets)",
            on_loss=Clamped,
            place="loss",
            order=LOSS,
        )


def _replacing(loss: Any) -> Callable[[Any], Any]:
    return lambda _: loss


_KNOWN: dict[str, Any] = {
    "nn.CrossEntropyLoss()": nn.CrossEntropyLoss(),
    "nn.BCEWithLogitsLoss()": nn.BCEWithLogitsLoss(),
    "nn.BCELoss()": nn.BCELoss(),
    "a cross-entropy that clamps its probabilities": nll_of_probabilities,
}


def _same(loss: Any, other: Any, look: Look) -> bool:
    """Whether two losses agree on harmless outputs of the same kind, drawn twice."""
    outputs, targets = look.outputs, look.targets
    finite = outputs[torch.isfinite(outputs)]
    probabilities = bool(finite.numel()) and float(finite.min()) >= 0 and float(finite.max()) <= 1
    with private_randomness(CPU), torch.no_grad():
        seed_step(0, 1, PROBE, CPU)
        for _ in range(2):
            drawn = torch.randn(outputs.shape, dtype=torch.float32)
            if probabilities:
                drawn = drawn.softmax(1) if outputs.ndim == 2 and outputs.shape[1] > 1 else drawn.sigmoid()
            try:
                first, second = float(loss(drawn, targets)), float(other(drawn, targets))
            except FAILURES:
                return False
            if not math.isclose(first, second, rel_tol=1e-2):
                return False
    return True


def epsilon_underflow(exam: Examination) -> Suspicion | None:
    """A constant that should keep a number from 0, or steps from infinity, and is out of proportion to it."""
    look, at_once = _when(exam)
    hazard = _first_hazard(look, logs=True, guarded=True)
    if look is not None and hazard is not None:
        why = "although a small constant was put there to prevent it: it is too small for the floating-point type"
        return _of_log(exam, "epsilon_underflow", look, hazard, at_once, why)
    return None if exam.observed is None else _of_optimizer(exam)


def _of_optimizer(exam: Examination) -> Suspicion | None:
    """Adam divides by sqrt(v) + eps: where gradients are below eps, eps decides, and the steps are almost nothing."""
    recipe = resolved(exam)
    name = spec_of(recipe.optimizer).name
    if name not in ("adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad") or exam.anatomy.stage:
        return None
    epsilon = float(recipe.options.get("eps", 1e-10 if name == "adagrad" else 1e-8))
    matrices = {n: p.numel() for n, p in exam.anatomy.named_parameters() if p.ndim >= 2}
    slopes = sorted(rms(exam.anatomy.gradients.get(n)) for n in matrices)
    if not slopes or not 0 < slopes[-1] < epsilon or not standing(exam).short or steps_of(exam).path > 0.5:
        return None
    smaller = float(f"{max(slopes[len(slopes) // 2], 1e-18) * 1e-3:.0e}")
    return Suspicion(
        "epsilon_underflow",
        0.75,
        (
            Evidence("largest gradient of a layer, root mean square", slopes[-1], f"well above eps = {epsilon:g}"),
            Evidence("way that the weights went, relative to them", steps_of(exam).path, "1 or more"),
        ),
        f"{name} divides each gradient by its usual size plus eps = {epsilon:g}. Here gradients are smaller than eps, "
        "so that they are divided by eps, and the steps are almost nothing.",
        (
            Remedy(
                f"eps {smaller:g} instead of {epsilon:g}",
                f'fogline.Recipe(options={{"eps": {smaller:g}}})',
                on_recipe=lambda recipe: recipe.replace(options={**recipe.options, "eps": smaller}),
                place="epsilon",
                order=RECIPE,
            ),
        ),
    )


def nan_source(exam: Examination) -> Suspicion | None:
    """NaN or infinity that the program makes of finite rows: the first module and operation, and the rows."""
    look, at_once = _when(exam)
    if look is None or _first_hazard(look, logs=True) is not None:
        return None
    hazard = _first_hazard(look, logs=False)
    module, rows, taken_in = _first_module(exam) if at_once else ("", (), "")
    if hazard is None and not module:
        if not (at_once and math.isnan(look.loss) and _moderate(look.outputs)):
            return None  # what only grew beyond all numbers is told by the causes of that
        rows, taken_in = _rows_of_loss(exam), _ranges(look)
    if not at_once and hazard is not None and hazard.name in ("exp", "division"):
        return None
    where = f"module {module!r}" if module else "the loss"
    what = f"a {hazard.name} of numbers from {hazard.low:.3g} to {hazard.high:.3g}" if hazard else "an operation"
    if hazard is None and not module:
        what = "an operation on outputs or targets that is not defined for all numbers"
    found = list((hazard.rows if hazard and hazard.rows else rows)[:8])
    evidence = [Evidence("first that is not finite", where, "nothing", layer=module or None)]
    if hazard is not None:
        evidence.append(Evidence(f"values that the {hazard.name} has no answer or no slope for", hazard.bad, 0))
    if taken_in:
        evidence.append(Evidence("what went into it", taken_in))
    if found:
        evidence.append(Evidence("rows of the batch looked at", ", ".join(map(str, found))))
    return Suspicion(
        "nan_source",
        0.9,
        tuple(evidence),
        f"The rows are finite, but {where} makes something of them that is not: {what}. Every step with such a row is "
        "lost, or takes the weights with it.",
        tuple(_within_domain(exam, look, module)),
        proof=True,
        blocks=at_once and not _batch_is_fine(exam),
        severity="fatal" if at_once else "serious",
        advice=f"keep what goes into {what.split(' of ')[0]} inside its domain, or add a small constant to it",
    )


def _moderate(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) and bool(torch.isfinite(outputs).all()) and float(outputs.abs().max()) < 1e4


def _ranges(look: Look) -> str:
    parts = [
        f"{what} from {float(value.min()):.3g} to {float(value.max()):.3g}"
        for what, value in (("outputs", look.outputs), ("targets", look.targets))
        if isinstance(value, Tensor) and value.numel()
    ]
    return ", ".join(parts)


def _rows_of_loss(exam: Examination) -> tuple[int, ...]:
    """Rows whose loss is not finite on its own, by replaying them one by one."""
    model = exam.program.new_model(exam.case.recipe.seed)
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    batch = cast(some_rows(exam, 64), floats)
    with private_randomness(CPU):
        try:
            told = explain_refusal(Objective(model, exam.program.loss), batch, 0, 0, CPU, None)
        except FAILURES:  # the program's own, told by other causes
            return ()
    return tuple(told["rows"])


def _within_domain(exam: Examination, look: Look, module: str) -> Iterator[Remedy]:
    """For numbers whose loss has a narrower domain than they have: the squared error has none."""
    if module or exam.case.yardstick.work != "regression" or look.outputs is None:
        return
    if getattr(look.targets, "shape", None) != look.outputs.shape:
        return
    yield Remedy("use nn.MSELoss()", "loss=nn.MSELoss()", on_loss=lambda _: nn.MSELoss(), place="loss", order=LOSS)


def _first_module(exam: Examination) -> tuple[str, tuple[int, ...], str]:
    """The first module that gives something not finite, its rows, and the range of what it was given.

    Where all modules give finite numbers, the last one whose gradient is not finite: back-propagation reaches it first.
    """
    anatomy = wide(exam)
    for layer in anatomy.layers:
        if layer.output is None or not layer.output.is_floating_point() or bool(torch.isfinite(layer.output).all()):
            continue
        given = layer.received
        ranged = "" if given is None or not given.numel() else f"{float(given.min()):.3g} to {float(given.max()):.3g}"
        bad = ~torch.isfinite(layer.output.reshape(len(layer.output), -1)).all(1)
        return layer.name, tuple(bad.nonzero().flatten().tolist()), ranged
    return "", (), ""


ON_ONE_BATCH = (log_of_zero, epsilon_underflow, nan_source)
IN_MOTION = (log_of_zero, epsilon_underflow, nan_source)
