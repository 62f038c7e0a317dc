"""How far the weights of a watched loop went: steps as long as they are, and paths that led nowhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fogline.doctor.finding import Evidence, Finding, Remedy
from fogline.doctor.series import ends, finite
from fogline.verdict import Verdict

if TYPE_CHECKING:
    from fogline.run import Run

LITTLE_LEARNED = 0.9  # both numbers are known to some percent
FEWEST_STEPS_TO_GO_FAR = 20
_HALF = 0.5  # of the length of the weights, or of the loss of the best constant answer
_THROWN = 10.0  # times their length
_NEAR, _STAYED = 0.1, 0.003  # where nothing was learned, and where nobody knows what was to be learned
_MOSTLY_LATER = 1.5
_SHRUNK, _VANISHED = 0.75, 0.1  # what is left of the weights, where nothing was learned, and wherever it was
_USUAL_DECAY = 0.01  # that of AdamW: where it draws weights to zero the steps are too long
_STEEP = 1000.0
_MOST_LEFT, _CREEPS, _STEADY = 0.7, 2e-3, 0.1
_LOOKS, _MOSTLY, _SEEN, _EVENLY = 8, 0.8, 0.01, 0.7
"""Held-out losses, and the share of them that are below the one before; of the first one, what is more than digits; and
how much of the fall of the first third comes in the last."""


@dataclass(frozen=True)
class Travel:
    """Of a watched loop, from the steps at the powers of two.

    Attributes:
        leap: length of its first step over that of the weights.
        reach: length of all steps together over that of the first weights: they cannot have moved further.
        grown: length of the last weights over that of the first.
    """

    leap: float
    reach: float
    grown: float


def travel_of(run: Run) -> Travel | None:
    strides, last = run.info.get("strides") or [], run.info.get("steps") or len(run.steps)
    if (
        last < FEWEST_STEPS_TO_GO_FAR
        or not strides
        or not strides[0][1] > 0
        or not np.isfinite(np.array(strides, dtype=float)).all()
    ):
        return None
    ends = [*(step for step, _, _ in strides[1:]), max(last, strides[-1][0] + 1)]
    path = sum(moved * (end - step) for (step, _, moved), end in zip(strides, ends, strict=True))
    first = strides[0][1]
    return Travel(strides[0][2] / first, path / first, strides[-1][1] / first)


def travelled(run: Run, schedule: Finding | None) -> Iterator[Finding]:
    """Weights that were thrown far from where they began, or never left.

    First weights are drawn so that a signal keeps its size, so what is learned changes them by about their own length:
    a step longer than they are leaves nothing of them, and a path of a tenth of it leads nowhere.
    """
    travel, left = travel_of(run), run.info.get("loss_over_constant")
    if travel is None or run.info["recipe"]["optimizer"] == "lbfgs":
        return
    rate = float(finite(run.steps["lr"]).max(initial=0.0))
    leaps, grown = (so and drawn(run) for so in (travel.leap > _HALF, travel.grown > _THROWN))
    unlearned = not fell(run) if left is None else left > LITTLE_LEARNED
    thrown = leaps and grown if left is None else left > 0.5 and (leaps or (grown and unlearned))
    decay = float(run.info["recipe"].get("weight_decay") or 0.0)
    if decay > _USUAL_DECAY and travel.grown < (_SHRUNK if left is not None and left > LITTLE_LEARNED else _VANISHED):
        yield _drawn_to_zero(travel.grown, decay)
    elif thrown:
        yield Finding(
            "lr_too_high", "serious", 0.7,
            (Evidence("length of the first step over that of the weights", travel.leap, "about 0.01", 0),
             Evidence("length of the last weights over that of the first", travel.grown, "about 1")),
            "The steps are about as long as the weights they move, or soon were: nothing is left of what these were "
            "drawn for, to keep a signal in size on its way through the layers.",
            remedy=lower_rate(rate),
        )  # fmt: skip
    elif (_stands(run, travel, left) or (left is not None and travel.reach < _NEAR and unlearned)) and (
        schedule is None and _all_driven(run)
    ):
        yield _too_short(run, travel.reach, rate)
    elif schedule is None and left is not None and left > _MOST_LEFT and travel.leap < _CREEPS and _still_falls(run):
        yield Finding(
            "lr_too_low", "serious", 0.55,
            (Evidence("length of the first step over that of the weights", travel.leap, "about 0.01", 0),
             Evidence("loss at the end, as a share of that of the best constant answer", left, "well below 1")),
            "Most of the loss is left at the end, and it falls as steadily as at first: the steps are short against "
            "the weights that they move.",
            remedy=higher_rate(rate),
        )  # fmt: skip
    elif (
        schedule is None
        and (left is None or left > _HALF)
        and travel.leap < _CREEPS
        and travel.reach < _NEAR
        and (evenly := _falls_evenly(run)) is not None
    ):
        yield Finding(
            "lr_too_low", "serious", 0.55,
            (Evidence("length of all steps together over that of the weights, at most", travel.reach, "1 or more"),
             Evidence("share of the fall of the held-out loss that came in the last third", evenly[1], "below 0.1"),
             Evidence("the same of the first third", evenly[0], "most of it")),
            "The held-out loss falls all the way to the end, as fast as at first, and the weights are about where they "
            "began: the steps are short against the way there is to go.",
            remedy=higher_rate(rate),
        )  # fmt: skip


def _drawn_to_zero(grown: float, decay: float) -> Finding:
    return Finding(
        "regularization_too_strong", "serious", 0.8 if grown < _VANISHED else 0.65,
        (Evidence("length of the last weights over that of the first", grown, "1 or more"),
         Evidence("weight decay", decay)),
        "Weights grow where something is learned. These shrank: the weight decay draws them to zero more strongly than "
        "the loss pulls them anywhere.",
        remedy=Remedy("a hundredth of the weight decay, or none", f"weight_decay={decay / 100:.3g}"),
    )  # fmt: skip


def _falls_evenly(run: Run) -> tuple[float, float] | None:
    """Of how much the held-out loss fell, the share of its first third and that of its last, where it fell throughout.

    Of rows that are always the same there is no noise from batch to batch, so a slope shows that training losses hide.
    """
    losses = finite(np.array([row["value"] for row in run.scores if row["name"] == "loss"]))
    if len(losses) < _LOOKS or not losses[0] > losses[-1] > _HALF * losses[0] > 0:
        return None
    third, fall = len(losses) // 3, float(losses[0] - losses[-1])
    first, last = float(losses[0] - losses[third]) / fall, float(losses[-1 - third] - losses[-1]) / fall
    throughout = float((np.diff(losses) < 0).mean()) >= _MOSTLY and fall > _SEEN * losses[0]
    return (first, last) if throughout and last > _EVENLY * first else None


def _still_falls(run: Run) -> bool:
    """Whether the verdict is that the budget ended first, and as much comes in the last third as in the one before."""
    judgement = run.judgement
    share = number(judgement.evidence.get("gain_share")) if judgement is not None else 0.0
    return judgement is not None and judgement.verdict is Verdict.IMPROVING and share > _STEADY


def _stands(run: Run, travel: Travel, left: float | None) -> bool:
    """Whether weights and loss are where they began, and that was no good place, as far as it is known."""
    return travel.reach < _STAYED and not fell(run) and (left is None or left > _HALF)


def _too_short(run: Run, reach: float, rate: float) -> Finding:
    """All steps together; because of the rate, or because it is still being warmed up at the end."""
    rates = finite(run.steps["lr"])
    seen = Evidence("length of all steps together over that of the weights, at most", reach, "1 or more")
    if len(rates) > 3 and rates[-1] == rates.max() and rates[-1] > _MOSTLY_LATER * rates.mean():
        share = float(rates.mean() / rates[-1])
        return Finding(
            "bad_schedule", "serious", 0.7, (seen, Evidence("mean learning rate over the last", share, "about 1")),
            "The run learned next to nothing: the learning rate is still being warmed up when it ends, and all steps "
            "together are too short.",
            remedy=Remedy("warm up for a twentieth of the run", "the length of the warm-up in optimizer steps"),
        )  # fmt: skip
    return Finding(
        "lr_too_low", "serious", 0.75, (seen,),
        "The run learned next to nothing, and its weights are about where they began: all steps together are too "
        "short.",
        remedy=higher_rate(rate),
    )  # fmt: skip


def drawn(run: Run) -> bool:
    """Whether there are several layers, and none began at zero, where any first step is long."""
    table = run.layers
    first = table["weight_norm"][table["step"] == table["step"].min()] if len(table) else table["weight_norm"]
    return len(first) > 1 and bool((first > 0).all())


def _all_driven(run: Run) -> bool:
    """Whether a gradient reaches every layer: where none does, no rate would move it."""
    gradients = run.layers["grad_norm"]
    return bool((gradients[np.isfinite(gradients)] > 0).all())


def thrown_before(run: Run) -> Finding | None:
    """A step longer than the weights, of a loop that then became NaN: the NaN is of its making."""
    strides = [(step, w, m) for step, w, m in run.info.get("strides") or [] if math.isfinite(w + m) and 0 < w < m]
    if not strides:
        return None
    step, weights, moved = strides[0]
    norms = dict(zip(run.steps["step"].tolist(), run.steps["grad_norm"].tolist(), strict=True))
    steep = number(norms.get(step)) / weights
    return Finding(
        "exploding_gradient" if steep > _STEEP else "lr_too_high", "fatal", 0.8,
        (Evidence("length of a step over that of the weights", moved / weights, "about 0.01", step),
         Evidence("gradient norm over the length of the weights", steep, "about 1", step)),
        "A step was longer than the weights it moved, and from there on nothing was finite.",
        remedy=Remedy("clip the gradient, and lower the rate",
                      "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # before optimizer.step()"),
    )  # fmt: skip


def fell(run: Run) -> bool:
    """Whether the loss fell by more than a little of what it was, where nobody knows the best constant answer."""
    first, last = ends(finite(run.steps["loss"]))
    return first - last > (1 - LITTLE_LEARNED) * abs(first)


def lower_rate(rate: float) -> Remedy:
    """Against steps that are too long."""
    return Remedy("a tenth of the learning rate, or let it be measured", f'lr={rate / 10:.3g}  # or lr="auto"')


def higher_rate(rate: float) -> Remedy:
    """Against steps that are too short."""
    return Remedy("ten times the learning rate, or let it be measured", f'lr={rate * 10:.3g}  # or lr="auto"')


def number(value: Any) -> float:
    """A statistic of the verdict; infinities were written down as words."""
    return math.nan if value is None else float(value)
