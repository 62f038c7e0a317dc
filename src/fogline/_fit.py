"""``fit``, ``descend`` and ``resume``: a task and a recipe in, a run out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fogline.data.source import InMemory, fingerprint
from fogline.descent.batches import split
from fogline.descent.confusion import Confusion, added_up
from fogline.descent.group import World, joined
from fogline.descent.guard import MOST as MOST_ROLLBACKS
from fogline.descent.interrupts import (
    Interrupted,
    StopRequested,
    agreeing,
    poll,
    requested_code,
    watched_signals,
    watched_stop,
)
from fogline.descent.launch import begun_before, launched, same_for_all
from fogline.descent.loop import Step, Taken, settle, steps
from fogline.descent.parallel import ParallelStep
from fogline.descent.prepare import Prepared, Start, as_asked, assemble, begin, keep_start, measure, summary
from fogline.descent.randomness import PROBE, Surroundings, seed_everything
from fogline.descent.state import Descent
from fogline.descent.stopping import Slope, judge, measure_slope
from fogline.doctor.healing import Healing
from fogline.progress import ProgressFunction, make_progress
from fogline.rate import measure_rate, verification
from fogline.recipe import Duration, Recipe
from fogline.record.info import ending, frame, new_folder, now
from fogline.record.probes import Budget
from fogline.record.store import Store, read_info, read_table, write_json
from fogline.run import Run
from fogline.task import Task
from fogline.verdict import Judgement, Verdict

Progress = bool | ProgressFunction | None
_SLOPE_BATCHES, _SLOPE_ROWS, _SLOPE_SHARE = 8, 512, 50
_STOPPED = "stopped from outside and saved"


def fit(
    task: Task | nn.Module | Callable[[], nn.Module],
    recipe: Recipe | Any = None,
    *,
    loss: Any = None,
    valid: Any = None,
    metrics: Mapping[str, Any] | None = None,
    target: str | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    progress: Progress = None,
    source: Mapping[str, Any] | None = None,
    heal: bool = False,
    **recipe_fields: Any,
) -> Run:
    """Train until the recipe's duration is over and say how it went.

    Either ``fit(task, recipe)``, or ``fit(model, data, loss=..., valid=...)``; fields of the recipe can be given by
    name in both forms, and what is not given is measured.

    Args:
        task: a :class:`Task`, or a module or a function that makes one.
        recipe: a :class:`Recipe`; with a model, the training data.
        loss, valid, metrics, target: of the task, when a model was given.
        runs: the folder that run folders lie in.
        name: of the run folder; a dated name by default.
        progress: True or False to show a bar or not, a function to be told; by default a bar where somebody looks on.
        source: how to make the task again, for ``fogline resume``; written to ``run.json``.
        heal: examine the program first, as :func:`fogline.diagnose` does, and train it with the remedies that a trial
            proved. Findings and remedies are among the run's events; ``run.task`` is the remedied task.
        **recipe_fields: fields of :class:`Recipe`.

    Returns:
        The run: ``run.verdict``, ``run.model`` (best held-out weights restored), ``run.steps``, ``run.report(path)``.

    Raises:
        ValueError, TypeError: what does not fit, before any training time is spent.
        Interrupted: a signal came; the run was saved.
        OSError: the run folder cannot be written; older checkpoints are intact.

    >>> X = torch.linspace(-1, 1, 64)[:, None]
    >>> data = X, 3 * X + 1
    >>> run = fit(nn.Linear(1, 1), data, loss=nn.MSELoss(), lr=0.1, optimizer="momentum", duration="100ep")
    >>> round(run.model.weight.item(), 2)
    3.0
    """
    task, asked = as_asked(task, recipe, loss, valid, metrics, target, recipe_fields)
    world = joined(asked.device)
    folder, before = _folder(Path(runs), name, task, world)
    healing = None
    if heal:
        healing = Healing.of(task, asked)
        task, asked = healing.task, healing.recipe
        if world is not None:
            same_for_all(world, "remedies", ", ".join(remedy.title for remedy in healing.report.remedies))
    if before is not None and _ended(before):
        return Run(folder, task=task)
    loop = _trained(task, asked, folder, progress, source, chunks=True, before=before, healing=healing, world=world)
    return _completed(loop)


def descend(
    task: Task | nn.Module | Callable[[], nn.Module],
    recipe: Recipe | Any = None,
    *,
    loss: Any = None,
    valid: Any = None,
    metrics: Mapping[str, Any] | None = None,
    target: str | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    progress: Progress = False,
    source: Mapping[str, Any] | None = None,
    **recipe_fields: Any,
) -> Iterator[Step]:
    """The loop of :func:`fit`, one step at a time.

    Leaving the loop early saves the run, which can then be resumed.

    >>> X = torch.linspace(-1, 1, 64)[:, None]
    >>> for step in descend(nn.Linear(1, 1), (X, 2 * X), loss=nn.MSELoss(), lr=0.1, optimizer="sgd", duration="3st"):
    ...     print(step.number, step.loss > 0)
    0 True
    1 True
    2 True
    """
    task, asked = as_asked(task, recipe, loss, valid, metrics, target, recipe_fields)
    world = joined(asked.device)
    folder, before = _folder(Path(runs), name, task, world)
    return _trained(task, asked, folder, progress, source, chunks=False, before=before, world=world)


def resume(
    folder: str | Path,
    task: Task | None = None,
    *,
    duration: str | Duration | None = None,
    progress: Progress = None,
) -> Run:
    """Go on with a run where its latest checkpoint stands, bit for bit as if it had never stopped.

    Args:
        folder: the run folder.
        task: the task as it was given at first; the data must be the same.
        duration: a longer duration than before, to go on with a finished run.
        progress: as in :func:`fit`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the task's data is not that of the run, or the run is finished and no longer duration is given.
    """
    folder = Path(folder)
    world = joined("auto")
    info = read_info(folder) if world is None else world.by_first(lambda: read_info(folder), "the run to go on with")
    if task is None:
        raise TypeError(f"expected the task of the run, received None; pass resume({str(folder)!r}, task)")
    asked = Recipe.from_dict(info["asked"])
    if "healed" in info:
        task = Healing.again(task, info["healed"]).task
    if duration is not None:
        asked = asked.replace(duration=str(Duration.parse(duration)))
        _longer(asked, info)
    elif _ended(info):
        return Run(folder, task=task)
    source = info.get("source")
    return _completed(_trained(task, asked, folder, progress, source, chunks=True, before=info, world=world))


def _longer(asked: Recipe, info: Mapping[str, Any]) -> None:
    """Refuse a duration that is over already."""
    size = info.get("recipe", {}).get("batch_size")
    if asked.duration == "auto" or not isinstance(size, int) or not info.get("steps"):
        return
    steps = Duration.parse(asked.duration).steps(size * asked.accumulate, info["task"]["train_examples"])
    if steps is not None and steps < info["steps"]:
        raise ValueError(
            f"expected a duration of more than the {info['steps']} steps that are done, received '{asked.duration}', "
            f"which is {steps}; take a longer one"
        )


def attended(
    task: Task, recipe: Recipe, folder: Path, attendant: Callable[[Descent], str | None], *, go_on: bool = False
) -> Run:
    """The run of :func:`fit` in this very folder, which an attendant may end; ``go_on`` where it was left."""
    before = read_info(folder) if go_on else None
    return _completed(_trained(task, recipe, folder, False, None, chunks=True, before=before, attendant=attendant))


def _completed(loop: Generator[Step, None, Run]) -> Run:
    """Run the loop to its end."""
    try:
        while True:
            next(loop)
    except StopIteration as end:
        run: Run = end.value
        return run


def _ended(info: Mapping[str, Any]) -> bool:
    return info.get("verdict") is not None and info["verdict"]["name"] != Verdict.INTERRUPTED.name


def _folder(runs: Path, name: str | None, task: Task, world: World | None) -> tuple[Path, dict[str, Any] | None]:
    """The folder of a new run, as process 0 chooses it, and no ``run.json``.

    Where ``torchrun`` has started the processes again, it is the folder of the run that they were in, and what its
    ``run.json`` says.
    """
    if world is None:
        return _new_folder(runs, name, task), None

    def choose() -> Any:
        begun = begun_before(runs, name)
        return [str(_new_folder(runs, name, task)), None] if begun is None else [str(begun), read_info(begun)]

    folder, before = world.by_first(choose, "the run folder")
    return Path(folder), before


def _new_folder(runs: str | Path, name: str | None, task: Task) -> Path:
    model = task.model
    kind = task.name or (type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "run"))
    kind = "run" if kind == "<lambda>" else kind
    return new_folder(Path(runs), name, kind, remedy="take another name, or go on with it by fogline.resume")


def _trained(
    task: Task,
    asked: Recipe,
    folder: Path,
    progress: Progress,
    source: Mapping[str, Any] | None,
    *,
    chunks: bool,
    before: Mapping[str, Any] | None = None,
    healing: Healing | None = None,
    world: World | None = None,
    attendant: Callable[[Descent], str | None] | None = None,
) -> Generator[Step, None, Run]:
    """Prepare, loop, judge; the generator's return value is the finished run.

    With ``chunks`` several steps may be taken in one call, and no single step is yielded. The ``attendant`` is asked
    between steps whether to go on; what it returns is why not.
    """
    run = Run(folder, task=task)
    writes = world is None or world.first
    with (
        watched_signals(),
        watched_stop(folder) if writes else nullcontext(),
        agreeing(None if world is None else world.agreement),
    ):
        decided, info = _decided(asked, before), {**(before or {}), "asked": asked.to_dict()}
        if healing is not None:
            info["healed"] = healing.to_dict()
        start = begin(task, asked, decided, world)
        run.task = start.task
        _same_data(start, info)
        if world is not None:
            same_for_all(world, "training data", fingerprint(start.opened.train))
            info |= launched(world)
        decided_mechanics = info.get("mechanics") if before else None
        start.threads = (decided_mechanics or {}).get("threads", start.threads)
        info |= frame(folder, asked.to_dict(), asked.device, source) | {"started": info.get("started", now())}
        with Surroundings(start.batches.device, start.threads) as surroundings:
            try:
                if decided is None and writes:
                    _announce(folder, info, start)
                keep_start(start, folder, world)
                if decided is None:
                    measure(start, lambda: measure_rate(start, poll), world)
                prepared = assemble(start, folder, decided_mechanics, chunks=chunks, world=world)
            except StopRequested:
                if writes:
                    _leave_unstarted(folder, info, start)
                raise Interrupted(run, requested_code()) from None
            evidence = (info.get("resolved") or start.resolved.why).get("lr", {}).get("evidence", {})
            in_parts = prepared.descent.sharded is not None
            if not in_parts:
                prepared.descent.verification = verification(start, evidence)
                run.attach(prepared.descent.machine.objective.model)
            prepared.descent.attendant = attendant
            if writes and not in_parts:
                _diagnosed(prepared, start if before is None else None)
            with make_progress(progress if writes else False, folder.name) as report:
                if healing is not None:
                    healing.tell(prepared.descent.store)
                loop = _looped(run, prepared, info, report, resumed=before is not None)
                if chunks:
                    for _ in loop:
                        pass
                else:
                    yield from _singly(run, loop, surroundings)
        return run


def _diagnosed(prepared: Prepared, start: Start | None) -> None:
    """Tell the faults that the first batch of a new run shows, and from now on those that events speak of."""
    from fogline.doctor.first_look import Narrator, first_look

    if not prepared.descent.recipe.watch:
        return
    narrator = Narrator(prepared.descent.store)
    for finding in [] if start is None else first_look(start):
        narrator.tell(0, finding)
    prepared.descent.store.listener = narrator


def _singly(run: Run, loop: Iterator[Taken], surroundings: Surroundings) -> Iterator[Step]:
    """Each step on its own, given to the caller in the caller's surroundings."""
    for first, epoch, (losses, norms, rates, _) in loop:
        for k, (loss, norm, rate) in enumerate(zip(losses, norms, rates, strict=True)):
            with surroundings.outside():
                yield Step(first + k, epoch, rate, run, loss, norm)


def _looped(
    run: Run, prepared: Prepared, info: dict[str, Any], report: ProgressFunction, *, resumed: bool
) -> Iterator[Taken]:
    descent = prepared.descent
    model = descent.machine.objective.model
    complete = False
    try:
        if not (resumed and descent.restore()):
            for note in prepared.notes:
                descent.store.event(0, "note", note)
        info |= {
            "task": summary(prepared),
            "recipe": descent.recipe.to_dict(),
            "resolved": prepared.resolved.why or info.get("resolved", {}),
            "notes": prepared.notes,
            "mechanics": prepared.mechanics,
            "examples": _recorded(prepared),
            "verdict": None,
        }
        descent.store.write_info(info)
        model.train()
        yield from steps(descent, report)
        slope = _measured_end(descent)
        if descent.examples is not None:
            descent.examples.finish(descent.step)
        descent.save()
        complete = True
        _finish(run, descent, info, slope)
        if descent.world is None or descent.world.first:
            _keep_looks(run.folder, prepared)
        if descent.world is not None:
            descent.world.together("the end of the run")
    except StopRequested:
        _leave(descent, info, save=not complete)
        raise Interrupted(run, requested_code()) from None
    except GeneratorExit:  # the caller of descend() left the loop
        _leave(descent, info)
        raise
    finally:
        if descent.examples is not None:
            descent.examples.close()
        if isinstance(descent.stepper, ParallelStep):
            descent.stepper.close()
        descent.store.close()


def _recorded(prepared: Prepared) -> dict[str, Any] | None:
    """What ``run.json`` says of the examples."""
    examples = prepared.descent.examples
    return None if examples is None else examples.described(prepared.opened.facts.classes)


def _keep_looks(folder: Path, prepared: Prepared) -> None:
    """What some examples look like, where they were recorded and lie in memory: so that the dashboard shows them."""
    from fogline._examples.looks import hardest, keep_looks

    if prepared.descent.examples is None or not isinstance(prepared.opened.train, InMemory):
        return
    with suppress(OSError):  # the run is over and kept: pictures are no reason to fail
        keep_looks(folder, prepared.opened, hardest(folder))


def _leave(descent: Descent, info: dict[str, Any], *, save: bool = True) -> None:
    """Save where it stands; the verdict says that it was interrupted.

    Once the last checkpoint is written the model takes on its best weights, which must not get into it: no ``save``.
    """
    if save:
        settle(descent)
        descent.save()
    if descent.world is not None and not descent.world.first:
        return
    descent.store.event(descent.step, "interrupted", _STOPPED)
    _write_verdict(descent, info, Judgement(Verdict.INTERRUPTED, {"steps": descent.step}))


def _leave_unstarted(folder: Path, info: dict[str, Any], start: Start) -> None:
    """Stopped before the loop began: saved are the first weights, or the checkpoint that a resumed run begins from."""
    recipe, steps = start.resolved.recipe, info.get("steps", 0)
    judgement, budget = Judgement(Verdict.INTERRUPTED, {"steps": steps}), Budget(recipe.watch)
    so_far = {"steps": steps, "refused": info.get("refused", 0), "seconds": info.get("seconds", 0.0)}
    info |= {"recipe": recipe.to_dict()} | ending(judgement, budget=budget, **so_far)
    store = Store(folder)
    store.event(steps, "interrupted", _STOPPED)
    store.write_info(info)
    store.close()


def _measured_end(descent: Descent) -> Slope | None:
    """What there is still to gain where the descent ended; without held-out data its weights are the ones to keep."""
    machine, model = descent.machine, descent.machine.objective.model
    seed_everything(machine.seed, descent.step, PROBE, machine.device)
    with descent.evaluation_weights():
        slope = None
        if all(p.dtype.is_floating_point for p in machine.parameters):
            with machine.recomputing():
                slope = _slope(descent)
        if descent.scorer is None or descent.best is None:
            descent.best = {k: v.detach().clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    return slope


def _slope(descent: Descent) -> Slope | None:
    """By one process for all: it is small."""

    if descent.sharded is not None:
        return None  # a gradient of a model in parts goes into its parameters, and nowhere else

    def measured() -> Any:
        batches = _some_batches(descent)
        found = measure_slope(descent.machine.objective, batches, _stride(descent), poll) if batches else None
        return None if found is None else asdict(found)

    found = measured() if descent.world is None else descent.world.by_first(measured, "the slope at the end")
    return None if found is None else Slope(**found)


def _finish(run: Run, descent: Descent, info: dict[str, Any], slope: Slope | None) -> None:
    """Take the best weights, score them, judge the run."""
    machine, model = descent.machine, descent.machine.objective.model
    assert descent.best is not None
    model.load_state_dict(descent.best, strict=False)
    model.eval()
    if descent.length.open:
        length = f"{descent.step}st"
        info["recipe"]["duration"] = length
        info["resolved"]["duration"] |= {"value": length}
    if descent.scorer is not None:
        confusion = Confusion(machine.objective.loss, labels=info["task"]["kind"] == "classification")
        scores = descent.scorer(machine.objective, confusion.add)
        info["scores"] = scores | {"step": descent.counters.best_step}
        rows = confusion.rows()
        if descent.world is not None:
            rows = added_up(descent.world.gather(rows, "the confusion of classes"))
        descent.store.confusion(rows)
    if descent.world is None or descent.world.first:
        _write_verdict(descent, info, _judged(run, descent, slope))


def _judged(run: Run, descent: Descent, slope: Slope | None) -> Judgement:
    table = read_table(run.folder, "steps")
    scores = read_table(run.folder, "scores")
    held_out = np.array([row["value"] for row in scores if row["name"] == "loss"], dtype=np.float64)
    losses = table["loss"].astype(np.float64)
    refused = (~np.isfinite(losses) | ~np.isfinite(table["grad_norm"].astype(np.float64))).astype(np.float64)
    path = _stride(descent) * descent.step if descent.probe is not None else 0.0
    if descent.counters.rollbacks > MOST_ROLLBACKS:
        return Judgement(Verdict.DIVERGED, {"steps": descent.step, "rollbacks": descent.counters.rollbacks - 1})
    rates, settled = table["lr"].astype(np.float64), descent.length.settled
    return judge(losses, rates, held_out, slope=slope, refused=refused, path=path, settled=settled)


def _stride(descent: Descent) -> float:
    """Length of a typical step of the run, as it was probed; where it was not, that of plain gradient descent."""
    descent.recorder.flush()
    table = read_table(descent.folder, "steps")
    moved = table["update_norm"].astype(np.float64)
    if np.isfinite(moved).any():
        return float(np.nanmedian(moved))
    norms = table["grad_norm"].astype(np.float64)
    assert not isinstance(descent.recipe.lr, str)
    return descent.recipe.lr * (float(np.median(norms[np.isfinite(norms)])) if np.isfinite(norms).any() else 1.0)


def _write_verdict(descent: Descent, info: dict[str, Any], judgement: Judgement) -> None:
    descent.recorder.flush()
    info |= ending(
        judgement,
        steps=descent.step,
        refused=descent.counters.refused,
        seconds=descent.elapsed(),
        budget=descent.recorder.budget,
    )
    descent.store.write_info(info)


def _some_batches(descent: Descent) -> list[Any]:
    # Of small batches more are needed to tell a fall from their noise, as far as the run was long enough for it.
    wanted = min(_SLOPE_ROWS // descent.batches.batch_size, descent.step // _SLOPE_SHARE)
    count = min(max(_SLOPE_BATCHES, wanted), descent.batches.steps_per_epoch or _SLOPE_BATCHES)
    stream = descent.batches.stream(0)
    size = -(-descent.batches.batch_size // descent.machine.parts)  # what the memory is known to hold
    return [piece for _ in range(count) for piece in split(next(stream), size)]


def _decided(asked: Recipe, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The resolved recipe of a run that had got so far, with what was asked for anew."""
    if before is None or "mechanics" not in before:
        return None
    return {
        **before["recipe"],
        "duration": before["recipe"]["duration"] if asked.duration == "auto" else asked.duration,
    }


def _same_data(start: Start, info: Mapping[str, Any]) -> None:
    before = info.get("task", {}).get("fingerprint")
    if before is not None and before != fingerprint(start.opened.train):
        raise ValueError(
            "expected the data the run was started with, received other data (its fingerprint differs); "
            "start a new run for new data"
        )


def _announce(folder: Path, info: dict[str, Any], start: Start) -> None:
    """Write run.json before anything is measured, so that a run killed there can be started again."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {**info, "recipe": start.resolved.recipe.to_dict(), "verdict": None})
