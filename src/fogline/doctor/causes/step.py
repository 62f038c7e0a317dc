"""Causes in how the steps are taken: their length, number and noise, the method, and what pulls the weights back."""

from __future__ import annotations

import math

from torch import nn

from fogline.data.source import leaves
from fogline.descent.optimizers import spec_of
from fogline.descent.schedules import warmup_steps
from fogline.doctor.anatomy import rms
from fogline.doctor.closeup import wide_trained
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, RATE, RECIPE, Evidence, Remedy, Suspicion
from fogline.doctor.remedies import measured_rate
from fogline.doctor.standing import Motion, Steps, motion, resolved, standing, steps_of
from fogline.doctor.surgery import with_dropout
from fogline.recipe import Duration, Recipe

_STRAIGHT = -0.3
"""Overshoot below which most of a slope is left after a step (-1: all of it; noise moves it towards 0)."""
_HARDLY_MOVED = 0.5
"""The way of the weights, in their own norms: less than this and they are still about where they began."""
_TIMID, _BOLD = 1e-3, 0.03
"""Update ratios: a thousandth a step is what descents that work are seen to take; at 3 % a step, 30 of them replace all
that the weights were."""
_FALLING, _SURELY = 0.25, 3.0
_FEWEST_STEPS = 16
_ACCEPTABLE_WARMUP = 0.3
_ADAPTIVE = ("adam", "adamw", "nadam", "radam", "rmsprop", "adamax", "lion", "muon", "schedule_free", "prodigy")
_PLAIN = ("gd", "sgd", "momentum", "nesterov", "asgd")
_DECOUPLED = ("adamw", "nadam", "radam", "lion", "muon", "schedule_free")


def _multiplied(lr: float, factor: float) -> Remedy:
    return Remedy(
        f"learning rate {lr * factor:.3g} instead of {lr:.3g}",
        f"lr={lr * factor:.3g}",
        on_recipe=lambda recipe: recipe.replace(lr=lr * factor),
        place="rate",
        order=RATE,
    )


def _with_adamw() -> Remedy:
    return Remedy(
        "use adamw, its learning rate measured",
        'fogline.Recipe(optimizer="adamw", lr="auto")',
        on_recipe=lambda recipe: recipe.replace(optimizer="adamw", lr="auto", options={}),
        place="rate",
        order=RATE,
    )


def _rate_is_given(exam: Examination) -> bool:
    return exam.program.recipe.lr != "auto"


def _began(exam: Examination) -> bool:
    """Whether a descent was observed at all, and the loss was a number before it."""
    seen = exam.observed
    return seen is not None and not seen.error and seen.start is not None and math.isfinite(motion(exam).start)


def lr_too_high(exam: Examination) -> Suspicion | None:
    """Steps that land on the far wall of the valley, higher than they began."""
    if not _began(exam) or not _rate_is_given(exam) or exam.observed is None:
        return None
    moves, steps, lr = motion(exam), steps_of(exam), exam.observed.lr
    if not standing(exam).short and moves.refused < 0.5:
        return None
    strength = _too_long(moves, steps)
    if strength == 0:
        return None
    evidence = [Evidence("length of a step, relative to the weights", steps.each, f"{_TIMID:g} to {_BOLD:g}")]
    evidence.append(
        Evidence("highest loss on the way, loss before", f"{moves.highest:.3g}, {moves.start:.3g}", "lower")
    )
    if moves.refused:
        evidence.append(Evidence("share of steps that gave no finite loss or gradient", moves.refused, 0))
    if steps.beyond:
        evidence.append(Evidence("share of steps after which the far wall was steeper", steps.beyond, "near 0"))
    return Suspicion(
        "lr_too_high",
        strength,
        tuple(evidence),
        f"With a learning rate of {lr:.3g} each step goes across the valley and up the other side: the loss jumps "
        "about, or runs away, instead of coming down.",
        (measured_rate(), _multiplied(lr, 0.1)),
        severity="fatal" if strength > 0.8 else "serious",
    )


def _too_long(moves: Motion, steps: Steps) -> float:
    """How likely the steps are too long."""
    rose = moves.highest - moves.start > 0.5 * abs(moves.start)
    if moves.refused > 0 and (rose or steps.each > _BOLD):
        return 0.85
    if rose:
        return 0.7
    bold, beyond = steps.each > _BOLD, steps.beyond >= 0.25
    nothing = moves.fallen < 0.02 and steps.path > 1
    if nothing:
        return 0.65 if bold or beyond else 0.4
    if bold:
        return 0.55 if beyond or moves.jitter > 0.1 else 0.45
    return 0.4 if beyond and moves.jitter > 0.1 else 0.0


def lr_too_low(exam: Examination) -> Suspicion | None:
    """Steps so short that the slope is the same after as before, and the weights are still about where they began."""
    if not _began(exam) or not _rate_is_given(exam) or exam.observed is None:
        return None
    stands, moves, steps, lr = standing(exam), motion(exam), steps_of(exam), exam.observed.lr
    crawls = steps.path < 0.2 and steps.each < _TIMID  # whatever the next batch says of the slope
    if moves.refused or not steps.count or not (steps.overshoot < _STRAIGHT or crawls):
        return None
    still = steps.path < _HARDLY_MOVED and steps.each < 3 * _TIMID
    aligned = steps.overshoot < -0.8 and steps.cosine > 0.95 and (moves.slope > _FALLING or moves.fallen < 0.1)
    if not (stands.short or (steps.path < 0.2 and stands.score < 0.9)) or not (still or aligned):
        return None
    return Suspicion(
        "lr_too_low",
        0.8 if still and steps.each < _TIMID else 0.6 if still else 0.5,
        (
            Evidence("way that the weights went, relative to them", steps.path, "1 or more"),
            Evidence("length of a step, relative to the weights", steps.each, f"{_TIMID:g} to {_BOLD:g}"),
            Evidence("overshoot, median", steps.overshoot, "-0.3 to 0.5: -1 is a slope that a step has not changed"),
        ),
        f"With a learning rate of {lr:.3g} the steps are so short that the slope under them does not change: the "
        "descent is a straight crawl, and it ends long before it is down.",
        (measured_rate(), _multiplied(lr, 10)),
    )


def bad_schedule(exam: Examination) -> Suspicion | None:
    """A rate that is low for most of the run, or one that is never lowered where the steps only jitter."""
    if not _began(exam) or exam.observed is None:
        return None
    recipe, stands, moves = resolved(exam), standing(exam), motion(exam)
    if recipe.schedule == "one_cycle" or isinstance(recipe.warmup, str):
        return None
    planned = exam.planned
    share = warmup_steps(planned, recipe.warmup) / planned
    if share > _ACCEPTABLE_WARMUP and stands.short:
        remedy = Remedy(
            "warm up over 5 % of the run",
            "fogline.Recipe(warmup=0.05)",
            on_recipe=lambda recipe: recipe.replace(warmup=0.05),
            place="schedule",
            order=RECIPE,
        )
        return Suspicion(
            "bad_schedule",
            0.6,
            (Evidence("share of the run that is warm-up", share, "0.02 to 0.1"),),
            "The learning rate is still rising when the run is almost over: most steps are taken at a fraction of it.",
            (remedy,),
        )
    fell_back = stands.score - exam.observed.score > 2 * stands.error
    settled = moves.significance < 2 and moves.jitter > 0.03
    if recipe.schedule != "constant" or not spec_of(recipe.optimizer).schedulable or not (fell_back and settled):
        return None
    remedy = Remedy(
        "lower the learning rate to zero over the run",
        'fogline.Recipe(schedule="linear")',
        on_recipe=lambda recipe: recipe.replace(schedule="linear"),
        place="schedule",
        order=RECIPE,
    )
    return Suspicion(
        "bad_schedule",
        0.45,
        (
            Evidence("score at the end, best on the way", f"{exam.observed.score:.3g}, {stands.score:.3g}", "the same"),
            Evidence("jitter of the loss, relative to all it fell", moves.jitter, "below 0.03"),
        ),
        "The loss no longer falls, it jitters: steps of this length cannot settle, and the rate is never lowered. "
        "Where the run ends is chance.",
        (remedy,),
        severity="minor",
    )


def too_few_steps(exam: Examination) -> Suspicion | None:
    """A run that ends while the loss still falls at a pace that would take it much further."""
    seen = exam.observed
    if seen is None or not _began(exam) or seen.steps < exam.planned or exam.program.recipe.duration == "auto":
        return None
    stands, moves, steps = standing(exam), motion(exam), steps_of(exam)
    if not stands.short or moves.refused or _is_large_batch(exam) or moves.highest > 1.25 * abs(moves.start):
        return None
    few = seen.steps < _FEWEST_STEPS and not steps.path > 1
    falling = moves.slope > _FALLING and moves.significance > _SURELY
    # Noise of small batches hides the slope from the overshoot, but not how far the weights have come.
    young = steps.each > _TIMID and (steps.path < _HARDLY_MOVED or (steps.path < 1 and steps.overshoot < _STRAIGHT))
    if not (few or falling or young):
        return None
    factor = 10 if few or moves.fallen < 0.1 else 4
    evidence = (
        Evidence("fall of the loss over as many steps again, relative to all it fell", moves.slope, "near 0"),
        Evidence("in standard errors", moves.significance, "below 3"),
        Evidence("steps in all", seen.steps),
        Evidence("way that the weights went, relative to them", steps.path, "1 or more"),
    )
    return Suspicion(
        "too_few_steps",
        0.75 if steps.each > _TIMID or few else 0.3,
        evidence,
        f"The run ends after {seen.steps} steps, while the loss is still on its way down: it was stopped, it has not "
        "arrived.",
        (_longer(exam.program.recipe, factor),),
    )


def _longer(recipe: Recipe, factor: int) -> Remedy:
    now = Duration.parse(recipe.duration)
    longer = str(Duration(now.value * factor, now.unit))
    return Remedy(
        f"train {factor} times as long ({longer} instead of {now})",
        f'fogline.Recipe(duration="{longer}")',
        on_recipe=lambda recipe: recipe.replace(duration=longer),
        place="duration",
        order=RECIPE,
    )


def optimizer_mismatch(exam: Examination) -> Suspicion | None:
    """A method that does not suit the problem, or the way its batches are drawn."""
    if not _began(exam):
        return None
    recipe, stands, moves, steps = resolved(exam), standing(exam), motion(exam), steps_of(exam)
    name = recipe.optimizer if isinstance(recipe.optimizer, str) else recipe.optimizer.__name__.lower()
    noisy = recipe.batch_size != "full" and exam.case.batch_size < exam.program.rows
    if name in ("rprop", "lbfgs") and noisy and stands.short:
        return Suspicion(
            "optimizer_mismatch",
            0.8,
            (Evidence(f"share of the rows in a step of {name}", exam.case.batch_size / exam.program.rows, 1),),
            f"{name} compares one gradient with the next as if both were exact. On mini-batches they differ by chance, "
            "and its steps follow the chance.",
            (_with_adamw(),),
        )
    if not stands.short or moves.refused or _too_long(moves, steps) >= 0.65:
        return None
    slow = steps.path < _HARDLY_MOVED
    if name in ("adadelta", "adagrad") and slow:
        return Suspicion(
            "optimizer_mismatch",
            0.7,
            (
                Evidence("way that the weights went, relative to them", steps.path, "1 or more"),
                Evidence(f"learning rate of {name}", exam.observed.lr if exam.observed else 0.0, spec_of(name).lr),
            ),
            f"{name} shortens its own steps, and at this learning rate nothing is left of them.",
            (_with_adamw(),),
        )
    if name in _PLAIN and stands.train_short:
        return Suspicion(
            "optimizer_mismatch",
            0.5 if slow else 0.4,
            (
                Evidence("score on learned rows", stands.train_score, f"{stands.goal:.3g}, as classical learners get"),
                Evidence("method", name, "one with a rate for every weight"),
            ),
            "All weights share one learning rate here. Where slopes differ much from weight to weight it is too long "
            "for some and too short for the others.",
            (_with_adamw(),),
            follows=True,
        )
    return None


def _rows(exam: Examination) -> int:
    return len(leaves(exam.program.train)[0])


def batch_too_small(exam: Examination) -> Suspicion | None:
    """Steps that follow the chance of which few rows were drawn."""
    size, rows = exam.case.batch_size, _rows(exam)
    if not _began(exam) or size > 8 or size * 16 > rows or exam.program.recipe.batch_size == "full":
        return None
    stands, moves, steps = standing(exam), motion(exam), steps_of(exam)
    shaking = moves.refused > 0 or moves.jitter > 0.1 or moves.fallen < 0.05 or steps.each > _BOLD
    if not stands.short or not shaking or steps.overshoot < -0.8:
        return None
    larger, planned = min(32, rows // 4), exam.planned
    remedy = Remedy(
        f"take {larger} rows a step instead of {size}, for as many steps",
        f'fogline.Recipe(batch_size={larger}, duration="{planned}st")',
        on_recipe=lambda recipe: recipe.replace(batch_size=larger, accumulate=1, duration=f"{planned}st"),
        place="batch",
        order=RECIPE,
    )
    return Suspicion(
        "batch_too_small",
        0.5,
        (
            Evidence("rows a step", size, "16 or more"),
            Evidence("jitter of the loss, relative to all it fell", moves.jitter, "below 0.1"),
            Evidence("step cosine, median", steps.cosine, "above 0"),
        ),
        f"{size} row{'s' if size > 1 else ''} a step say little of all {rows}: at this learning rate each step undoes "
        "what the last one did.",
        (remedy,),
    )


def _is_large_batch(exam: Examination) -> bool:
    """Whether an epoch is a handful of steps, although there are rows for many."""
    size, rows = exam.case.batch_size, _rows(exam)
    return rows >= 4 * _FEWEST_STEPS and size * 4 >= rows and size > 64 and exam.planned * size >= 3 * rows


def batch_too_large(exam: Examination) -> Suspicion | None:
    """Every row is read many times, but only a few steps are taken."""
    if not _began(exam) or not _is_large_batch(exam) or exam.planned > 100 or exam.observed is None:
        return None
    stands, moves, steps = standing(exam), motion(exam), steps_of(exam)
    if not stands.short or moves.refused or not steps.overshoot < _STRAIGHT:
        return None
    size, rows = exam.case.batch_size, _rows(exam)
    smaller = min(32, max(8, rows // 16))
    remedy = Remedy(
        f"take {smaller} rows a step instead of {size}",
        f"fogline.Recipe(batch_size={smaller})",
        on_recipe=lambda recipe: recipe.replace(batch_size=smaller, accumulate=1),
        place="batch",
        order=RECIPE,
    )
    return Suspicion(
        "batch_too_large",
        0.75,
        (
            Evidence("steps in all", exam.planned, "hundreds"),
            Evidence("rows a step", size, f"{smaller}"),
            Evidence("overshoot, median", steps.overshoot, "-0.3 to 0.5: -1 is a slope that a step has not changed"),
        ),
        f"The rows are read again and again, but {size} of {rows} at a time: that makes {exam.planned} steps in all, "
        "and the loss is still falling in a straight line. Smaller batches take more steps for the same work.",
        (remedy,),
    )


def regularization_too_strong(exam: Examination) -> Suspicion | None:
    """Weight decay or dropout that takes away more than the data can put in."""
    if not _began(exam):
        return None
    stands = standing(exam)
    if not (stands.short or stands.train_short):
        return None
    return _dropout(exam) or _decay(exam)


def _dropout(exam: Examination) -> Suspicion | None:
    rates = [float(m.p) for m in exam.anatomy.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    seen, moves = exam.observed, motion(exam)
    if not rates or max(rates) < 0.5 or seen is None or not math.isfinite(seen.train_loss):
        return None
    gap, learned = moves.last - seen.train_loss, abs(moves.start - seen.train_loss)
    if max(rates) < 0.8 and gap < 0.25 * learned:
        return None
    highest = max(rates)
    remedy = Remedy(
        f"drop a quarter as much: {highest / 4:.2g} instead of {highest:.2g}",
        f"nn.Dropout({highest / 4:.2g})",
        on_model=lambda model: with_dropout(model, 0.25),
        place="dropout",
        order=BODY,
    )
    return Suspicion(
        "regularization_too_strong",
        0.7,
        (
            Evidence("largest dropout", highest, "0.1 to 0.5"),
            Evidence("loss in training, of the same rows without dropout", f"{moves.last:.3g}, {seen.train_loss:.3g}"),
        ),
        f"Dropout takes {highest:.0%} of a layer's units away at every step: what is left can hardly tell the examples "
        "apart.",
        (remedy,),
    )


def _decay(exam: Examination) -> Suspicion | None:
    recipe, seen = resolved(exam), exam.observed
    spec = spec_of(recipe.optimizer)
    decay = spec.weight_decay if recipe.weight_decay is None else recipe.weight_decay
    anatomy = wide_trained(exam)
    if not decay or seen is None or anatomy is None:
        return None
    inertia = 1 / (1 - spec.momentum) if spec.edge in ("heavy_ball", "nesterov") else 1.0
    folds = seen.lr * decay * seen.steps * inertia
    pull, slope = _pull(exam, decay)
    decoupled = spec.name in _DECOUPLED
    adaptive = spec.name in _ADAPTIVE and not decoupled
    if not (pull > slope if adaptive else folds > 1):
        return None
    remedy = Remedy(
        "no weight decay",
        "fogline.Recipe(weight_decay=0.0)",
        on_recipe=lambda recipe: recipe.replace(weight_decay=0.0),
        place="decay",
        order=RECIPE,
    )
    return Suspicion(
        "regularization_too_strong",
        0.7 if adaptive or folds > 3 else 0.5,
        (
            Evidence("weight decay", float(decay), "1e-4 to 1e-2"),
            Evidence("times the weights are drawn to 1/e of themselves in this run", folds, "below 1"),
            Evidence("pull of the decay, slope of the loss", f"{pull:.2g}, {slope:.2g}", "a small share"),
        ),
        "Weight decay draws the weights to zero faster than the loss can build them up: what is learned is forgotten.",
        (remedy,),
    )


def _pull(exam: Examination, decay: float) -> tuple[float, float]:
    """Root mean square of the decay's and of the loss's gradient over the matrices of the trained model."""
    anatomy = wide_trained(exam)
    assert anatomy is not None
    matrices = {name: p for name, p in anatomy.named_parameters() if p.ndim >= 2}
    pulls = [decay * rms(p) for p in matrices.values()]
    slopes = [rms(anatomy.gradients.get(name)) for name in matrices]
    mean = len(matrices) or 1
    return math.sqrt(sum(x * x for x in pulls) / mean), math.sqrt(sum(x * x for x in slopes) / mean)


ON_ONE_BATCH = ()
IN_MOTION = (
    lr_too_high,
    lr_too_low,
    bad_schedule,
    too_few_steps,
    optimizer_mismatch,
    batch_too_small,
    batch_too_large,
    regularization_too_strong,
)
