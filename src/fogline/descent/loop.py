"""THE loop. Everything that trains goes through it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from fogline.descent.batches import rows_of
from fogline.descent.interrupts import poll
from fogline.descent.replay import explain_refusal
from fogline.descent.state import Descent
from fogline.descent.step import EagerStep, Outcome
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
        outcome: loss and gradient norm where they arose.
        run: the run it belongs to; ``run.model`` is the module as it is now.
    """

    number: int
    epoch: float
    lr: float
    outcome: Outcome
    run: Run

    @cached_property
    def loss(self) -> float:
        """Mean loss of the batch, before the step. Reading it waits for the device."""
        return float(self.outcome.loss)

    @cached_property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient, before clipping. Reading it waits for the device."""
        return float(self.outcome.gradient_norm)


def steps(descent: Descent, report: ProgressFunction) -> Iterator[tuple[int, float, float, Outcome]]:
    """Descend until the recipe's duration is over.

    In pseudo-code::

        until the duration is over, patience is lost, or nothing but NaN comes:
            if a validation is due:   score the held-out data, remember the best weights
            if a checkpoint is due:   save
            if a signal came:         stop here (the caller saves)
            take the next step(s):    batch -> loss -> gradient -> gate -> clip -> update -> average
            record the signals;       replay what was refused
            yield

    Yields:
        (step, epoch, learning rate, outcome).

    Raises:
        StopRequested: a signal came; the state is that between two steps.
        OSError: the run folder cannot be written.
    """
    recorder, counters, stepper = descent.recorder, descent.counters, descent.stepper
    while True:
        if descent.validation_due() or descent.checkpoint_due() or descent.finished():
            _settle(descent)
        if descent.validation_due():
            descent.validate()
        if descent.finished():
            return
        if descent.checkpoint_due():
            descent.save()
        poll()
        first = descent.step
        probing = descent.probe is not None and not _several(descent) and descent.probe.before()
        outcomes = stepper.advance(first, descent.next_stop(), descent.rate)
        for k, outcome in enumerate(outcomes):
            lr, epoch = descent.rate(first + k), descent.epoch()
            _count(descent, outcome)
            recorder.step(
                first + k, epoch, counters.examples, descent.elapsed(), outcome.loss, lr, outcome.gradient_norm
            )
            yield first + k, epoch, lr, outcome
        _look(descent, probing, outcomes)
        now = time.perf_counter()
        if recorder.due(now):
            _settle(descent)
            recorder.flush()
            report(_progress(descent, outcomes[-1]))


def _several(descent: Descent) -> bool:
    return not isinstance(descent.stepper, EagerStep) and descent.stepper.chunked is not None


def _eager(descent: Descent) -> EagerStep:
    return descent.stepper if isinstance(descent.stepper, EagerStep) else descent.stepper.eager


def _count(descent: Descent, outcome: Outcome) -> None:
    counters = descent.counters
    place = descent.place()
    counters.examples += rows_of(descent.stepper.batch) if place is None else place.stop - place.start
    counters.step += 1
    if outcome.finite is False:
        counters.refused += 1
        counters.refused_in_a_row += 1
        return
    counters.refused_in_a_row = 0
    if descent.average is not None:
        assert descent.recipe.ema is not None
        # The first steps weigh more than the decay says, so that the start is forgotten soon.
        share = 1 - min(descent.recipe.ema, (1 + counters.step) / (10 + counters.step))
        weights = [p.detach() for p in descent.machine.parameters]
        stuck = _eager(descent).stuck
        if stuck is None:
            torch._foreach_lerp_(descent.average, weights, share)
        else:
            for average, weight in zip(descent.average, weights, strict=True):
                average.lerp_(weight, share * (~stuck).to(average.dtype))


def _look(descent: Descent, probing: bool, outcomes: list[Outcome]) -> None:
    """Probe, and replay what was refused."""
    last, recorder = descent.step - 1, descent.recorder
    refused = [descent.step - len(outcomes) + k for k, outcome in enumerate(outcomes) if outcome.finite is False]
    if refused:
        _explain(descent, refused)
    products = None if isinstance(descent.stepper, EagerStep) else descent.stepper.products
    if descent.probe is not None and products is not None and descent.probe.budget.affords(1e-4):
        recorder.probe(descent.probe.read(last, products))
    if not probing or descent.probe is None:
        return
    if refused:
        descent.probe.cancel()
        return
    probed = descent.probe.after(last, descent.stepper.gradients)
    if probed is not None:
        recorder.probe(probed)


def _explain(descent: Descent, refused: list[int]) -> None:
    if descent.counters.refused > _MOST_EXPLAINED:
        return
    machine, batches = descent.machine, descent.batches
    for step in refused:
        rows = batches.rows(step)
        batch = descent.stepper.batch if rows is None else batches.at(step)
        found = explain_refusal(machine.objective, batch, step, machine.seed, machine.device, rows)
        descent.store.event(step, "refused", found["message"], found)


def _settle(descent: Descent) -> None:
    """On an accelerator: look whether a step was refused since last time, and go back behind it."""
    eager = _eager(descent)
    if eager.stuck is None or not bool(eager.stuck):
        return
    first = descent.recorder.first_not_finite()
    assert first is not None
    while descent.step > first:
        descent.counters.step -= 1
        place = descent.place()
        assert place is not None
        descent.counters.examples -= place.stop - place.start
    descent.recorder.forget(first + 1)
    eager.release()
    _count(descent, Outcome(float("nan"), float("nan"), finite=False))
    _explain(descent, [first])


def _progress(descent: Descent, outcome: Outcome) -> ProgressReport:
    counters, elapsed = descent.counters, descent.elapsed()
    position, total = descent.progress()
    return ProgressReport(
        step=descent.step,
        steps=descent.total,
        fraction=min(1.0, position / total),
        loss=float(outcome.loss),
        lr=descent.rate(max(0, descent.step - 1)),
        examples_per_second=counters.examples / max(elapsed, 1e-9),
        epoch=descent.epoch(),
    )
