"""A loss that gradients do not come back from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import CPU, NO_TENSOR, Anatomy
from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.inventory import as_drawn
from fogline.doctor.matching import matching
from fogline.doctor.standing import standing
from fogline.doctor.surgery import bare, replaced
from fogline.doctor.uncut import Softened, Uncut, WithGraph, Within, within

_CHANGED = 1e-4  # of the loss


def detached_graph(exam: Examination) -> Suspicion | None:
    """Parameters that no gradient reaches, and that one reaches once the program's own cuts are left out."""
    anatomy = exam.anatomy
    trainable = [name for name, p in anatomy.named_parameters() if p.requires_grad]
    if not trainable or anatomy.stage in ("forward", "loss"):
        return None
    without = [name for name in trainable if not _comes_back(anatomy.gradients.get(name))]
    if not without or (anatomy.stage == "backward" and not _no_graph(anatomy.error)):
        return None
    whole = len(without) == len(trainable)
    cure = _uncut(exam, len(without))
    apart = all(anatomy.gradients.get(name) is None for name in without)
    if cure is None and not (apart and (whole or (_as_drawn(anatomy, without) and _matter(exam, without)))):
        return None  # layers whose output nobody uses are harmless, and what else makes gradients zero has its causes
    names = ", ".join(without[:4]) + (", ..." if len(without) > 4 else "")
    cuts = ", ".join(cure.cuts) if cure is not None else ""
    advice = "" if cure is not None else (
        "compute the loss from the model's own outputs with torch operations that have a derivative: no argmax, no "
        "comparison or rounding, no NumPy, no .item() in between"
    )  # fmt: skip
    return Suspicion(
        "detached_graph",
        1.0 if whole else 0.75,
        (
            Evidence("parameters that no gradient reaches", names, "none"),
            Evidence("share of the parameters", len(without) / len(trainable), 0.0),
            *((Evidence("what cuts the graph", cuts, "nothing"),) if cuts else ()),
        ),
        ("No parameter gets a gradient" if whole else "Some parameters get no gradient")
        + ": something between them and the loss cuts the graph"
        + (f" ({cuts}). Without the cut the gradient reaches them." if cuts else ". Nothing there can be learned."),
        cure.remedies if cure is not None else _another_loss(exam),
        proof=whole or _as_drawn(anatomy, without),
        blocks=whole,
        severity="fatal" if whole else "serious",
        advice=advice,
    )


def cut_inside(exam: Examination) -> Suspicion | None:
    """Cuts inside a model that lets gradients reach every parameter all the same, by another way, or for a part of it.

    Such as a state that is detached at every step of a sequence: the step learns, and never what the past was for. What
    stops a gradient is often meant to; so it must win a trial.
    """
    if not exam.case.supervised or exam.anatomy.stage or not standing(exam).improvable:
        return None
    cuts = _cuts_inside(exam)
    if not cuts:
        return None
    return Suspicion(
        "detached_graph",
        0.5,
        (Evidence("what cuts the graph inside the model", ", ".join(cuts), "nothing"),),
        f"Inside the model {', '.join(cuts)} stops the gradient on a part of its way: what comes before learns nothing "
        "of what it is used for behind.",
        (without_cuts(Uncut, cuts, in_model=True, in_loss=False),),
    )


def _cuts_inside(exam: Examination) -> tuple[str, ...]:
    """What cuts the graph in a pass of the model, where gradients are others without; empty where nothing does."""
    anatomy, mode = exam.anatomy, Uncut()
    model = copied(anatomy.model)
    with private_randomness(CPU), torch.enable_grad():
        seed_step(0, 0, PROBE, CPU)  # as the anatomy has it
        try:
            loss = loss_within(Objective(model, exam.program.loss), anatomy.batch, mode, in_model=True, in_loss=False)
            if not mode.cuts:
                return ()
            named = [(bare(name), p) for name, p in model.named_parameters() if p.requires_grad]
            slopes = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        except FAILURES:
            return ()
    changed = False
    for (name, _), slope in zip(named, slopes, strict=True):
        before = anatomy.gradients.get(name)
        same = slope is before if slope is None or before is None else torch.allclose(slope, before, 1e-3, 1e-9)
        changed |= not same
    return tuple(mode.cuts) if changed else ()


def _another_loss(exam: Examination) -> tuple[Remedy, ...]:
    """The loss that is usual for the targets, where outputs have a graph that this one cuts, as one of answers does."""
    outputs = exam.anatomy.outputs
    usual = matching(exam) if isinstance(outputs, Tensor) and outputs.requires_grad else None
    return () if usual is None else (usual,)


def _as_drawn(anatomy: Anatomy, without: list[str]) -> bool:
    """Whether the weights that stay as they are were never trained: nobody means to keep those.

    Linear, convolutional and recurrent layers tell; what else is cut off with them goes with them.
    """
    owners = [anatomy.model.get_submodule(name) for name in {name.rpartition(".")[0] for name in without}]
    telling = [owner for owner in owners if isinstance(owner, (nn.Linear, _ConvNd, nn.RNNBase))]
    return bool(telling) and all(as_drawn(owner) for owner in telling)


def _matter(exam: Examination, without: list[str]) -> bool:
    """Whether the loss is another one where these weights are: what they say is used, by a way that has no graph."""
    losses = []
    for moved in (False, True):
        model = copied(exam.anatomy.model)
        with private_randomness(CPU), torch.no_grad():
            for name, parameter in model.named_parameters():
                if moved and bare(name) in without:
                    parameter.mul_(-1.5)  # which also turns round what is chosen by them
            seed_step(0, 0, PROBE, CPU)
            try:
                losses.append(float(Objective(model, exam.program.loss).value(exam.anatomy.batch)))
            except FAILURES:
                return False
    return abs(losses[1] - losses[0]) > _CHANGED * abs(losses[0])


def _no_graph(error: str) -> bool:
    return (
        NO_TENSOR in error or "does not require grad" in error or "grad_fn" in error or "not to have been used" in error
    )


@dataclass(frozen=True)
class _Cure:
    """What leaves the cuts out, and what they were."""

    cuts: tuple[str, ...]
    remedies: tuple[Remedy, ...]


def _uncut(exam: Examination, without: int) -> _Cure | None:
    """The smallest edit after which gradients reach more parameters: of a module, of the model, of model and loss."""
    name = _cutting_module(exam)
    if name is not None and _reached_without_module(exam, name, without):
        remedy = Remedy(
            f"take module {name!r} out, which cuts the graph",
            f"replace {name!r} by nn.Identity(): return the tensor itself, not a detached copy",
            on_model=lambda module: replaced(module, name, lambda _: nn.Identity()),
            place="graph",
            order=BODY,
        )
        return _Cure((f"module {name!r}",), (remedy,))
    for mode in (Uncut, WithGraph, Softened):
        for in_model, in_loss in ((True, False), (False, True), (True, True)):
            cuts = _reached_without_cuts(exam, mode, in_model, in_loss, without)
            if cuts:
                return _Cure(cuts, (without_cuts(mode, cuts, in_model, in_loss),))
    return None


def without_cuts(mode: type[Uncut], cuts: tuple[str, ...], in_model: bool, in_loss: bool) -> Remedy:
    """Model and loss without what cuts the graph in them."""
    where = " and ".join(w for w, there in (("the model", in_model), ("the loss", in_loss)) if there)
    title = f"leave out {', '.join(cuts)} in {where}"
    patch = f"remove {', '.join(cuts)} between the parameters and the loss, in {where}"
    if mode is WithGraph:
        title = f"keep the graph of the derivatives that {where} takes"
        patch = f"torch.autograd.grad(..., create_graph=True)  # in {where}"
    return Remedy(
        title,
        patch,
        on_model=(lambda module: Within(module, mode)) if in_model else None,
        on_loss=(lambda loss: within(loss, mode)) if in_loss else None,
        place="graph",
        order=WRAP,
    )


def _cutting_module(exam: Examination) -> str | None:
    """A module without weights that gives back what it was given, less the graph."""
    for layer in exam.anatomy.layers:
        given, output = layer.received, layer.output
        if given is None or output is None or any(True for _ in layer.module.parameters()) or layer.node is not None:
            continue
        same = given.shape == output.shape and torch.equal(given, output)
        if same and layer.name and _has_weights_before(exam, layer.name) and not isinstance(layer.module, nn.Identity):
            return layer.name
    return None


def _has_weights_before(exam: Examination, name: str) -> bool:
    for layer in exam.anatomy.layers:
        if layer.name == name:
            return False
        if any(p.requires_grad for p in layer.module.parameters()):
            return True
    return False


def _reached_without_module(exam: Examination, name: str, without: int) -> bool:
    model = replaced(copied(exam.anatomy.model), name, lambda _: nn.Identity())
    objective = Objective(model, exam.program.loss)
    with private_randomness(CPU), torch.enable_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            return _unreached(objective(exam.anatomy.batch), model) < without
        except FAILURES:
            return False


def _comes_back(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())


def _unreached(loss: Tensor, model: nn.Module) -> int:
    """How many parameters no gradient reaches."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return sum(not _comes_back(g) for g in torch.autograd.grad(loss, parameters, allow_unused=True))


def _reached_without_cuts(
    exam: Examination, kind: type[Uncut], in_model: bool, in_loss: bool, without: int
) -> tuple[str, ...]:
    """What was left out, where that lets gradients reach more parameters; empty where it does not."""
    model = copied(exam.anatomy.model)
    objective, mode = Objective(model, exam.program.loss), kind()
    with private_randomness(CPU), torch.enable_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            loss = loss_within(objective, exam.anatomy.batch, mode, in_model, in_loss)
            left = _unreached(loss, model)
        except FAILURES:
            return ()
    return tuple(mode.cuts) if left < without else ()


def loss_within(objective: Objective, batch: Any, mode: TorchFunctionMode, in_model: bool, in_loss: bool) -> Tensor:
    """The loss of a batch, where its model, its function or both are run within a mode."""
    if not objective.supervised or (in_model and in_loss):
        with mode:
            return objective(batch)
    inputs, targets = batch
    assert callable(objective.loss)
    if in_model:
        with mode:
            outputs = objective.model(inputs)
        return objective.loss(outputs, targets)
    outputs = objective.model(inputs)
    with mode:
        return objective.loss(outputs, targets)
