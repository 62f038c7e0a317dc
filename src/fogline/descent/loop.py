"""THE loop. Everything that trains goes through it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fogline.descent.between import attend, look_after, look_at_sharpness, verify_rate
from fogline.descent.interrupts import poll
from fogline.descent.parallel import ParallelStep
from fogline.descent.replay import explain_refusal
from fogline.descent.state import Descent
from fogline.descent.step import EagerStep, Outcomes
from fogline.descent.validation import check_training, validate
from fogline.progress import ProgressFunction, ProgressReport

if TYPE_CHECKING:
    from fogline.run import Run

_MOST_EXPLAINED = 20


@dataclass(frozen=True)
class Step:
    """One step of a descent, as :func:`fogline.descend` gives it.

    Attributes:
        number: which step, from 0.
        epoch: passes over the data before it, with their fraction.
        lr: the learning rate it was taken with.
        run: the run it belongs to; ``run.model`` is the module as it is now.
    """

    number: int
    epoch: float
    lr: float
    run: Run
    _loss: float | Tensor
    _gradient_norm: float | Tensor

    @cached_property
    def loss(self) -> float:
        """Mean loss of the batch, before the step. Reading it waits for the device."""
        return float(self._loss)

    @cached_property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient, before clipping. Reading it waits for the device."""
        return float(self._gradient_norm)


class Taken(NamedTuple):
    """What one call of the stepper gave: one step, or several."""

    first: int
    epoch: float
    outcomes: Outcomes


def steps(descent: Descent, report: ProgressFunction) -> Iterator[Taken]:
    """Descend until the recipe's duration is over.

    In pseudo-code::

        until the duration is over, patience is lost, or nothing but NaN comes:
            if a block of steps ends: keep its state, or go back to the last good one
            if the rate is to be verified: try others from here
            if a validation is due:   score the held-out data, remember the best weights
            if somebody attends it:   ask whether to go on
            if a checkpoint is due:   save
            if a signal came:         stop here (the caller saves)
            if a snapshot is due:     keep the weights
            take the next step(s):    batch -> loss -> gradient -> gate -> clip -> update -> average
            record the signals;       replay what was refused
            yield

    Raises:
        StopRequested: a signal came; the state is that between two steps.
        OSError: the run folder cannot be written.
    """
    recorder, stepper, probe, snapshots = descent.recorder, descent.stepper, descent.probe, descent.snapshots
    counters, look, stop, wake, probing = descent.counters, 0, 0, 0.0, False
    clock = descent.clock
    while True:
        now = clock()
        if counters.step >= look or now >= wake:
            if not _look_around(descent, report):
                return
            look, stop, wake = descent.next_look()
            probing = probing or (probe is not None and probe.affords())
        poll()
        if snapshots is not None and counters.step >= snapshots.following:
            snapshots.take(counters.step)
        first, epoch = counters.step, descent.epoch()
        if probing:
            _before(descent)
        outcomes = stepper.advance(first, stop, descent.rate)
        recorder.steps(first, epoch, counters.examples, descent.elapsed(now), outcomes, probed=probing)
        _count(descent, first, outcomes)
        if outcomes.finite is False:
            look = 0  # the refusals may be too many
        if probing:
            probing = _after(descent, outcomes)
        yield Taken(first, epoch, outcomes)


def _look_around(descent: Descent, report: ProgressFunction) -> bool:
    """Do what is due besides steps; False when the descent is over."""
    settle(descent)
    for event in descent.machine.events:
        descent.store.event(*event)
    descent.machine.events.clear()
    if descent.recorder.due(time.perf_counter()):
        descent.recorder.flush()
        if descent.examples is not None:
            descent.examples.collect()
        report(_progress(descent))
    look_after(descent)
    if descent.validation_due():
        validate(descent)
    check_training(descent)
    attend(descent)
    if descent.finished():
        return False
    verify_rate(descent)
    look_at_sharpness(descent)
    if descent.checkpoint_due():
        descent.save()
    return True


def _eager(descent: Descent) -> EagerStep:
    return descent.stepper if isinstance(descent.stepper, EagerStep) else descent.stepper.eager


def _count(descent: Descent, first: int, outcomes: Outcomes) -> None:
    """Count the steps taken, explain those that were refused, move the average of the weights."""
    counters, count = descent.counters, len(outcomes.losses)
    rows = descent.batches.rows_at(first)  # several steps in one call are full batches all
    counters.examples += count * (descent.stepper.rows if rows is None else rows)
    counters.step += count
    descent.saw(outcomes.losses)
    if outcomes.finite is False:
        for k, (loss, norm) in enumerate(zip(outcomes.losses, outcomes.norms, strict=True)):
            if isfinite(loss) and isfinite(norm):
                counters.refused_in_a_row = 0
            else:
                counters.refused += 1
                counters.refused_in_a_row += 1
                _explain(descent, first + k)
        return
    counters.refused_in_a_row = 0
    if descent.average is not None:
        _average(descent)


def _average(descent: Descent) -> None:
    assert descent.average is not None
    assert descent.recipe.ema is not None
    # The first steps weigh more than the decay says, so that the start is forgotten soon.
    share = 1 - min(descent.recipe.ema, (1 + descent.step) / (10 + descent.step))
    weights = [p.detach() for p in descent.machine.parameters]
    stuck = _eager(descent).stuck
    if stuck is None:
        torch._foreach_lerp_(descent.average, weights, share)
        return
    for average, weight in zip(descent.average, weights, strict=True):
        average.lerp_(weight, share * (~stuck).to(average.dtype))


def _before(descent: Descent) -> None:
    """A probe of single steps keeps the weights before each; a call of several steps measures itself."""
    if descent.probe is not None and (isinstance(descent.stepper, EagerStep) or descent.stepper.chunked is None):
        descent.probe.before()


def _after(descent: Descent, outcomes: Outcomes) -> bool:
    """What the probe says of the step(s) just taken; True if it wants the next one too."""
    probe, stepper, last = descent.probe, descent.stepper, descent.step - 1
    assert probe is not None
    if not isinstance(stepper, EagerStep) and stepper.chunked is not None:
        if stepper.products is None:
            return True  # a single step between calls of several: wait for the next call
        descent.recorder.probe(probe.read(last, stepper.products))
        return False
    if outcomes.finite is False:
        probe.cancel()
        return False
    probed = probe.after(last, _unclipped(descent, outcomes))
    if probed is not None:
        descent.recorder.probe(probed)
    return probe.open


def _unclipped(descent: Descent, outcomes: Outcomes) -> Sequence[Tensor]:
    """The gradients of the step just taken; the eager step clips them where they are."""
    gradients, norm = descent.stepper.gradients, outcomes.norms[-1]
    if descent.machine.clipping is None or not isinstance(descent.stepper, EagerStep):
        return gradients
    clipped = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(list(gradients)))))
    return torch._foreach_mul(list(gradients), float(norm / clipped)) if clipped > 0 else gradients


def _explain(descent: Descent, step: int) -> None:
    if descent.counters.refused > _MOST_EXPLAINED:
        return
    machine, batches = descent.machine, descent.batches
    if isinstance(descent.stepper, ParallelStep):
        found = descent.stepper.explained(step)
    else:
        rows = batches.rows(step)
        batch = descent.stepper.batch if rows is None else batches.at(step)
        found = explain_refusal(machine.objective, batch, step, machine.seed, machine.device, rows)
    descent.store.event(step, "refused", found["message"], found)
    if descent.guard is not None and found["where"] == "data":
        descent.guard.memory.bad_data = True


def settle(descent: Descent) -> None:
    """On an accelerator: look whether a step was refused since last time, and go back behind it."""
    eager = _eager(descent)
    if eager.stuck is None or not bool(eager.stuck):
        return
    first = descent.recorder.first_not_finite()
    assert first is not None
    counters = descent.counters
    while counters.step > first:
        counters.step -= 1
        counters.examples -= descent.batches.rows_at(counters.step) or 0
    descent.recorder.forget(first + 1)
    if descent.snapshots is not None:
        descent.snapshots.forget(first)
    if descent.examples is not None:
        descent.examples.back(first + 1)
    descent.recorder.flush()  # what waits is searched for the next refusal: this one must not be found again
    eager.release()
    _count(descent, first, Outcomes([nan], [nan], [descent.rate(first)], finite=False))


def _progress(descent: Descent) -> ProgressReport:
    counters, last = descent.counters, descent.recorder.last
    position, total = descent.length.position(descent.step, descent.elapsed())
    return ProgressReport(
        step=descent.step,
        steps=descent.length.total,
        fraction=min(1.0, position / total),
        loss=last,
        lr=descent.rate(max(0, descent.step - 1)),
        examples_per_second=counters.examples / max(descent.elapsed(), 1e-9),
        epoch=descent.epoch(),
    )
