"""Causes in the loop: what is not trained, in which mode, on how many rows at a time.

A recipe's own loop clears gradients, divides accumulated losses and counts its schedule in steps, so the causes
``missing_zero_grad``, ``accumulation_scale`` and ``schedule_step_unit`` belong to loops that are watched; see
:mod:`fogline.doctor.watching`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fogline.data.source import cast, leaves
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import CPU, Anatomy
from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, RECIPE, WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import Wrapped, as_drawn, frozen_as_drawn, hidden_modules, replaced
from fogline.doctor.uncut import EvaluatesWithoutDropout, Uncut, Within, within

_FEW = 4
"""Values a channel at which the estimated variance is off by its own size: the error is sqrt(2 / (n - 1)) of it."""
_ENOUGH = 32
_STALE = 0.05  # share of the first statistics, 0 and 1, that is left in batch normalisation's running ones


def frozen_parameters(exam: Examination) -> Suspicion | None:
    """Parameters that ask for no gradient.

    A frozen part that was trained before is fine-tuning. One that is just as PyTorch draws it was never trained, and
    never will be: it is told by its values, since each layer's first weights follow a known law.
    """
    model = exam.anatomy.model
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad and p.is_floating_point()}
    if not frozen:
        return None
    total = sum(p.numel() for p in model.parameters())
    share = sum(p.numel() for p in frozen.values()) / max(1, total)
    whole = all(not p.requires_grad for p in model.parameters())
    untrained = frozen_as_drawn(model)
    if not whole and not untrained and not _learns_badly(exam):
        return None
    names = ", ".join(list(frozen)[:4]) + (", ..." if len(frozen) > 4 else "")
    remedy = Remedy(
        "let the frozen parameters learn",
        "model.requires_grad_(True)  # or leave out the requires_grad = False that freezes them",
        on_model=_unfrozen,
        place="frozen",
        order=BODY,
    )
    evidence = [Evidence("share of the weights that ask for no gradient", share, 0.0), Evidence("frozen", names)]
    if untrained:
        evidence.append(
            Evidence("frozen layers whose weights are as they were drawn", ", ".join(untrained[:4]), "none")
        )
    return Suspicion(
        "frozen_parameters",
        1.0 if whole else 0.7 if untrained else 0.3,
        tuple(evidence),
        "Every parameter has requires_grad=False, so there is nothing to train."
        if whole
        else "A part of the model has requires_grad=False and stays as it is. "
        + ("It holds random first weights: nobody ever trained it." if untrained else "The rest alone does not learn."),
        (remedy,),
        proof=whole,
        blocks=whole,
        severity="fatal" if whole else "serious",
    )


def _learns_badly(exam: Examination) -> bool:
    reference = exam.reference.score if exam.observed is not None else None
    return reference is not None and exam.observed is not None and exam.observed.best < reference - 0.1


def _unfrozen(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return module


def parameters_not_optimized(exam: Examination) -> Suspicion | None:
    """Layers in a plain list or dict: they compute, and ``model.parameters()`` does not have them."""
    anatomy = exam.anatomy
    hidden = [(name, m) for name, m in hidden_modules(anatomy.model) if any(p.requires_grad for p in m.parameters())]
    if not hidden:
        return None
    used = _in_graph(anatomy.outputs)
    reached = [(n, m) for n, m in hidden if any(id(p) in used for p in m.parameters())]
    if anatomy.outputs is not None and not reached:
        return None  # a teacher that is hidden on purpose, or nothing at all
    names = ", ".join(name for name, _ in (reached or hidden)[:4])
    count = sum(p.numel() for _, m in reached or hidden for p in m.parameters())
    return Suspicion(
        "parameters_not_optimized",
        0.9 if reached else 0.5,
        (
            Evidence("parameters that the outputs depend on and model.parameters() lacks", count, 0),
            Evidence("kept in plain lists or dicts", names),
        ),
        "Layers in a plain Python list or dict are no part of the model for PyTorch: the optimizer does not get their "
        "parameters, so they stay as they were drawn; nor are they saved, or moved to another device.",
        (
            Remedy(
                "register the layers",
                "self.layers = nn.ModuleList(layers)  # instead of a list; nn.ModuleDict instead of a dict",
                on_model=_registered,
                place="registration",
                order=BODY - 1,
            ),
        ),
        # One module in a list may be hidden on purpose (a frozen critic); several in one list are the model's layers.
        proof=len(reached) > 1,
    )


def _registered(module: nn.Module) -> nn.Module:
    found = hidden_modules(module)
    if found:
        module.add_module("registered", nn.ModuleList([inner for _, inner in found]))
    return module


def _in_graph(outputs: Any) -> set[int]:
    """Identities of the leaves that tensors depend on."""
    queue: list[Any] = [t.grad_fn for t in leaves(outputs) if t.grad_fn is not None]
    seen: set[Any] = set()
    found: set[int] = set()
    while queue and len(seen) < 20_000:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        queue += [before for before, _ in node.next_functions]
    return found


def detached_graph(exam: Examination) -> Suspicion | None:
    """Parameters that no gradient reaches, and that one reaches once the program's own cuts are left out."""
    anatomy = exam.anatomy
    trainable = [name for name, p in anatomy.named_parameters() if p.requires_grad]
    if not trainable or anatomy.stage in ("forward", "loss"):
        return None
    without = [name for name in trainable if anatomy.gradients.get(name) is None]
    if not without:
        return None
    whole = len(without) == len(trainable)
    if anatomy.stage == "backward" and not _no_graph(anatomy.error):
        return None
    cure = _uncut(exam, len(without))
    if cure is None and not whole:
        return None  # layers whose output nobody uses: harmless
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
        () if cure is None else cure.remedies,
        proof=whole or _as_drawn(anatomy, without),
        blocks=whole,
        severity="fatal" if whole else "serious",
        advice=advice,
    )


def _as_drawn(anatomy: Anatomy, without: list[str]) -> bool:
    """Whether the weights that stay as they are were never trained: nobody means to keep those."""
    owners = [name.rpartition(".")[0] for name in without if name.endswith("weight")]
    return bool(owners) and all(as_drawn(anatomy.model.get_submodule(name)) for name in owners)


def _no_graph(error: str) -> bool:
    return "does not require grad" in error or "grad_fn" in error or "not to have been used" in error


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
    for in_model, in_loss in ((True, False), (False, True), (True, True)):
        cuts = _reached_without_cuts(exam, in_model, in_loss, without)
        if cuts:
            return _Cure(cuts, (_without_cuts(cuts, in_model, in_loss),))
    return None


def _without_cuts(cuts: tuple[str, ...], in_model: bool, in_loss: bool) -> Remedy:
    where = " and ".join(w for w, there in (("the model", in_model), ("the loss", in_loss)) if there)
    return Remedy(
        f"leave out {', '.join(cuts)} in {where}",
        f"remove {', '.join(cuts)} between the parameters and the loss, in {where}",
        on_model=(lambda module: Within(module, Uncut)) if in_model else None,
        on_loss=(lambda loss: within(loss, Uncut)) if in_loss else None,
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
    model = replaced(copy.deepcopy(exam.anatomy.model), name, lambda _: nn.Identity())
    objective = Objective(model, exam.program.loss)
    with private_randomness(CPU), torch.enable_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            return _unreached(objective(exam.anatomy.batch), model) < without
        except FAILURES:
            return False


def _unreached(loss: Tensor, model: nn.Module) -> int:
    """How many parameters no gradient reaches."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return sum(g is None for g in torch.autograd.grad(loss, parameters, allow_unused=True))


def _reached_without_cuts(exam: Examination, in_model: bool, in_loss: bool, without: int) -> tuple[str, ...]:
    """What was left out, where that lets gradients reach more parameters; empty where it does not."""
    model = copy.deepcopy(exam.anatomy.model)
    objective, mode = Objective(model, exam.program.loss), Uncut()
    with private_randomness(CPU), torch.enable_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            loss = _loss_within(objective, exam.anatomy.batch, mode, in_model, in_loss)
            left = _unreached(loss, model)
        except FAILURES:
            return ()
    return tuple(mode.cuts) if left < without else ()


def _loss_within(objective: Objective, batch: Any, mode: Uncut, in_model: bool, in_loss: bool) -> Tensor:
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


def eval_mode_training(exam: Examination) -> Suspicion | None:
    """Batch normalisation that stays in evaluation mode while it trains, with statistics nobody ever took."""
    model = exam.anatomy.model
    stuck = [name for name, m in model.named_modules() if _is_norm(m) and not m.training and _never_seen(m)]
    if not stuck:
        return None
    return Suspicion(
        "eval_mode_training",
        0.6,
        (Evidence("batch normalisation in evaluation mode during training", ", ".join(stuck[:4]), "none"),),
        "These layers stay in evaluation mode though the model is trained, and their running mean and variance are the "
        "0 and 1 they were made with: they normalise nothing.",
        (
            Remedy(
                "let batch normalisation follow the mode of the model",
                "remove the .eval() inside the model's forward() or train()",
                on_model=FollowsMode,
                place="mode",
                order=WRAP,
            ),
        ),
    )


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _never_seen(module: nn.Module) -> bool:
    seen = getattr(module, "num_batches_tracked", None)
    return isinstance(seen, Tensor) and int(seen) == 0


class FollowsMode(Wrapped):
    """A model whose batch normalisation is in the model's own mode at every call, whatever the model does to it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(self._follow)

    def _follow(self, module: nn.Module, _: Any) -> None:
        module.training = self.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped_model(*args, **kwargs)


def train_mode_eval(exam: Examination) -> Suspicion | None:
    """``F.dropout`` with its default ``training=True``: it goes on dropping units when the model is evaluated."""
    model = copy.deepcopy(exam.anatomy.model).eval()
    inputs = exam.anatomy.batch[0] if exam.case.supervised else None
    if inputs is None:
        return None
    mode = EvaluatesWithoutDropout()
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with private_randomness(CPU), torch.no_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            with mode:
                model(cast(inputs, floats))
        except FAILURES:
            return None
    if not mode.dropped:
        return None
    return Suspicion(
        "train_mode_eval",
        0.6,
        (Evidence("dropout in evaluation mode", "drops units", "does nothing"),),
        "A dropout called as a function drops units also in evaluation mode, because it does not know of the mode: "
        "predictions are noisy and worse than they need be.",
        (
            Remedy(
                "tell the dropout of the mode",
                "F.dropout(x, p, training=self.training)",
                on_model=lambda module: Within(module, EvaluatesWithoutDropout, only_evaluating=True),
                place="mode",
                order=WRAP,
            ),
        ),
        severity="minor",
    )


def stale_statistics(exam: Examination) -> Suspicion | None:
    """Batch normalisation whose running statistics cannot settle within the run: evaluation is another function.

    After n steps with momentum m a share (1 - m)^n of the first statistics is left; with a momentum near 1, as Keras
    counts it, they are those of the last batch alone.
    """
    observed = exam.observed
    if observed is None or not math.isfinite(observed.train_loss) or observed.steps < 2:
        return None
    norms = [(n, m) for n, m in exam.anatomy.named_modules() if _is_norm(m) and _unsettled(m, observed.steps)]
    if not norms:
        return None
    late = observed.losses[-max(3, observed.steps // 10) :]
    late = late[np.isfinite(late)]
    if not len(late) or observed.train_loss <= late.mean() + 3 * late.std():
        return None
    momenta = ", ".join(f"{module.momentum:g}" for _, module in norms[:3] if isinstance(module.momentum, float))
    return Suspicion(
        "train_mode_eval",
        0.7,
        (
            Evidence("momentum of the running statistics", momenta, 0.1, layer=norms[0][0]),
            Evidence("loss on learned rows in evaluation mode", observed.train_loss, float(late.mean())),
        ),
        "In evaluation mode the model is another function than the one that was trained: batch normalisation's running "
        "statistics do not settle with this momentum (PyTorch's is the share of the new batch: Keras' 0.99 is 0.01).",
        (
            Remedy(
                "momentum 0.1 in batch normalisation",
                "nn.BatchNorm1d(width, momentum=0.1)",
                on_model=_settling,
                place="norm",
                order=BODY,
            ),
        ),
    )


def _unsettled(module: nn.Module, steps: int) -> bool:
    momentum = getattr(module, "momentum", None)
    return isinstance(momentum, float) and (momentum > 0.5 or (1 - momentum) ** steps > _STALE)


def _settling(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.1
    return model


def tiny_batch_norm(exam: Examination) -> Suspicion | None:
    """Batch normalisation over so few values that its variance is chance.

    Of n values the estimated variance is off by sqrt(2 / (n - 1)) of itself: by half at 9, by all of it at 3.
    """
    asked, recipe = exam.program.recipe.batch_size, exam.program.recipe
    rows = asked if isinstance(asked, int) else max(1, exam.case.batch_size // max(1, recipe.accumulate))
    size = len(leaves(exam.anatomy.batch)[0])
    worst = min(_values_a_channel(exam, rows, size), key=lambda pair: pair[1], default=None)
    everything = len(leaves(exam.case.train.inputs)[0])
    last = everything % rows if rows <= everything else 0
    if worst is None or (worst[1] > _FEW and rows > _FEW and last != 1):
        return None
    name, values = worst
    alone = last == 1 and values // rows <= 1 and rows > 1
    if not alone and rows > _FEW and values > _FEW:
        return None
    strength = 0.8 if values <= _FEW else 0.6  # the pixels of a row are no independent draws
    return Suspicion(
        "tiny_batch_norm",
        strength,
        (
            Evidence("values a channel that its statistics are made of", 1 if alone else values, f"{_ENOUGH} or more",
                     layer=name),
            Evidence("rows a batch", rows, _ENOUGH),
        ),
        "The last batch of an epoch has a single row, of which batch normalisation can take no variance: PyTorch stops "
        "with an error there."
        if alone and values > _FEW
        else f"Batch normalisation takes mean and variance from {rows} rows, which is mostly chance: the same row "
        "comes out different in every batch, and different again when the model is evaluated.",
        (_larger_batches(exam, rows, alone and values > _FEW), _group_norm()),
        proof=alone and values > _FEW,
        blocks=alone and values > _FEW,
    )  # fmt: skip


def _values_a_channel(exam: Examination, rows: int, size: int) -> Iterator[tuple[str, int]]:
    for layer in exam.anatomy.layers:
        given = layer.received
        if isinstance(layer.module, _BatchNorm) and layer.module.training and given is not None and given.ndim > 1:
            a_row = given.numel() / max(1, given.shape[1]) / max(1, size)
            yield layer.name, max(1, round(a_row * rows))


def _larger_batches(exam: Examination, rows: int, alone: bool) -> Remedy:
    size = len(leaves(exam.case.train.inputs)[0])
    wanted, planned = min(size, rows + 1 if alone else _ENOUGH), exam.planned
    while wanted < size and size % wanted == 1:
        wanted += 1
    if alone:
        return Remedy(
            f"batches of {wanted} rows, so that none has a single one",
            f"batch_size={wanted}  # or drop_last=True in the DataLoader",
            on_recipe=lambda recipe: recipe.replace(batch_size=wanted, accumulate=1),
            place="batch",
            order=RECIPE,
        )
    return Remedy(
        f"batches of {wanted} rows instead of {rows}, for as many steps",
        f'fogline.Recipe(batch_size={wanted}, duration="{planned}st")',
        on_recipe=lambda recipe: recipe.replace(batch_size=wanted, accumulate=1, duration=f"{planned}st"),
        place="batch",
        order=RECIPE,
    )


def _group_norm() -> Remedy:
    return Remedy(
        "normalise each row on its own: nn.GroupNorm in place of nn.BatchNorm",
        "nn.GroupNorm(1, width)  # in place of nn.BatchNorm1d(width)",
        on_model=_grouped,
        place="batch",
        order=BODY,
    )


def _grouped(model: nn.Module) -> nn.Module:
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    for name, module in norms:
        like = next(model.parameters())
        made = nn.GroupNorm(1, module.num_features, eps=module.eps, affine=module.affine).to(like.device, like.dtype)
        model = replaced(model, name, lambda _, made=made: made)  # type: ignore[misc]
    return model


def amp_scale_collapse(exam: Examination) -> Suspicion | None:
    """A forward pass that overflows in float16, whose largest number is 65,504: no scale of the loss can mend that."""
    anatomy = exam.anatomy
    if (
        exam.program.recipe.precision != "fp16"
        or anatomy.stage
        or anatomy.loss is None
        or not math.isfinite(anatomy.loss)
    ):
        return None
    half = Objective(copy.deepcopy(anatomy.model), exam.program.loss, torch.float16)
    try:
        with private_randomness(CPU):
            seed_step(exam.case.recipe.seed, 0, PROBE, CPU)
            value = float(half.value(anatomy.batch))
    except FAILURES:
        return None  # an operation without a float16 form
    if math.isfinite(value):
        return None
    remedy = Remedy(
        "compute in float32",
        'fogline.Recipe(precision="float32"), or "bf16", whose range is that of float32',
        on_recipe=lambda recipe: recipe.replace(precision="float32"),
        place="precision",
        order=RECIPE,
    )
    return Suspicion(
        "amp_scale_collapse",
        1.0,
        (Evidence("loss of the first batch in float16", value, anatomy.loss),),
        "In float16 the forward pass overflows on the first batch. The gradient scaler takes that for a scale that is "
        "too high, halves it again and again, and leaves every step out.",
        (remedy,),
        proof=True,
        severity="fatal",
    )


ON_ONE_BATCH = (
    amp_scale_collapse,
    frozen_parameters,
    parameters_not_optimized,
    detached_graph,
    eval_mode_training,
    train_mode_eval,
    tiny_batch_norm,
)
IN_MOTION = (frozen_parameters, stale_statistics)
