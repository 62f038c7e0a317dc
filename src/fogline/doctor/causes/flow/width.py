"""A layer too narrow for what has to pass through it."""

from __future__ import annotations

import sys
from itertools import pairwise

from torch import nn
from torch.nn.modules.conv import _ConvNd

from fogline.doctor.anatomy import Layer
from fogline.doctor.causes.flow.anew import also_done
from fogline.doctor.closeup import path_of
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.reference import rebuilds
from fogline.doctor.standing import standing
from fogline.doctor.surgery import directions, widened

THROUGH = (nn.Linear, _ConvNd, nn.RNNBase, nn.Embedding)


def width_of(layer: Layer) -> int:
    """Numbers that a layer gives: of a position, of a time step and direction, of a token."""
    names = ("out_features", "out_channels", "hidden_size", "embedding_dim")
    return next((int(getattr(layer.module, name)) for name in names if hasattr(layer.module, name)), 0)


def inputs_of(layer: Layer) -> int:
    """Numbers that a layer is given: of a position, a row of a table for each token, all of a sequence (no limit)."""
    if isinstance(layer.module, nn.RNNBase):
        return sys.maxsize
    names = ("in_features", "in_channels", "num_embeddings")
    return next((int(getattr(layer.module, name)) for name in names if hasattr(layer.module, name)), 0)


def bottleneck(exam: Examination) -> Suspicion | None:
    """A hidden layer too narrow for what has to pass through it."""
    stands = standing(exam)
    wanting = stands.improvable or stands.train_short or (not stands.scaled and stands.far)
    return narrow_middle(exam) if wanting else None


def narrow_middle(exam: Examination) -> Suspicion | None:
    """Such a layer, whether or not the network does badly with it."""
    anatomy = exam.anatomy
    layers = [layer for layer in anatomy.layers if isinstance(layer.module, THROUGH)]
    if anatomy.stage or len(layers) < 2 or not exam.case.supervised:
        return None
    # What is copied, or judged by its loss alone, may be narrow on purpose, though hardly a single number.
    copies = rebuilds(exam.case) or exam.case.yardstick.work == "other"
    outputs = width_of(layers[-1])
    needs = 1 if copies else outputs - 1 if exam.case.yardstick.work in ("classes", "one_hot") else outputs
    widest = max(width_of(layer) for layer in layers)
    narrow = [
        (first, second)
        for first, second in pairwise(layers)
        if (width_of(first) < min(needs, inputs_of(first)) or width_of(first) == 1)
        and width_of(first) < max(widest, inputs_of(first))
        and inputs_of(second) == directions(first.module) * width_of(first)
    ]
    if not narrow:
        return None
    first, second = min(narrow, key=lambda pair: width_of(pair[0]))
    width = max(8, inputs_of(first) // 4) if copies else max(8, 2 * outputs, min(inputs_of(first), 64))
    remedy = Remedy(
        f"widen {first.name} from {width_of(first)} to {width} units",
        f"let {path_of(first.name)} have {width} outputs and {path_of(second.name)} {width} inputs",
        on_model=lambda model: widened(model, first.name, second.name, width),
        place="width",
        order=BODY,
    )
    few = "a single number" if width_of(first) == 1 else f"{width_of(first)} numbers"
    lacking = f", which is less than the {outputs} outputs need" if width_of(first) < needs else ""
    return Suspicion(
        "bottleneck",
        0.7,
        (Evidence("units", width_of(first), f"at least {max(2, needs)}", layer=first.name),),
        f"Everything the network knows of an example has to pass through {few} in {first.name}{lacking}.",
        (remedy,),
        simpler=also_done((first, second)),
    )
