"""What a checkpoint keeps of a descent, and the way back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from fogline.descent.checkpoint import BEST, Checkpoint, load_model_tensors, model_tensors
from fogline.descent.counters import Counters
from fogline.descent.machine import below, learned, load_learned
from fogline.descent.optimizers import state_scalars
from fogline.descent.schedules import PlateauState
from fogline.record.signals import numbers

if TYPE_CHECKING:
    from fogline.descent.state import Descent

EXAMPLES = "examples/"
_GUARD = "guard/"


def checkpoint_of(descent: Descent) -> Checkpoint:
    """A checkpoint of this very moment."""
    if descent.snapshots is not None:
        descent.snapshots.save()  # first: a run that goes on from this checkpoint finds all up to it
    machine = descent.machine
    model = model_tensors(machine.objective.model)
    model |= {BEST + name: value for name, value in (descent.best or {}).items()}
    optimizer = learned(machine, descent.average)
    kept, remembered = ({}, None) if descent.guard is None else descent.guard.state()
    optimizer |= {_GUARD + name: value for name, value in kept.items()}
    if descent.examples is not None:
        optimizer |= {EXAMPLES + name: value for name, value in descent.examples.state(descent.step).items()}
    counters = {**asdict(descent.counters), "seconds": descent.elapsed(), "parts": machine.parts}
    counters["recompute"] = bool(machine.recompute)
    state = {
        "counters": counters,
        "optimizer": state_scalars(machine.optimizer),
        "scaler": {} if machine.scaler is None else machine.scaler.state_dict(),
        "guard": remembered,
        "length": descent.length.state(),
        "stream": descent.batches.position(descent.step),
        "last_event": descent.store.last_event(),
        "since_check": numbers(descent.since_check),
    }
    return Checkpoint(descent.step, model, optimizer, state)


def load(descent: Descent, found: Checkpoint) -> None:
    """Take a descent back to where a checkpoint was written."""
    machine = descent.machine
    values = found.state["counters"]
    descent.counters = Counters(**{**values, "plateau": PlateauState(**values["plateau"])})
    descent.saved_step = descent.step
    patience = descent.recipe.patience
    descent.stopped_early = patience is not None and descent.counters.waited >= patience
    machine.parts = descent.counters.parts
    machine.recompute = descent.counters.recompute or machine.recompute
    load_model_tensors(machine.objective.model, found.model)
    best = {name.removeprefix(BEST): v for name, v in found.model.items() if name.startswith(BEST)}
    # Without held-out data the "best" are those that were kept at the end, and the end has moved.
    descent.best = {name: v.to(machine.device) for name, v in best.items()} if best and descent.scorer else None
    load_learned(machine, descent.average, found.optimizer, found.state["optimizer"])
    if machine.scaler is not None:
        machine.scaler.load_state_dict(found.state["scaler"])
    descent.length.load(found.state["length"])
    descent.batches.resume_at(found.state.get("stream"))
    descent.since_check = list(found.state["since_check"])
    if descent.guard is not None and found.state.get("guard"):
        descent.guard.load(below(found.optimizer, _GUARD), found.state["guard"])
