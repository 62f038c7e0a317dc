"""What Ultralytics' trainer does that costs training, in the doctor's words.

Its defaults suit long runs on large data. On small data, or where a setting is not what it seems, they take most of the
steps away; each case here is read from what the trainer is about to do or has done, not from a rule of thumb about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from fogline.doctor.finding import Evidence, Finding, Remedy
from fogline.errors import some

FEW_UPDATES = 100
"""Updates below which every one that accumulation takes away is missed: their average of the weights, which is what is
validated and saved, needs as many to forget where it began."""
LONG_WARMUP = 0.5
ALWAYS = 0.9
MOST_CLIPPED = 20
"""Steps after which the clip is judged."""


def accumulation_at(batch: int, warmup: int, full: int) -> int:
    """How many batches make an update at a batch of the warm-up: from one to the full number along a line.

    >>> [accumulation_at(k, 12, 4) for k in (0, 6, 12, 100)]
    [1, 2, 4, 4]
    """
    if batch > warmup or warmup == 0:
        return full
    return max(1, round(1 + (full - 1) * batch / warmup))


def planned_updates(batches: int, warmup: int, full: int) -> int:
    """How many updates so many batches make.

    Args:
        batches: of the whole run.
        warmup: batches of the warm-up.
        full: batches an update afterwards.

    >>> planned_updates(12, 12, 8), planned_updates(12, 0, 6)
    (3, 2)
    """
    last, updates = -1, 0
    for batch in range(batches):
        if batch - last >= accumulation_at(batch, warmup, full):
            last, updates = batch, updates + 1
    return updates


def few_updates(updates: int, batches: int, full: int, nominal: int, size: int) -> Finding | None:
    """Accumulation to the nominal batch size leaves a short run hardly any updates."""
    if full < 2 or updates >= FEW_UPDATES or 2 * updates > batches:
        return None
    return Finding(
        "too_few_steps",
        "serious",
        0.8,
        (
            Evidence("updates of the whole run", updates, f"{batches}, one a batch"),
            Evidence("batches an update after the warm-up", full, 1),
        ),
        f"The gradients of {full} batches of {size} make one update, because nbs={nominal} asks for that many images: "
        f"{batches} batches come to {updates} updates. The weights hardly move in so few.",
        None,
        Remedy("let every batch make an update", f"yolo.train(..., nbs={size})"),
        "or train for more epochs",
    )


def long_warmup(warmup: int, batches: int) -> Finding | None:
    """The rate has reached its height when the run is half over, or never does."""
    if not batches or warmup < LONG_WARMUP * batches:
        return None
    return Finding(
        "bad_schedule",
        "serious",
        0.7,
        (
            Evidence("share of the batches before the learning rate is at its height", warmup / batches, "a tenth"),
            Evidence("learning rate of the first step", 0.0, "above 0", 0),
        ),
        f"The warm-up takes {warmup} of {batches} batches: most of the run is spent below the learning rate that was "
        "asked for, and the first step is taken at a rate of 0.",
        None,
        Remedy("warm up for less of the run", "yolo.train(..., warmup_epochs=0.1 * epochs)"),
    )


def zero_first_step() -> Finding:
    """A first step at a rate of zero: one batch is spent on nothing."""
    return Finding(
        "bad_schedule",
        "minor",
        0.95,
        (Evidence("learning rate of the first step", 0.0, "above 0", 0),),
        "The warm-up begins at 0, so the first update leaves the weights as they are: its batch is spent on nothing.",
        None,
        Remedy("begin above 0", "yolo.train(..., warmup_epochs=0)"),
        "it costs one batch; on short runs take no warm-up, or a short one",
    )


def always_clipped(norms: Sequence[float], limit: float, step: int, size: int) -> Finding | None:
    """The clip acts at nearly every step, so it and not the gradient decides how long steps are; of a summed loss."""
    share = clipped_share(norms, limit)
    if share < ALWAYS:
        return None
    return Finding(
        "sum_reduction",
        "minor",
        0.8,
        (
            Evidence(f"share of steps whose gradient is cut to {limit:g}", share, "now and then", step),
            Evidence("gradient norm before it is cut, median", median(norms), f"below {limit:g}", step),
        ),
        f"The loss is summed over the {size} images of a batch, and the gradient is as many times as long: every one "
        f"is cut to a norm of {limit:g}. The length of a step says nothing of the slope any more, and another batch "
        "size changes only its direction.",
        None,
        None,
        "choose the learning rate for steps of that length: fogline.plugins.ultralytics.find_lr measures it with the "
        "clip in place",
    )


def clipped_share(norms: Sequence[float], limit: float) -> float:
    """The share of the steps whose gradient was cut.

    >>> clipped_share([5.0, 20.0, 30.0, 40.0], 10.0)
    0.75
    """
    return sum(norm > limit for norm in norms) / len(norms)


def rate_ignored(asked: float, taken: float, optimizer: str) -> Finding:
    """``optimizer="auto"`` takes a rate of its own."""
    return Finding(
        "optimizer_mismatch",
        "serious",
        0.95,
        (Evidence("learning rate taken", taken, asked, 0), Evidence("optimizer taken", optimizer, "auto", 0)),
        f'lr0={asked:g} was asked for and is not used: optimizer="auto" takes {optimizer} with a rate of its own, '
        f"{taken:g}.",
        None,
        Remedy("name the optimizer", f'yolo.train(..., optimizer="{optimizer}", lr0={asked:g})'),
        "or hand the rate to watch(yolo, lr=...), which any choice of the optimizer keeps",
    )


RESUMED = (
    "resumed by Ultralytics: weights and optimizer state come from float16 and the random numbers begin anew, so this "
    "is not bit for bit the run that was interrupted; fogline.fit(task(yolo, data=...)) resumes exactly"
)


def bad_batch(step: int, files: Sequence[str], module: str | None, *, in_data: bool) -> Finding:
    """A batch whose loss or gradient is not finite, left out."""
    named = some(files)
    said = f"the images {named}" if files else "no single image"
    where = f"Of {said} the values are not finite." if in_data else f"It comes from {said}."
    return Finding(
        "nan_in_data" if in_data else "nan_source",
        "serious",
        0.97 if files else 0.6,
        (Evidence("images", named or "none alone", "none", step, module),),
        f"The loss or the gradient of a batch is not finite. {where} The batch was left out, and the statistics of "
        "batch normalisation were put back.",
        None,
        None,
        "look at these images, and at what is done to them before the model sees them" if files else "lower the rate",
    )
