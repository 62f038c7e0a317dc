"""How steps are taken: eagerly, compiled, or several in one call - by measurement, decided before the first step."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fogline.data.source import InMemory
from fogline.descent.graph import CannotCompileError, Program, compile_steps, trace
from fogline.descent.optimizers import load_state_tensors, state_scalars, state_tensors
from fogline.descent.randomness import TRAIN, private_randomness, seed_step
from fogline.descent.state import Descent
from fogline.descent.step import CompiledStep, EagerStep, Machine

CHUNK = 16
_PROBED_STEPS = 5
_COMPILE_SECONDS = 20.0  # assumed before anything was compiled: a cold start of Inductor with its C++ compiler
_WORTH = 2.0  # the saving must be this many times the cost: two runs should not differ in mode for noise
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
    if asked == "auto":
        with private_randomness(descent.machine.device):
            asked = _by_measurement(descent, eager, chosen)
    if asked == "eager":
        chosen.setdefault("mode", "eager")
        return eager
    reason = _obstacle(descent)
    if reason is None:
        try:
            programs = _programs(descent, eager, 1 if asked == "compiled" or not chunks else CHUNK)
            _check_agreement(descent, programs)
        except CannotCompileError as error:
            reason = str(error)
        else:
            several = any(program.chunk > 1 for program in programs)
            chosen |= {
                "mode": "chunked" if several else "compiled",
                "compile_seconds": round(sum(program.seconds for program in programs), 3),
                "chunk": max(program.chunk for program in programs),
            }
            return CompiledStep(eager, programs)
    chosen |= {"mode": "eager", "why": reason}
    return eager


def _obstacle(descent: Descent) -> str | None:
    machine = descent.machine
    for there, what in (
        (machine.needs_closure, "the optimizer evaluates the loss several times a step"),
        (machine.scaler is not None, "float16 gradient scaling is taken eagerly"),
        (machine.parts > 1, "gradients are accumulated over micro-batches"),
        (eager_only(descent), "steps are gated on the device there"),
    ):
        if there:
            return what
    return None


def eager_only(descent: Descent) -> bool:
    """Whether the gate is deferred, as on accelerators: compiled steps answer at once."""
    return isinstance(descent.stepper, EagerStep) and descent.stepper.deferred


def _programs(descent: Descent, eager: EagerStep, chunk: int) -> list[Program]:
    batch = next(descent.batches.stream(0))
    machine = descent.machine
    traced = trace(machine.objective, machine.optimizer, machine.clipping, batch)
    in_memory = isinstance(descent.batches.source, InMemory) and descent.average is None
    steps = descent.batches.steps_per_epoch or 0
    if chunk == 1 or not in_memory or steps < chunk or descent.next_stop() < chunk:
        return [compile_steps(traced, batch)]
    return [compile_steps(traced, batch, chunk)]


def _by_measurement(descent: Descent, eager: EagerStep, chosen: dict[str, Any]) -> str:
    """Compile only where the saving pays for it several times over."""
    ahead = _seconds_ahead(descent, eager, chosen)
    reason = _obstacle(descent)
    if reason is not None:
        chosen["why"] = reason
        return "eager"
    if ahead < _WORTH * _COMPILE_SECONDS:
        chosen["why"] = f"about {ahead:.1f} s of steps lie ahead: compiling would not pay"
        return "eager"
    try:
        program = _programs(descent, eager, 1)[0]
    except CannotCompileError as error:
        chosen["why"] = str(error)
        return "eager"
    batch = next(descent.batches.stream(0))
    compiled_seconds = _timed(lambda: program(batch, torch.zeros(1, dtype=program.rate_type)), descent.machine)
    eager_seconds = chosen["eager_seconds"]
    chosen["compiled_seconds"] = compiled_seconds
    saved = ahead * (1 - compiled_seconds / eager_seconds)
    if saved < _WORTH * program.seconds:
        chosen["why"] = f"a compiled step takes {compiled_seconds / eager_seconds:.2f} of an eager one"
        return "eager"
    chosen["why"] = f"saves about {saved:.0f} s for {program.seconds:.0f} s of compiling"
    return "compiled"


def _seconds_ahead(descent: Descent, eager: EagerStep, chosen: dict[str, Any]) -> float:
    machine = _copied(descent.machine)
    trial = EagerStep(machine, descent.batches, deferred=False)
    batch = next(descent.batches.stream(0))
    rate = descent.rate(0)
    chosen["eager_seconds"] = _timed(lambda: trial.take(0, batch, rate), None)
    if descent.limit is not None:
        return descent.limit
    assert descent.total is not None
    return float(chosen["eager_seconds"]) * (descent.total - descent.step)


def _copied(machine: Machine) -> Machine:
    """A machine of its own on copies of model and optimizer state."""
    model = copy.deepcopy(machine.objective.model)
    optimizer = machine.optimizer
    twin = copy.copy(optimizer)
    partner = dict(zip(machine.objective.model.parameters(), model.parameters(), strict=True))
    twin.param_groups = [{**g, "params": [partner[p] for p in g["params"]]} for g in optimizer.param_groups]
    twin.state = type(optimizer.state)(dict)
    load_state_tensors(twin, state_tensors(optimizer), state_scalars(optimizer))
    return replace(machine, objective=replace(machine.objective, model=model), optimizer=twin)


def _timed(action: Callable[[], object], kept: Machine | None) -> float:
    """Median seconds of a few calls after one that warms up; the state of ``kept`` is put back."""
    saved = None if kept is None else _snapshot(kept)
    action()
    times = []
    for _ in range(_PROBED_STEPS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    if kept is not None and saved is not None:
        _put_back(kept, saved)
    return statistics.median(times)


def _check_agreement(descent: Descent, programs: list[Program]) -> None:
    """The compiled step must give the losses of the eager one from the same weights, on two different batches.

    A model whose Python code counts calls or draws from Python's random numbers is frozen by tracing; this finds it.

    Raises:
        CannotCompileError: they differ.
    """
    machine = descent.machine
    program = programs[0]
    saved = _snapshot(machine)
    twin = EagerStep(_copied(machine), descent.batches, deferred=False)
    rate = descent.rate(0)
    with private_randomness(machine.device):
        for k in range(2):
            place = k * program.chunk
            rows = descent.batches.run(place, program.chunk) if program.chunk > 1 else descent.batches.run(place, 1)
            if rows is None:
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


def _snapshot(machine: Machine) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    memory = [] if machine.clipping is None or machine.clipping.memory is None else [machine.clipping.memory]
    state = [v for s in machine.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    live = [*(p.data for p in machine.objective.model.parameters()), *machine.buffers, *state, *memory]
    return live, [value.clone() for value in live]


def _put_back(machine: Machine, saved: tuple[list[torch.Tensor], list[torch.Tensor]]) -> None:
    with torch.no_grad():
        for live, old in zip(*saved, strict=True):
            live.copy_(old)
    for parameter in machine.parameters:
        parameter.grad = None
