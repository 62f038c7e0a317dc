"""What a new layer in the place of an old one does besides: it has other first weights, and it learns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fogline.doctor.anatomy import Layer
from fogline.doctor.causes.flow.weights import drawn_anew
from fogline.doctor.closeup import path_of
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.inventory import as_drawn
from fogline.doctor.surgery import has


def also_done(layers: Sequence[Layer]) -> tuple[Suspicion, ...]:
    """Smaller edits of which wider layers make use: they are no longer frozen, and drawn as PyTorch draws them.

    Where one of them does most of what the wider layers do, it is not the width that was wrong.
    """
    return (*_learning(layers), *_drawn_anew(layers))


def _learning(layers: Sequence[Layer]) -> tuple[Suspicion, ...]:
    names = list(dict.fromkeys(layer.name for layer in layers if _frozen(layer.module)))
    if not names:
        return ()

    def edit(model: nn.Module) -> nn.Module:
        for name in names:
            if has(model, name):
                model.get_submodule(name).requires_grad_(True)
        return model

    remedy = Remedy(
        "let the frozen layers learn",
        "\n".join(f"{path_of(name)}.requires_grad_(True)" for name in names),
        on_model=edit,
        place="frozen",
        order=BODY,
    )
    return (
        Suspicion(
            "frozen_parameters",
            0.6,
            (Evidence("layers that ask for no gradient", ", ".join(names), "none"),),
            "A part of the model has requires_grad=False and stays as it is. The rest alone does not learn enough.",
            (remedy,),
        ),
    )


def _frozen(module: nn.Module) -> bool:
    own = [p for p in module.parameters(recurse=False) if p.is_floating_point()]
    return bool(own) and not any(p.requires_grad for p in own)


def _drawn_anew(layers: Sequence[Layer]) -> tuple[Suspicion, ...]:
    modules = {layer.name: layer.module for layer in layers if hasattr(layer.module, "reset_parameters")}
    telling = {name: module for name, module in modules.items() if not isinstance(module, nn.Embedding)}
    other = [name for name, module in telling.items() if not as_drawn(module)]
    if not other:
        return ()
    return (
        Suspicion(
            "bad_init",
            0.6,
            (Evidence("layers whose first weights are not as PyTorch draws them", ", ".join(other)),),
            "The program learns from other first weights: those that it was given stand in its way.",
            (drawn_anew(list(modules)),),
        ),
    )
