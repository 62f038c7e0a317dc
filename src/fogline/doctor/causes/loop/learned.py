"""Weights that no step changes: frozen, or unknown to the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fogline.data.source import leaves
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.fleeting import keeping, made_anew
from fogline.doctor.inventory import frozen_as_drawn, hidden_modules, loose_tensors
from fogline.doctor.standing import LEARNS
from fogline.doctor.surgery import core, with_parameters

_MOST = 0.5  # of the weights
_MUCH = 0.5
_FEWEST_NUMBERS, _DISTINCT = 8, 0.99
"""Of a tensor that may be weights, and the share of them that differ: constants repeat themselves."""


def frozen_parameters(exam: Examination) -> Suspicion | None:
    """Parameters that ask for no gradient.

    A frozen part that was trained before is fine-tuning. One that is just as PyTorch draws it was never trained, and
    never will be: it is told by its values, since each layer's first weights follow a known law.
    """
    model = core(exam.anatomy.model)
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
        1.0 if whole else 0.7 if untrained else 0.5 if share > _MOST else 0.3,
        tuple(evidence),
        "Every parameter has requires_grad=False, so there is nothing to train."
        if whole
        else "A part of the model has requires_grad=False and stays as it is. "
        + ("It holds random first weights: nobody ever trained it." if untrained else "The rest alone does not learn."),
        (remedy,),
        proof=whole or (bool(untrained) and share > _MOST and _learns_nothing(exam)),
        blocks=whole,
        severity="fatal" if whole else "serious",
    )


def _learns_nothing(exam: Examination) -> bool:
    """Whether all that random features are good for here is nothing, while there is much to be learned."""
    reference = exam.reference.score if exam.observed is not None else None
    return reference is not None and exam.observed is not None and exam.observed.best < LEARNS < _MUCH < reference


def _learns_badly(exam: Examination) -> bool:
    reference = exam.reference.score if exam.observed is not None else None
    return reference is not None and exam.observed is not None and exam.observed.best < reference - 0.1


def _unfrozen(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return module


def parameters_not_optimized(exam: Examination) -> Suspicion | None:
    """Layers that compute, and that ``model.parameters()`` does not have."""
    return _in_plain_lists(exam) or _made_in_forward(exam) or loose_weights(exam)


def _in_plain_lists(exam: Examination) -> Suspicion | None:
    """Layers in a plain list or dict."""
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


def _made_in_forward(exam: Examination) -> Suspicion | None:
    """Layers that are made while the model runs, with new first weights in each pass."""
    anatomy = exam.anatomy
    known = {id(p) for p in anatomy.model.parameters()}
    if anatomy.stage == "forward" or (anatomy.outputs is not None and _in_graph(anatomy.outputs) <= known):
        return None
    loss, batch = exam.program.loss, anatomy.batch
    made = made_anew(anatomy.model, loss, batch)
    if not made:
        return None
    return Suspicion(
        "parameters_not_optimized",
        0.95,
        (
            Evidence("parameters that are made anew in each pass", sum(p.numel() for p in made), 0),
            Evidence("their shapes", ", ".join(str(tuple(p.shape)) for p in made[:4])),
        ),
        "Layers are made inside forward(): each pass draws new weights for them and forgets them. The optimizer never "
        "gets them, and the same input gives another output each time.",
        (
            Remedy(
                "make the layers once, where the model is made",
                "self.layer = nn.Linear(...)  # in __init__; forward() calls self.layer(x)",
                on_model=keeping(loss, batch),
                place="registration",
                order=BODY - 1,
            ),
        ),
        proof=True,
        severity="fatal",
    )


def loose_weights(exam: Examination) -> Suspicion | None:
    """Weights that are plain tensors among a model's attributes: no optimizer gets them.

    Those that ask for a gradient are meant to learn. Of others it is likely where their numbers look drawn, and the
    rest of the model alone does badly.
    """
    asking, drawn = [], []
    for name, tensor in loose_tensors(core(exam.anatomy.model)):
        if not tensor.is_floating_point() or tensor.numel() < _FEWEST_NUMBERS:
            continue
        if tensor.requires_grad:
            asking.append((name, tensor))
        elif _looks_drawn(tensor):
            drawn.append((name, tensor))
    used = _in_graph(exam.anatomy.outputs)
    asking = [(name, tensor) for name, tensor in asking if id(tensor) in used]
    found = asking or (drawn if _learns_badly(exam) else [])
    if not found:
        return None
    names = list(dict.fromkeys(name for name, _ in found))
    return Suspicion(
        "parameters_not_optimized",
        0.9 if asking else 0.6,
        (
            Evidence("numbers in plain tensors of the model", sum(t.numel() for _, t in found), 0),
            Evidence("attributes that hold them", ", ".join(names[:4])),
        ),
        "Weights in plain tensors are no part of the model for PyTorch: the optimizer does not get them, so they stay "
        "as they were drawn; nor are they saved, or moved to another device.",
        (
            Remedy(
                "make the tensors parameters",
                "\n".join(f"self.{name} = nn.Parameter(...)  # nn.ParameterList of a list" for name in names[:4]),
                on_model=lambda model: with_parameters(model, names),
                place="registration",
                order=BODY - 1,
            ),
        ),
        proof=bool(asking),
        otherwise=None if asking else ("frozen_parameters", "They were frozen, whether or not that was meant."),
    )


def _looks_drawn(tensor: torch.Tensor) -> bool:
    """Whether its numbers are about zero, and no two of them the same."""
    return len(torch.unique(tensor)) > _DISTINCT * tensor.numel() and float(tensor.mean().abs()) < float(tensor.std())


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
