"""What a watched loop reports of its model: figures that cannot be, and targets that nothing was learned of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fogline.doctor.finding import Evidence, Finding, Remedy
from fogline.doctor.series import ends, finite
from fogline.doctor.travelled import (
    LITTLE_LEARNED,
    Travel,
    drawn,
    lower_rate,
    travel_of,
)

if TYPE_CHECKING:
    from fogline.run import Run

FEWEST_STEPS = 100
"""Of a run whose loss, where it stands still, says anything."""
WORSE = 1.2
"""Times the loss of a constant answer: above it something else is wrong than that nothing is learned."""
_NOTHING_LEARNED = 0.97
_COMPARABLE = 1.5  # a held-out loss above so many constant answers is in another unit
_RARE, _ENOUGH = 0.2, 20  # of an equal share; rows
_WALKED = 0.3  # lengths of the weights
_SOME_SKILL, _MUCH_SKILL = 0.1, 0.3  # of classical learners
_LONG = 0.1  # a first step, against the weights: another rate is as likely as targets that say nothing
_LOOKS, _CLEARLY = 3, 0.1


def reported(run: Run) -> Iterator[Finding]:
    """What the loop logs beside its held-out loss: an accuracy that this loss rules out, or rare rows never found.

    Whoever is wrong gives the right class at most one half, and so has a loss of at least ln 2: of a mean loss L no
    more than L / ln 2 of the answers are wrong.
    """
    values: dict[str, list[float]] = {}
    for row in run.scores:
        values.setdefault(str(row["name"]).lower(), []).append(float(row["value"]))
    losses = values.get("loss", [])
    for name, seen in values.items():
        late = np.array(seen[-_LOOKS:])
        if not len(losses) or len(late) != len(losses[-_LOOKS:]) or not bool(np.isfinite(late).all()):
            continue
        least = 1 - np.array(losses[-_LOOKS:]) / math.log(2)
        share = late / 100 if float(np.max(seen)) > 1.5 else late
        if run.info.get("bounds_errors") and _is_accuracy(name) and bool((share < least - _CLEARLY).all()):
            yield _ruled_out(name, float(share[-1]), float(least[-1]))
        rarest = run.info.get("rarest_class")
        if rarest is not None and rarest[0] < _RARE and rarest[1] >= _ENOUGH and _of_the_rare(name) and not late.any():
            yield _never_named(name, rarest[0])


def _is_accuracy(name: str) -> bool:
    """Of the rows that the held-out loss is of, each counting the same."""
    words = re.split("[^a-z]+", name)
    return ("acc" in words or "accuracy" in words) and not any("train" in word or "bal" in word for word in words)


def _of_the_rare(name: str) -> bool:
    return any(word in name for word in ("recall", "sensitivity", "f1", "tpr"))


def _ruled_out(name: str, share: float, least: float) -> Finding:
    return Finding(
        "metric_mismatch", "serious", 0.75,
        (Evidence(f"{name} at the end", share, f"at least {least:.3g}"),),
        f"The {name} that is logged does not measure the answers: with a held-out loss as low as this one at least "
        f"{least:.0%} of them are right.",
        advice="look at the axis that the highest score is taken along, at the threshold, and at what it is divided by",
    )  # fmt: skip


def _never_named(name: str, rarest: float) -> Finding:
    return Finding(
        "class_imbalance", "serious", 0.65,
        (Evidence(f"{name} at the end", 0.0, "above 0"),
         Evidence("how often the rarest class was seen, against equally often", rarest, "above 0.2")),
        "Hardly any example is of the rarest class, and it is never named: always to name the other costs the loss "
        "next to nothing.",
        remedy=Remedy("draw the classes equally often, or weigh them",
                      "sampler = WeightedRandomSampler(1 / torch.bincount(y)[y], len(y))"),
    )  # fmt: skip


def unrelated(run: Run) -> Finding | None:
    """No answer to rows that were not seen, or to any, is better than one that does not look at the inputs."""
    left, losses = run.info.get("loss_over_constant"), finite(run.steps["loss"])
    if left is None or not left > 0 or len(losses) < FEWEST_STEPS or left > WORSE:
        return None
    constant = ends(losses)[1] / left
    held_out = finite(np.array([row["value"] for row in run.scores if row["name"] == "loss"]))
    best = float(held_out.min()) / constant if len(held_out) > 3 else None
    if best is not None and best > _COMPARABLE:  # summed over more rows, or in other units
        best = None
    if (left if best is None else best) < _NOTHING_LEARNED or (best is None and left < _NOTHING_LEARNED):
        return None
    rarest, travel, told = run.info.get("rarest_class"), travel_of(run), run.info.get("seen_rows")
    seen = [Evidence("loss at the end, as a share of that of the best constant answer", left, "well below 1")]
    if best is not None:
        seen.append(Evidence("lowest held-out loss, likewise", best, "well below 1"))
    if rarest is not None and rarest[0] < _RARE:  # of fewer rows nobody knows what the best constant answer gets
        return _imbalanced(seen, rarest[0]) if rarest[1] >= _ENOUGH else None
    if left > LITTLE_LEARNED and travel is not None and travel.reach < _WALKED:
        return None  # the weights are about where they began: nothing was tried
    if told is not None:
        seen.append(Evidence("what classical learners get of the first rows, for others of them", told["score"], 0.0))
        if told["score"] > max(_SOME_SKILL, 2 * told["error"]):
            if not (left > LITTLE_LEARNED and told["score"] > _MUCH_SKILL):
                return None
            return _too_long(run, travel, seen) if _leapt(run, travel) else _missed(seen)
        if best is None and told["score"] + told["error"] > _MUCH_SKILL:
            return None  # so few rows that they may well say much of their targets
    if told is None and _leapt(run, travel):
        return _too_long(run, travel, seen)
    return Finding(
        "shuffled_labels", "serious", (0.5 if best is None else 0.6) + (0.1 if told is not None else 0.0), tuple(seen),
        "Gradients reach the weights and the steps are long enough, and yet the answers to "
        + ("any rows" if best is None else "rows that were not trained on")
        + " get no better than one that does not look at the inputs: as if inputs and targets did not belong together.",
        advice="look at a few examples with their targets just before the loss: are both shuffled, sorted or filtered "
        "in the same way? If they belong together, the inputs say nothing of the targets",
    )  # fmt: skip


def _leapt(run: Run, travel: Travel | None) -> bool:
    """Whether the first step was long against weights that were drawn."""
    return travel is not None and travel.leap > _LONG and drawn(run)


def _too_long(run: Run, travel: Travel | None, seen: list[Evidence]) -> Finding:
    leap = math.nan if travel is None else travel.leap
    return Finding(
        "lr_too_high", "serious", 0.5,
        (*seen, Evidence("length of the first step over that of the weights", leap, "about 0.01", 0)),
        "The answers get no better than one that does not look at the inputs, and the steps are long against the "
        "weights that they move: either nothing that is learned lasts, or inputs and targets do not belong together.",
        remedy=lower_rate(float(finite(run.steps["lr"]).max(initial=0.0))),
    )  # fmt: skip


def _imbalanced(seen: list[Evidence], rarest: float) -> Finding:
    return Finding(
        "class_imbalance", "serious", 0.6,
        (*seen, Evidence("how often the rarest class was seen, against equally often", rarest, "above 0.2")),
        "Hardly any example is of the rarest class, and the answers get no better than always naming the others: that "
        "is nearly right, so there is next to nothing to be gained by telling them apart.",
        remedy=Remedy("weigh the classes, or draw them equally often",
                      "nn.CrossEntropyLoss(weight=len(y) / (k * torch.bincount(y)))  # k classes"),
    )  # fmt: skip


def _missed(seen: list[Evidence]) -> Finding:
    return Finding(
        "underfitting", "serious", 0.5, tuple(seen),
        "Inputs and targets belong together, since learners that use no gradient answer rows they have not seen by "
        "them. The steps are long enough, and this network learns nothing of it.",
        advice="give the network what it lacks: an activation between its layers, more units, less dropout",
    )  # fmt: skip
