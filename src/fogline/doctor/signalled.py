"""What the signals of a finished or watched run say of its faults."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fogline.doctor.finding import Evidence, Finding, Remedy
from fogline.doctor.refusals import refused
from fogline.doctor.reported import FEWEST_STEPS, WORSE, reported
from fogline.doctor.series import ends, finite
from fogline.doctor.travelled import (
    FEWEST_STEPS_TO_GO_FAR,
    LITTLE_LEARNED,
    drawn,
    fell,
    higher_rate,
    lower_rate,
    number,
    travel_of,
    travelled,
)
from fogline.verdict import Verdict

if TYPE_CHECKING:
    from fogline.run import Run

_LEAP, _CRAWL = 0.2, 0.01  # of the length of the weights: of one step, of all of them
_MOSTLY, _TO_NOTHING = 0.5, 3.0  # of a step; and e-foldings of the weights over the run
_DECOUPLED = ("adamw", "adamw8bit", "lion", "muon", "musgd")  # their decay is no part of the gradient
_EXPLODED = 10.0
_IMPROVES = 0.15  # of all that was gained came in the last third
_MUCH_LEFT = 0.3
_HALF = 0.5
_BEGINNING = 0.1  # of the steps
_GONE_EARLY = 0.33  # of the steps; and of the largest rate, on average
_UNCHANGED = 0.05  # of the slope changes over a step: it is so much too short
_VANISHED = 1e-6
_ROUNDED, _BELOW = 1e-3, 0.1
_OF_ALL_ROWS = {
    "rprop": "Rprop keeps a step for each weight and changes it by whether the gradient's sign is that of the step "
    "before.",
    "lbfgs": "L-BFGS takes the change of the gradient from step to step for the curvature of the loss.",
}


def from_signals(run: Run) -> Iterator[Finding]:
    """Findings from the tables of a run and from how it was judged."""
    yield from refused(run)
    judgement = run.judgement
    if judgement is None:
        return
    evidence, verdict = judgement.evidence, judgement.verdict
    alone = _nothing_to_compare(run)
    if alone is not None:
        yield alone
        return
    yield from _of_no_probabilities(run)
    yield from _without_a_slope(run)
    schedule = _schedule(run, verdict)
    yield from _rate(run, verdict, evidence) if schedule is None else (schedule,)
    yield from _layers(run)
    yield from travelled(run, schedule)
    if (run.info.get("loss_over_constant") or 0.0) > LITTLE_LEARNED:
        yield from _lengths(run)
        yield from _left_again(run)
    if verdict in (Verdict.IMPROVING, Verdict.NOISE_FLOOR) and _has_much_left(run, evidence):
        yield from _too_few_steps(verdict, evidence)
    yield from reported(run)
    if verdict is Verdict.OVERFIT and not (run.info.get("loss_over_constant") or 0.0) > LITTLE_LEARNED:
        yield _overfitting(run, evidence)


def _rate(run: Run, verdict: Verdict, evidence: dict[str, Any]) -> Iterator[Finding]:
    """Too long and too short steps, by the change of the slope over a step.

    ``alpha = -(g+ . d) / (g . d)`` is -1 where a step leaves the slope as it was and above 1 where the far wall is
    steeper than the near one; on a quadratic it is ``lr * lambda - 1``.
    """
    steps = run.steps
    alpha, rates = finite(steps["overshoot"]), finite(steps["lr"])
    back = [row for row in run.events if row["kind"] in ("rollback", "gave_up")]
    rate = float(rates.max()) if len(rates) else math.nan
    early = float(np.median(alpha[: max(3, len(alpha) // 3)])) if len(alpha) else math.nan
    if back or (verdict is Verdict.DIVERGED and (early > 1 or not _is_watched(run) or _ran_away(run, evidence))):
        seen = [Evidence("loss at the end", number(evidence.get("loss_at_end")), number(evidence.get("loss_at_start")))]
        if back:
            seen.append(Evidence("times the guard went back", len(back), 0, int(back[0]["step"])))
        if early > 1:
            seen.append(Evidence("overshoot of a step", early, "below 1"))
        yield Finding(
            "lr_too_high",
            "serious" if verdict is not Verdict.DIVERGED else "fatal",
            0.85 if early > 1 or back else 0.65,
            tuple(seen),
            "The loss ran away: steps land on the far wall of the valley, higher than they started.",
            remedy=Remedy("a tenth of the learning rate", f"lr={rate / 10:.3g}"),
        )
    short = len(alpha) >= 3 and abs(float(np.median(alpha)) + 1) < _UNCHANGED
    far = number(evidence.get("best_step_over_path"))
    slow = (verdict is Verdict.STALLED and far > 3) or (verdict is Verdict.IMPROVING and short)
    if slow and not (_is_watched(run) and _came_down(run)):
        seen = [Evidence("best single step, in lengths of the whole path", far, "below 1")] if far > 3 else []
        if short:
            seen.append(
                Evidence("slope after a step, as a share of that before", -float(np.median(alpha)), "below 0.9")
            )
        yield Finding(
            "lr_too_low", "serious", 0.7 if far > 3 else 0.55, tuple(seen),
            "Steps are so short that the slope does not change over one of them: the way down is much longer.",
            remedy=higher_rate(rate),
        )  # fmt: skip


def told_of_batches(run: Run, found: Finding) -> Finding:
    """A rate that suits no rows at all, where the optimizer takes every gradient for that of all rows."""
    name = str(run.info["recipe"]["optimizer"]).lower()
    kind = next((kind for kind in _OF_ALL_ROWS if kind in name), None)
    if kind is None or found.cause not in ("lr_too_high", "lr_too_low") or not run.info.get("batches_differ"):
        return found
    return Finding(
        "optimizer_mismatch", found.severity, max(found.confidence, 0.7),
        (Evidence("optimizer", name, "one for batches, such as adamw or sgd"), *found.evidence),
        f"{_OF_ALL_ROWS[kind]} Here every batch is of other rows, and what one says the next one contradicts.",
        remedy=Remedy("an optimizer for batches, or all rows at each step",
                      "optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)"),
    )  # fmt: skip


def _is_watched(run: Run) -> bool:
    return bool((run.info.get("source") or {}).get("kind") == "watch")


def _ran_away(run: Run, evidence: dict[str, Any]) -> bool:
    """Whether a loss of somebody else's loop grew beyond what an opponent or moving targets make of a sound one."""
    if run.info.get("opposed") and not run.info.get("not_finite"):
        return False  # what a critic without bounds says has no scale, and drifts
    start, end = number(evidence.get("loss_at_start")), number(evidence.get("loss_at_end"))
    left = run.info.get("loss_over_constant") or 0.0
    return bool(left > WORSE or end - start > _EXPLODED * abs(start) or run.info.get("not_finite"))


def _came_down(run: Run) -> bool:
    """Whether more than half was learned of what there is, or half of the loss is gone where that is unknown."""
    left, losses = run.info.get("loss_over_constant"), finite(run.steps["loss"])
    if left is not None:
        return bool(left < _HALF)
    first, last = ends(losses)
    return last < _HALF * first


def _has_much_left(run: Run, evidence: dict[str, Any]) -> bool:
    """Every loop that is not ours and ends early would have more to gain: that it had hardly begun is a fault.

    It learned little, and its loss fell in the last third as fast as before. Where the former is unknown the verdict
    has to do.
    """
    left, share = run.info.get("loss_over_constant"), number(evidence.get("gain_share"))
    return not _is_watched(run) or (left is not None and left > 0.5 and share > 1 / 3)


def _left_again(run: Run) -> Iterator[Finding]:
    """Above the loss of the best constant answer, it jumps about or has climbed by more than that loss."""
    losses, left = finite(run.steps["loss"]), float(run.info["loss_over_constant"])
    if left < WORSE or len(losses) < 10 or run.judgement is None:
        return
    blocks = [float(block.mean()) for block in np.array_split(losses, 10)]
    if max(blocks[-1] - min(blocks), number(run.judgement.evidence.get("noise"))) > blocks[-1] / left:
        yield Finding(
            "lr_too_high", "serious", 0.65,
            (Evidence("loss at the end, as a share of that of the best constant answer", left, "below 1"),
             Evidence("lowest loss on the way, likewise", min(blocks) * left / blocks[-1])),
            "The loss jumps about, or has climbed again, and ends above that of the best answer that does not look at "
            "the inputs. The steps are too long to stay where it is low.",
            remedy=Remedy("a tenth of the learning rate, or let it be measured", 'lr a tenth of it, or "auto"'),
        )  # fmt: skip


def _lengths(run: Run) -> Iterator[Finding]:
    """Of a run that learned next to nothing: how long its steps were against the weights they move, and why."""
    table = run.layers
    if not len(table) or len(run.steps) < FEWEST_STEPS_TO_GO_FAR:
        return
    first = table["step"] == table["step"].min()
    weights, updates, gradients = (
        float(np.linalg.norm(finite(table[name][first]))) for name in ("weight_norm", "update_norm", "grad_norm")
    )
    rates, decay = finite(run.steps["lr"]), float(run.info["recipe"].get("weight_decay") or 0.0)
    at = float(run.steps["lr"][min(int(table["step"].min()), len(run.steps) - 1)])
    if not (weights > 0 and gradients > 0 and updates > 0 and at > 0):
        return
    share, rate = updates / weights, float(rates.max())
    decoupled = run.info["recipe"]["optimizer"] in _DECOUPLED
    pull = decay * at / share if decoupled else decay * weights / gradients
    if (pull > _MOSTLY and decay * float(rates.sum()) > _TO_NOTHING) if decoupled else pull > 1:
        seen = (
            "share of a step that the weight decay takes" if decoupled else "pull of the weight decay over the gradient"
        )
        yield Finding(
            "regularization_too_strong", "serious", 0.75,
            (Evidence(f"{seen}, at the start", pull, "well below 1"), Evidence("weight decay", decay)),
            "The run learned next to nothing, and the weight decay pulls the weights to zero more strongly than the "
            "loss pulls them anywhere.",
            remedy=Remedy("a hundredth of the weight decay, or none", f"weight_decay={decay / 100:.3g}"),
        )  # fmt: skip
    elif share * rate / at > _LEAP and drawn(run):
        yield Finding(
            "lr_too_high", "serious", 0.7,
            (Evidence("length of a step over that of the weights, at the start", share * rate / at, "about 0.001"),),
            "The run learned next to nothing, and a few of its steps move the weights as far as they are from zero.",
            remedy=lower_rate(rate),
        )  # fmt: skip
    elif (
        travel_of(run) is None
        and share * float(rates.sum()) / at < _CRAWL
        and bool((table["grad_norm"][first] > 0).all())
    ):
        yield Finding(
            "lr_too_low", "serious", 0.8,
            (Evidence("length of all steps together over that of the weights, at most", share * float(rates.sum()) / at,
                      "0.1 or more"),),
            "The run learned next to nothing, and its weights are where they began: all steps together are too short.",
            remedy=higher_rate(rate),
        )  # fmt: skip


def _schedule(run: Run, verdict: Verdict) -> Finding | None:
    """A rate that is gone for most of the run, or that grew until the loss ran away."""
    known = np.isfinite(run.steps["lr"])
    rates = run.steps["lr"][known]
    if len(rates) < 20 or not rates.max() > 0:
        return None
    # Of a loop that is not ours fewer and fewer steps are recorded: each stands for all until the next one.
    lasting = np.diff(
        run.steps["step"][known], append=max(run.info.get("steps") or 0, run.steps["step"][known][-1] + 1)
    )
    gone = float(np.average(rates < 0.01 * rates.max(), weights=lasting))
    little = (run.info.get("loss_over_constant") or 0.0) > LITTLE_LEARNED
    early = little and gone > _GONE_EARLY and float(np.average(rates, weights=lasting)) < _GONE_EARLY * rates.max()
    grew = float(rates[-1] / rates[0]) if rates[0] > 0 else math.inf
    if verdict is Verdict.DIVERGED and grew > 3 and rates[-1] > 0.5 * rates.max():
        return Finding(
            "bad_schedule",
            "fatal",
            0.8,
            (Evidence("learning rate at the end over that at the start", grew, "at most 1"),),
            "The schedule raises the learning rate until the steps are too long and the loss runs away.",
            remedy=Remedy("lower the rate over the run", "a linear or cosine schedule to zero at the last step"),
        )
    if gone > 0.5 or early:
        return Finding(
            "bad_schedule",
            "serious",
            0.7,
            (
                Evidence(
                    "share of the steps with less than a hundredth of the largest learning rate", gone, "below 0.2"
                ),
            ),
            "The learning rate is all but zero for "
            + ("most of the run" if gone > 0.5 else "much of the run, before anything was learned")
            + ", so those steps do nothing.",
            remedy=Remedy("lower the rate over the whole run", "a linear or cosine schedule to zero at the last step"),
        )
    return None


def _learned(run: Run) -> bool:
    """Whether most of the loss is gone, as far as it is known what an answer without a look at the inputs costs."""
    left = run.info.get("loss_over_constant")
    first, last = ends(finite(run.steps["loss"]))
    return last < _HALF * first if left is None else left < _HALF


def _layers(run: Run) -> Iterator[Finding]:
    """Layers that no gradient reaches, or less and less of it towards the inputs."""
    table = run.layers
    if not len(table):
        return
    latest = table["step"] == table["step"].max()
    names = table["layer"][latest]
    gradients, weights = (table[name][latest].astype(np.float64) for name in ("grad_norm", "weight_norm"))
    usable = np.isfinite(gradients) & np.isfinite(weights)
    if usable.sum() < 2 or not gradients[usable].max() > 0:
        return
    share = np.where(usable, gradients, 0) / gradients[usable].max()
    still = usable & (gradients == 0)
    begun = int(table["step"].max()) < _BEGINNING * len(run.steps)  # gates that open with the first steps are no fault
    if still.any() and not (begun and _learned(run)):
        listed = ", ".join(names[still][:4])
        yield Finding(
            "dead_units", "serious", 0.6,
            (Evidence("layers whose gradient is exactly zero", listed, "none", int(table["step"].max())),),
            "No gradient at all reaches these layers: the units behind them are off for every example, or unused.",
            remedy=Remedy("units that cannot die", "nn.LeakyReLU() instead of nn.ReLU(), and a lower rate"),
        )  # fmt: skip
    small = usable & ~still & (share < _VANISHED)
    if small.any():
        worst = int(np.argmin(np.where(small, share, np.inf)))
        yield Finding(
            "vanishing_gradient", "serious", 0.65,
            (Evidence("gradient as a share of the largest layer's", float(share[worst]), "above 0.001",
                      int(table["step"].max()), str(names[worst])),),
            "The gradient all but vanishes on its way to these layers, so they stay as they were drawn.",
            remedy=Remedy("ReLU, and a first draw that keeps the scale", "nn.ReLU() and nn.init.kaiming_normal_"),
        )  # fmt: skip


def _too_few_steps(verdict: Verdict, evidence: dict[str, Any]) -> Iterator[Finding]:
    """Much came in the last third; or as much again is to be had by a step as long as the whole path."""
    share, left = number(evidence.get("gain_share")), number(evidence.get("gain_left_share"))
    far = number(evidence.get("best_step_over_path"))
    ahead = left > _MUCH_LEFT and far > _MUCH_LEFT
    if not ahead and not (verdict is Verdict.IMPROVING and share > _IMPROVES):
        return
    seen = [Evidence("share of the gain that came in the last third", share, "below 0.1")]
    if ahead:
        seen.append(Evidence("gain of one long step, as a share of all that was gained", left, "below 0.01"))
    yield Finding(
        "too_few_steps",
        "minor",
        0.65 if ahead else 0.55,
        tuple(seen),
        "The loss was still falling when the budget ended.",
        remedy=Remedy("train longer", "three times the duration"),
    )


def _of_no_probabilities(run: Run) -> Iterator[Finding]:
    """A Kullback-Leibler divergence below zero: its inputs are no logarithms of probabilities."""
    losses = finite(run.steps["loss"])
    if (run.info.get("task") or {}).get("loss") != "KLDivLoss" or not len(losses):
        return
    first, last = ends(losses)
    if max(first, last) < -_ROUNDED:
        yield Finding(
            "loss_mismatch", "fatal", 0.9,
            (Evidence("divergence at first, at the end", f"{first:.3g}, {last:.3g}", "0 or more"),),
            "nn.KLDivLoss compares logarithms of probabilities with probabilities, and is never below zero. Here it "
            "is: it was given logits or probabilities, of which it only makes the numbers larger.",
            remedy=Remedy("give the loss logarithms of probabilities", "F.log_softmax(logits, dim=1)"),
        )  # fmt: skip


def _without_a_slope(run: Run) -> Iterator[Finding]:
    """Nothing moves: a gradient far below the epsilon of the optimizer, or weights that are all zero, and factors."""
    table, asked = run.layers, run.info.get("asked") or {}
    if not len(table) or fell(run):
        return
    first = table["step"] == table["step"].min()
    gradients, weights = (finite(table[name][first]) for name in ("grad_norm", "weight_norm"))
    if not len(gradients) or not len(weights):
        return
    count, epsilon = (run.info.get("task") or {}).get("parameters"), (asked.get("options") or {}).get("eps")
    of_one = float(np.linalg.norm(gradients)) / math.sqrt(count) if count else 0.0
    if epsilon and 0 < of_one < _BELOW * float(epsilon):
        yield Finding(
            "epsilon_underflow", "fatal", 0.9,
            (Evidence("gradient of a weight, root mean square", of_one, "1e-6 or more", int(table["step"].min())),
             Evidence("epsilon of the optimizer", float(epsilon), "far below it")),
            "The optimizer divides each step by the size of the gradient plus an epsilon. Here the epsilon is by far "
            "the larger of the two, and the steps are as much shorter than the learning rate says.",
            remedy=Remedy("a loss in numbers near one", "leave out what makes the loss so small, such as its units"),
        )  # fmt: skip
    elif len(weights) > 1 and not weights.any() and not gradients.any():
        yield Finding(
            "symmetric_init", "fatal", 0.9,
            (Evidence("length of the weights of every layer", 0, "above 0", int(table["step"].min())),
             Evidence("gradient of every layer", 0, "above 0", int(table["step"].min()))),
            "All weights begin at zero and are multiplied with one another: no slope leads away from there.",
            remedy=Remedy("first weights that differ", "nn.init.normal_(weight, std=0.1)"),
        )  # fmt: skip


def _nothing_to_compare(run: Run) -> Finding | None:
    """Batches of one row whose loss has no slope, whatever is answered: it compares rows with one another."""
    losses, norms = finite(run.steps["loss"]), finite(run.steps["grad_norm"])
    rows = np.diff(run.steps["examples"]) / np.diff(run.steps["step"])
    if len(losses) < FEWEST_STEPS or not len(norms) or norms.any() or np.ptp(losses) > 0 or not (rows == 1).all():
        return None
    return Finding(
        "batch_too_small", "fatal", 0.8,
        (Evidence("rows a step", 1, "several"), Evidence("gradient of every step", 0, "any other")),
        "The loss is the same at every step and has no slope. Losses that compare the rows of a batch with one "
        "another, as those of survival and of ranking do, have nothing to compare in a batch of one row.",
        remedy=Remedy("more rows a step", "DataLoader(data, batch_size=32, shuffle=True)"),
    )  # fmt: skip


def _overfitting(run: Run, evidence: dict[str, Any]) -> Finding:
    """In a loop of ours the best weights were kept, so little is lost."""
    rise = number(evidence.get("held_out_rise_share"))
    watched = _is_watched(run)
    kept = "" if watched else " The best weights were kept."
    return Finding(
        "overfitting", "serious" if rise > 0.5 and watched else "minor", 0.7 if rise > 0.5 else 0.4,
        (Evidence("rise of the held-out loss from its best, over its gain", rise, 0.0),),
        f"The held-out loss turned upwards while the training loss fell on.{kept}",
        remedy=Remedy("stop at the lowest held-out loss", "patience=5; or dropout, weight decay, more data"),
    )  # fmt: skip
