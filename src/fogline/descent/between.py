"""What is done between two steps: the guard looks back, the rate is verified, the sharpness measured."""

from __future__ import annotations

from fogline.data.source import Stream
from fogline.descent.group import by_first
from fogline.descent.guard import LOWER, MOST
from fogline.descent.randomness import private_randomness
from fogline.descent.state import Descent
from fogline.descent.step import CompiledStep


def look_after(descent: Descent) -> None:
    """At the end of a block of steps: keep its state, or go back to the last good one at a lower rate."""
    guard, counters = descent.guard, descent.counters
    wrong = None if guard is None else guard.look(descent.step, counters.refused_in_a_row)
    if guard is None or wrong is None:
        return
    counters.rollbacks += 1
    if counters.rollbacks > MOST:
        descent.store.event(descent.step, "gave_up", f"{wrong}; it went back {MOST} times already")
        return
    kept, counters.refused_in_a_row = guard.back(), 0
    counters.rate_factor *= LOWER
    descent.store.event(
        descent.step,
        "rollback",
        f"{wrong}: back to the weights of step {kept}, at a third of the learning rate "
        f"(time {counters.rollbacks} of at most {MOST})",
    )


def verify_rate(descent: Descent) -> None:
    """Once, where the verification says: try other rates from this very state, and take one that is clearly better.

    Raises:
        StopRequested: a signal came meanwhile; it is done again when the run goes on.
    """
    verification, counters = descent.verification, descent.counters
    if verification is None or counters.verified or descent.step != verification.step:
        return
    with private_randomness(descent.machine.device):
        factor, why = by_first(descent.world, lambda: verification(descent), "the verification of the rate")
    counters.verified = True
    counters.rate_factor *= factor
    chosen = "kept" if factor == 1 else f"multiplied by {factor:.3g}"
    descent.store.event(descent.step, "rate_verified", f"learning rate {chosen}: {why}", {"factor": factor})


def look_at_sharpness(descent: Descent) -> None:
    """Measure how near the steps are to the limit of the optimizer, when the budget affords it."""
    stepper, step = descent.stepper, descent.step
    if descent.sharpness is None or not descent.sharpness.affords(step) or not step:
        return
    several = isinstance(stepper, CompiledStep) and stepper.chunked is not None
    if descent.world is not None:  # the batch of all, of which this process took a share
        batch = None if isinstance(descent.batches.source, Stream) else descent.batches.at(step - 1)
    else:
        batch = descent.batches.at(step - 1) if several else stepper.batch
    value = None if batch is None else descent.sharpness.measure(step, batch, descent.rate(step - 1))
    if value is not None:
        descent.recorder.sharpness(step - 1, value)


def attend(descent: Descent) -> None:
    """Let whoever attends the run end it; what it says is the reason."""
    why = None if descent.attendant is None else descent.attendant(descent)
    if why is not None:
        descent.stopped_early = True
        descent.store.event(descent.step, "ended", why)
