"""How steps are taken: eagerly, compiled, or several in one call - by measurement, decided before the first step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fogline.data.source import InMemory
from fogline.descent.batches import rows_of
from fogline.descent.captured import FEWEST, CannotCaptureError, CapturedStep
from fogline.descent.graph import Program, compile_steps
from fogline.descent.interrupts import poll
from fogline.descent.machine import Kept, Machine, kept, put_back
from fogline.descent.optimizer_state import in_eight_bits
from fogline.descent.randomness import TRAIN, private_randomness, seed_step
from fogline.descent.recorded import CannotCompileError, trace
from fogline.descent.state import Descent
from fogline.descent.step import CompiledStep, EagerStep

CHUNK = 16
_WARM_UP, _ROUNDS = 2, 7
_COMPILE_SECONDS = 20.0  # assumed before anything was compiled: a cold start of Inductor with its C++ compiler
_WORTH = 2.0  # the saving must be this many times the cost: two runs should not differ in mode for noise
_CLEARLY = 0.85  # of an eager step, for the same reason
_AGREEMENT = 1e-2


def choose_step(descent: Descent, chosen: dict[str, Any], *, chunks: bool) -> EagerStep | CompiledStep:
    """The stepper of a run; writes mode, reason and times into ``chosen``.

    Args:
        descent: with its eager step.
        chosen: ``mode`` of a run that is resumed, else filled here.
        chunks: whether several steps in one call are allowed.
    """
    eager = descent.stepper
    assert isinstance(eager, EagerStep)
    asked = chosen.get("mode", descent.recipe.step)
    obstacle = _obstacle(descent)
    if asked != "eager" and obstacle is not None:
        chosen |= {"mode": "eager", "why": obstacle}
        return eager
    if asked != "eager" and eager.deferred:
        return _captured(descent, eager, chosen)
    program = None
    try:
        if asked == "auto":
            with private_randomness(descent.machine.device):
                program = _worthwhile(descent, chosen)
        elif asked != "eager":
            width = chosen.get("chunk") or (_width(descent) if asked == "chunked" and chunks else 1)
            program = _program(descent, width)
        if program is not None:
            _check_agreement(descent, program)
    except CannotCompileError as error:
        chosen["why"], program = str(error), None
    if program is None:
        chosen["mode"] = "eager"
        return eager
    chosen |= {
        "mode": "chunked" if program.chunk > 1 else "compiled",
        "compile_seconds": round(program.seconds, 3),
        "chunk": program.chunk,
    }
    return CompiledStep(eager, program)


def _captured(descent: Descent, eager: EagerStep, chosen: dict[str, Any]) -> EagerStep:
    """The step as a CUDA graph where it can be one: by rule, not by measurement, since it is never the slower one."""
    ahead = None if descent.length.expected is None else descent.length.expected - descent.step
    if "mode" not in chosen and ahead is not None and ahead < FEWEST:
        chosen |= {"mode": "eager", "why": f"{ahead} steps lie ahead: recording a graph takes as long as a few"}
        return eager
    try:
        rate = descent.rate(descent.step)
        captured = CapturedStep(descent.machine, descent.batches, eager.examples, rate)
    except CannotCaptureError as error:
        chosen |= {"mode": "eager", "why": str(error)}
        return eager
    chosen["mode"] = "captured"
    return captured


def _obstacle(descent: Descent) -> str | None:
    machine = descent.machine
    for there, what in (
        (machine.needs_closure, "the optimizer evaluates the loss several times a step"),
        (machine.scaler is not None, "float16 gradient scaling is taken eagerly"),
        (in_eight_bits(machine.optimizer), "the optimizer compiles its own part of the step"),
        (bool(machine.recompute), "activations are computed again on the way back"),
        (machine.parts > 1, "gradients are accumulated over micro-batches"),
        (machine.device.type not in ("cpu", "cuda"), f"there are no graphs on {machine.device.type}"),
    ):
        if there:
            return what
    return None


def _width(descent: Descent) -> int:
    """How many steps one call takes: no more than an epoch has full batches, nor than lie before a validation."""
    batches = descent.batches
    if not isinstance(batches.source, InMemory) or descent.average is not None:
        return 1  # data from elsewhere comes batch by batch, and an average of the weights moves every step
    full = min(batches.source.size // batches.batch_size, descent.next_stop())
    # Of the widths near the best one, that which leaves the fewest steps of an epoch to be taken singly.
    return max(
        1, min(full, min(range(CHUNK + 4, CHUNK - 8, -1), key=lambda width: full % width if width <= full else full))
    )


def _program(descent: Descent, width: int) -> Program:
    poll()  # compiling cannot be interrupted
    batch = next(descent.batches.stream(0))
    machine = descent.machine
    columns = None if descent.examples is None else descent.examples.columns
    return compile_steps(trace(machine.objective, machine.optimizer, machine.clipping, batch, columns), batch, width)


def _worthwhile(descent: Descent, chosen: dict[str, Any]) -> Program | None:
    """The compiled step, where measuring says that it pays for its compiling several times over.

    Raises:
        CannotCompileError: it would pay, and cannot be had.
    """
    trial = EagerStep(descent.machine.copied(), descent.batches, deferred=False)
    batch, rate = next(descent.batches.stream(0)), descent.rate(0)

    def eager() -> object:
        return trial.take(0, batch, rate)

    chosen["eager_seconds"] = _medians(eager)[0]
    steps = None if descent.length.expected is None else descent.length.expected - descent.step
    ahead = descent.length.limit if steps is None else chosen["eager_seconds"] * steps
    if ahead is not None and ahead < _WORTH * _COMPILE_SECONDS:
        chosen["why"] = f"about {ahead:.1f} s of steps lie ahead: compiling would not pay"
        return None
    program = _program(descent, 1)
    lr = torch.zeros(1, dtype=program.rate_type, device=descent.machine.device)
    saved = kept(descent.machine)
    chosen["eager_seconds"], chosen["compiled_seconds"] = _medians(eager, lambda: program(batch, lr))
    _put_back(descent.machine, saved)
    share = chosen["compiled_seconds"] / chosen["eager_seconds"]
    ahead = descent.length.limit if steps is None else chosen["eager_seconds"] * steps
    assert ahead is not None
    if share > _CLEARLY or ahead * (1 - share) < _WORTH * program.seconds:
        chosen["why"] = f"a compiled step takes {share:.2f} of the time of an eager one, and compiling takes time too"
        return None
    chosen["why"] = f"saves about {ahead * (1 - share):.0f} s for {program.seconds:.0f} s of compiling"
    return program


def _medians(*actions: Callable[[], object]) -> list[float]:
    """Median seconds of each, taken in turn so that a passing load slows all alike; the first rounds only warm up."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(_WARM_UP + _ROUNDS):
        for action, found in zip(actions, times, strict=True):
            started = time.perf_counter()
            action()
            if turn >= _WARM_UP:
                found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in times]


def _check_agreement(descent: Descent, program: Program) -> None:
    """The compiled step must give the losses of the eager one from the same weights, on two different batches.

    A model whose Python code counts calls or draws from Python's random numbers is frozen by tracing; this finds it.

    Raises:
        CannotCompileError: they differ.
    """
    machine = descent.machine
    saved = kept(machine)
    twin = EagerStep(machine.copied(), descent.batches, deferred=False)
    rate = descent.rate(0)
    in_memory = isinstance(descent.batches.source, InMemory)
    with private_randomness(machine.device):
        for k in range(2):
            place = k * program.chunk
            rows = descent.batches.run(place, program.chunk) if in_memory else next(descent.batches.stream(place))
            if rows is None or rows_of(rows) != program.chunk * descent.batches.batch_size:
                break
            seed_step(machine.seed, place, TRAIN, machine.device)
            lr = torch.full((program.chunk,), rate, dtype=program.rate_type, device=machine.device)
            losses = program(rows, lr)[0][:, 0].tolist()
            if program.random:
                continue  # the eager step draws in another order where several steps share one seed
            expected = [
                float(twin.take(place + i, batch, rate).loss)
                for i, batch in zip(range(program.chunk), descent.batches.stream(place), strict=False)
            ]
            wrong = [
                (a, b) for a, b in zip(losses, expected, strict=True) if not abs(a - b) <= _AGREEMENT * abs(b) + 1e-6
            ]
            if wrong and all(b == b and abs(b) < float("inf") for _, b in wrong):
                _put_back(machine, saved)
                raise CannotCompileError(
                    f"the compiled step gave loss {wrong[0][0]:.6g} where the eager one gave {wrong[0][1]:.6g}"
                )
    _put_back(machine, saved)


def _put_back(machine: Machine, saved: Kept) -> None:
    put_back(saved)
    for parameter in machine.parameters:
        parameter.grad = None
