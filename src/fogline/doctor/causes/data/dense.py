"""Targets of every place of a row, such as masks of images and tags of words: of other rows, or hardly ever there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline.data.source import cast, float_type, leaves, taken
from fogline.descent.objective import mode
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.causes.data.common import kept_at, pair_of
from fogline.doctor.causes.data.order import FEW_CLASSES, rare
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.others import placed
from fogline.doctor.reading import answers_suit_their_rows
from fogline.doctor.reference import standardised

_FEWEST, _MOST_ROWS, _MOST_PLACES = 40, 200, 20
"""Rows to tell anything from; rows that are looked at, and places of each."""
_OF_A_PICTURE, _OF_A_SERIES, _NUMBERS = 2048, 64, 4_000_000
"""Places that are told apart, or looked at; and numbers of the inputs that go forward at once."""
_FOLDS, _TURNS = 5, 7
_WINDOW, _AROUND = 3, 7
"""Sides of what is seen of a place: all of the near one, mean and deviation of the wide one."""
_MOST_TOKENS, _MOST_CLASSES = 150, 50
_PENALTY = 1e-2
_MUCH, _MOST_TIMES = 0.3, 50.0
"""What rare places are found less by; and the loudest that one of them is made."""
_TELLS, _NOTHING = 5.0, 2.0
"""Standard errors by which answers suit their own rows better than others: beyond doubt, and no more than by chance."""


@dataclass(frozen=True)
class Pairing:
    """How much better answers learned from the surroundings of each place suit their own rows than others.

    Attributes:
        errors: the difference of the squared errors, in its standard errors over the rows.
        rows: that were answered.
    """

    errors: float
    rows: int


def targets_of_other_rows(exam: Examination) -> Suspicion | None:
    """Targets of places that suit their own rows no better than others, as far as any learner can tell.

    What they are at a place whatever the row, as where things mostly lie in the middle, is the same for all rows, so
    nothing of that counts.
    """
    pair, held, seen = pair_of(exam), exam.case.valid, exam.observed
    ours = None if pair is None else pairing(*pair)
    if ours is None or ours.errors > _NOTHING:
        return None
    theirs = None if held is None else pairing(held.inputs, held.targets)
    said = (Evidence("answers suit their own rows better, in standard errors", ours.errors, f"above {_TELLS:g}"),)
    if theirs is not None and theirs.errors > _TELLS:
        return Suspicion(
            "shuffled_labels",
            0.9,
            (*said, Evidence("the same of the held-out rows", theirs.errors)),
            "What surrounds a place tells its target in the held-out rows, and not in the training rows: most training "
            "targets are those of other rows. Usually two lists of files were put in different orders.",
            proof=True,
            severity="fatal",
            advice=_ADVICE,
        )
    if seen is None or seen.error or answers_suit_their_rows(exam) is not False:
        return None
    return Suspicion(
        "shuffled_labels",
        0.6,
        said,
        "Neither the network nor a learner that sees what surrounds each place answers a row better than other rows. "
        "Either the inputs do not determine the targets, or they are those of other rows: usually two lists of files "
        "were put in different orders.",
        severity="fatal",
        advice=_ADVICE,
    )


def rare_at_places(exam: Examination) -> Suspicion | None:
    """Classes of few places, such as those of names among words, that the trained model finds nowhere."""
    pair, observed, loss = pair_of(exam), exam.observed, exam.program.loss
    if pair is None or observed is None or observed.start is None or kept_at(exam, "balance"):
        return None
    targets = pair[1]
    if exam.case.yardstick.work != "classes" or targets.ndim < 2 or type(loss) is not nn.CrossEntropyLoss:
        return None
    counts = torch.bincount(targets[(targets >= 0) & (targets != loss.ignore_index)].flatten()).double()
    few = rare(counts)
    if loss.weight is not None or not bool(few.any()) or int((counts > 0).sum()) > FEW_CLASSES:
        return None
    numbers = sum(leaf[:1].numel() for leaf in leaves(pair[0]))
    most = max(1, min(len(targets), _MOST_ROWS, _NUMBERS // max(1, numbers)))
    rows = torch.arange(most) * len(targets) // most
    guessed, wanted = _guessed(exam, taken(pair[0], rows)), targets[rows]
    if guessed is None or guessed.shape != wanted.shape:
        return None
    counted = (wanted >= 0) & (wanted != loss.ignore_index)
    is_rare, right = few[wanted.clamp(0, len(few) - 1)] & counted, guessed == wanted
    if int(is_rare.sum()) < _FEWEST:
        return None
    recall, usual = float(right[is_rare].double().mean()), float(right[counted & ~is_rare].double().mean())
    if usual - recall < _MUCH:
        return None
    ratio = float(counts.max() / counts[counts > 0].min())
    return Suspicion(
        "class_imbalance",
        min(0.9, 0.4 + 0.5 * (usual - recall)),
        (
            Evidence("places of the most common class for one of the rarest", ratio, "about 1"),
            Evidence("share of the places of rare classes that are recognised", recall, usual),
        ),
        f"Some classes have up to {ratio:.0f} times fewer places than the most common one, and the model does not find "
        "them: to name the common one everywhere costs the loss next to nothing.",
        tuple(_weighing(counts, power) for power in (1.0, 0.5)),
        advice="Look at the recall of each class, or its intersection over union, not at the accuracy of all places.",
    )


def _guessed(exam: Examination, inputs: Any) -> Tensor | None:
    """The class that the observed model gives each place."""
    assert exam.observed is not None
    assert exam.observed.start is not None
    model = exam.observed.start.objective.model
    given = placed(cast(inputs, float_type(model)), next(model.parameters()).device)
    try:
        with torch.no_grad(), mode(model, training=False), private_randomness(CPU):
            outputs = model(given)
    except FAILURES:
        return None
    return outputs.argmax(1).cpu() if isinstance(outputs, Tensor) and outputs.ndim > 2 else None


class Weighing(nn.CrossEntropyLoss):
    """Weighs classes on whatever device the outputs are."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self.weight is not None
        return F.cross_entropy(
            outputs, targets, self.weight.to(outputs), ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


def _weighing(counts: Tensor, power: float) -> Remedy:
    weight = (counts.max() / counts.clamp_min(1)).pow(power).clamp_max(_MOST_TIMES).float()

    def edit(loss: nn.CrossEntropyLoss) -> nn.CrossEntropyLoss:
        smoothing, ignored = loss.label_smoothing, loss.ignore_index
        return Weighing(weight, ignore_index=ignored, reduction=loss.reduction, label_smoothing=smoothing)

    root = "" if power == 1 else ".sqrt()"
    return Remedy(
        "weigh each class by how rare it is" + ("" if power == 1 else ", by the half"),
        f"counts = torch.bincount(y.flatten())\nloss = nn.CrossEntropyLoss(weight=(counts.max() / counts){root})",
        on_loss=edit,
        place="balance",
        order=LOSS,
    )


_ADVICE = "Match inputs and targets by their names, not by their places in two lists; look at a few pairs by eye."


def pairing(inputs: Any, targets: Any) -> Pairing | None:
    """Learn targets of places from what surrounds them, and ask whose rows the answers suit.

    Args:
        inputs: (n, c, \\*places), (n, t, c) or tokens (n, t).
        targets: labels (n, \\*places) or numbers (n, \\*places) or (n, 1, \\*places).

    Returns:
        None where there are no targets of places, or too few rows.
    """
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor) or min(inputs.ndim, targets.ndim) < 2:
        return None
    draws = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(inputs), generator=draws)[:_MOST_ROWS]
    laid = _laid_out(inputs[rows], targets[rows])
    if laid is None or len(rows) < _FEWEST:
        return None
    seen, wanted = _surroundings(laid[0]), laid[1]
    places = torch.randint(seen.shape[2], (len(rows), _MOST_PLACES), generator=draws)
    seen = seen.gather(2, places[:, None].expand(-1, seen.shape[1], -1)).transpose(1, 2)  # (n, places, k)
    every = torch.arange(len(rows))
    fold, gains = every % _FOLDS, torch.zeros(len(rows), dtype=torch.float64)
    own = _at(wanted, every, places)
    others = [_at(wanted, every.roll(turn), places) for turn in range(1, _TURNS + 1)]
    for k in range(_FOLDS):
        left_out = fold == k
        answers = _ridge(seen[~left_out].flatten(0, 1), own[~left_out].flatten(0, 1), seen[left_out].flatten(0, 1))
        answers = answers.reshape(*own[left_out].shape)
        errors = [(answers - targets[left_out]).square().sum(2).mean(1) for targets in (own, *others)]
        gains[left_out] = torch.stack(errors[1:]).mean(0) - errors[0]
    deviation = float(gains.std()) / math.sqrt(len(gains))
    if not math.isfinite(deviation) or not deviation > 0:
        return None
    return Pairing(float(gains.mean()) / deviation, len(gains))


def _laid_out(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
    """Inputs as (n, c, *places) and targets as (n, k, *places), in numbers; None where they are not of the same places.

    A batch of answers to whole rows has none, nor have several numbers for a row of columns. Large pictures are looked
    at coarsely.
    """
    if inputs.is_complex() or targets.is_complex():
        return None
    places = tuple(targets.shape[1:])
    if len(places) > 1 and places[0] == 1:
        places, targets = places[1:], targets[:, 0]
    elif len(places) > 1 and places[-1] == 1:
        places, targets = places[:-1], targets[..., 0]
    if len(places) == 1 and places[0] > _OF_A_SERIES:  # a piece of it, from the middle
        along = next((dim for dim in range(1, inputs.ndim) if inputs.shape[dim] == places[0]), None)
        if along is None:
            return None
        first = (places[0] - _OF_A_SERIES) // 2
        inputs, targets = (t.narrow(d, first, _OF_A_SERIES) for t, d in ((inputs, along), (targets, 1)))
        places = (_OF_A_SERIES,)
    tokens = not inputs.is_floating_point() and inputs.dtype not in (torch.uint8, torch.bool)
    if not places or math.prod(places) < _FOLDS or not bool(torch.isfinite(targets.double()).all()):
        return None
    if tokens and tuple(inputs.shape[1:]) == places and _counted(inputs, _MOST_TOKENS):
        inputs = F.one_hot(inputs.long()).movedim(-1, 1)
    elif tokens or inputs.ndim != 2 + len(places):
        return None
    elif tuple(inputs.shape[2:]) != places:
        if tuple(inputs.shape[1:-1]) != places:
            return None
        inputs = inputs.movedim(-1, 1)
    if len(places) > 2 or not bool(torch.isfinite(inputs).all()):
        return None
    coarse = math.ceil(math.sqrt(math.prod(places) / _OF_A_PICTURE)) if len(places) == 2 else 1
    if coarse > 1:
        inputs = F.avg_pool2d(inputs.float(), coarse)
        targets = targets[:, ::coarse, ::coarse][:, : inputs.shape[2], : inputs.shape[3]]
    if targets.is_floating_point():
        return inputs.double(), targets.double()[:, None]
    labels = targets.clamp(0)
    if int(labels.max()) >= _MOST_CLASSES:
        return None
    return inputs.double(), F.one_hot(labels.long()).double().movedim(-1, 1)


def _counted(tokens: Tensor, most: int) -> bool:
    return int(tokens.min()) >= 0 and int(tokens.max()) < most


def _surroundings(inputs: Tensor) -> Tensor:
    """What is seen of each place, (n, k, places), of (n, c, *places)."""
    images = inputs if inputs.ndim == 4 else inputs[:, :, None]
    sides = (1 if images.shape[2] == 1 else _WINDOW, _WINDOW)
    wide = (1 if images.shape[2] == 1 else _AROUND, _AROUND)
    near = F.unfold(images, sides, padding=(sides[0] // 2, sides[1] // 2))
    pad = (wide[0] // 2, wide[1] // 2)
    mean = F.avg_pool2d(images, wide, 1, pad, count_include_pad=False)
    squares = F.avg_pool2d(images.square(), wide, 1, pad, count_include_pad=False)
    spread = (squares - mean.square()).clamp_min(0).sqrt()
    return torch.cat([near, mean.flatten(2), spread.flatten(2)], 1)


def _at(targets: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Targets of these rows at the places given for each, (n, places, k)."""
    flat = targets[rows].flatten(2)
    return flat.gather(2, places[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)


def _ridge(inputs: Tensor, targets: Tensor, other: Tensor) -> Tensor:
    inputs, other = standardised(inputs, other)
    gram = inputs.mT @ inputs + _PENALTY * len(inputs) * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    centre = targets.mean(0)
    weights: Tensor = torch.linalg.solve(gram, inputs.mT @ (targets - centre))
    return torch.addmm(centre, other, weights)
