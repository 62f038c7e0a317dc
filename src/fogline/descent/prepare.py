"""From a task and a recipe to a descent that is ready for its first step: begun, measured, assembled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fogline.descent.assemble import Prepared as Prepared
from fogline.descent.assemble import assemble as assemble
from fogline.descent.assemble import summary as summary
from fogline.descent.group import World
from fogline.descent.optimizers import spec_of
from fogline.descent.precision import compare
from fogline.descent.randomness import PROBE, private_randomness, seed_everything
from fogline.descent.resolve import Resolved
from fogline.descent.start import TYPES
from fogline.descent.start import Start as Start
from fogline.descent.start import begin as begin
from fogline.descent.start import keep_start as keep_start
from fogline.descent.start import operations_of as operations_of
from fogline.recipe import Recipe
from fogline.task import Task


def as_asked(
    task: Any,
    recipe: Any,
    loss: Any,
    valid: Any,
    metrics: Mapping[str, Any] | None,
    target: str | None,
    fields: Mapping[str, Any],
) -> tuple[Task, Recipe]:
    """Task and recipe from what was given: ``(task, recipe)``, or ``(model, data)`` with the rest by name.

    Raises:
        TypeError: the two ways are mixed, or there is no data.
    """
    if isinstance(task, Task):
        given = {"loss": loss, "valid": valid, "metrics": metrics, "target": target}
        for name, value in given.items():
            if value is not None:
                raise TypeError(
                    f"expected {name} in the Task, received it beside the Task; write Task(..., {name}=...)"
                )
        if recipe is not None and not isinstance(recipe, Recipe):
            raise TypeError(f"expected a Recipe after the Task, received {type(recipe).__name__}")
        return task, (recipe or Recipe()).replace(**fields)
    if isinstance(recipe, Recipe) or recipe is None:
        raise TypeError(
            "expected training data after the model, as in fit(model, (X, y), loss=...), or fit(task, recipe)"
        )
    made = Task(model=task, loss=loss, train=recipe, valid=valid, metrics=metrics or {}, target=target)
    return made, Recipe().replace(**fields)


def measure(start: Start, find_rate: Callable[[], Any], world: World | None = None) -> None:
    """Resolve what is measured: precision by its self-check, the learning rate by ``find_rate``.

    Of several processes one measures, on batches of all rows, and the others take what it found.

    Raises:
        StopRequested: a signal came meanwhile.
    """
    if world is None:
        _measure(start, find_rate)
        return

    def measured() -> Any:
        _measure(start, find_rate)
        return [start.resolved.recipe.to_dict(), start.resolved.why, start.notes]

    recipe, why, start.notes = world.by_first(measured, "the measurement of the learning rate")
    start.resolved = Resolved(Recipe.from_dict(recipe), why)
    start.objective.autocast = TYPES.get(start.resolved.recipe.precision)


def _measure(start: Start, find_rate: Callable[[], Any]) -> None:
    resolved = start.resolved
    _check_precision(start)
    if resolved.recipe.parallel == "fsdp" and resolved.recipe.guard == "auto":
        resolved.choose("guard", False, "a model in parts is not kept twice")
    if resolved.recipe.guard == "auto":
        measured = resolved.recipe.lr == "auto" and not spec_of(resolved.recipe.optimizer).needs_closure
        why = "the learning rate is measured" if measured else "the learning rate is yours, or the method's own"
        resolved.choose("guard", measured, why)
    if resolved.recipe.lr != "auto":
        return
    rate = find_rate()
    resolved.choose("lr", rate.value, rate.evidence["rule"])
    resolved.why["lr"] |= {
        "interval": rate.interval,
        "cost_steps": rate.cost_steps,
        "evidence": rate.evidence,
        "warnings": list(rate.warnings),
    }


def _check_precision(start: Start) -> None:
    """Mixed precision must give the loss and the gradient of full precision, else it is not used."""
    objective, resolved = start.objective, start.resolved
    if objective.autocast is None:
        return
    with private_randomness(start.batches.device):
        seed_everything(resolved.recipe.seed, 0, PROBE, start.batches.device)
        found = compare(objective, next(start.batches.stream(0)))
    if found.fault:
        why = f"self-check failed: {found.fault}"
        start.notes.append(f"{resolved.recipe.precision} is not used: {why}")
        resolved.choose("precision", "float32", why)
        objective.autocast = None
        return
    resolved.choose("precision", resolved.recipe.precision, f"self-check passed: {found}")
    if found.doubt:
        start.notes.append(f"{resolved.recipe.precision}: {found.doubt}")
