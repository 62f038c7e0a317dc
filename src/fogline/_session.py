"""One session of a run: prepared, looped and judged, or left where a signal came."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from fogline.data.source import InMemory, fingerprint
from fogline.descent.ending import finish, measured_end, write_verdict
from fogline.descent.group import World, leads
from fogline.descent.interrupts import (
    Interrupted,
    StopRequested,
    agreeing,
    poll,
    requested_code,
    watched_signals,
    watched_stop,
)
from fogline.descent.launch import launched, same_for_all
from fogline.descent.loop import Step, Taken, settle, steps
from fogline.descent.parallel import ParallelStep
from fogline.descent.prepare import Prepared, Start, assemble, begin, keep_start, measure, summary
from fogline.descent.randomness import Surroundings
from fogline.descent.state import Descent
from fogline.doctor.healing import Healing
from fogline.progress import ProgressFunction, make_progress
from fogline.rate import measure_rate, verification
from fogline.recipe import Recipe
from fogline.record.info import ending, frame, now
from fogline.record.probes import Budget
from fogline.record.store import Store, write_json
from fogline.run import Run
from fogline.task import Task
from fogline.verdict import Judgement, Verdict

Progress = bool | ProgressFunction | None
_STOPPED = "stopped from outside and saved"


def trained(
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
    writes = leads(world)
    with (
        watched_signals(),
        watched_stop(folder) if writes else nullcontext(),
        agreeing(None if world is None else world.agreement),
    ):
        start, info = _begun(run, task, asked, before, healing, world)
        info |= frame(folder, asked.to_dict(), asked.device, source) | {"started": info.get("started", now())}
        with Surroundings(start.batches.device, start.threads) as surroundings:
            prepared = _prepared(run, start, info, before, chunks=chunks, world=world)
            prepared.descent.attendant = attendant
            if writes and prepared.descent.sharded is None:
                _diagnosed(prepared, start if before is None else None)
            if healing is not None:
                healing.tell(prepared.descent.store)
            with make_progress(progress if writes else False, folder.name) as report:
                loop = _looped(run, prepared, info, report, resumed=before is not None)
                yield from _unseen(loop) if chunks else _singly(run, loop, surroundings)
        return run


def _begun(
    run: Run,
    task: Task,
    asked: Recipe,
    before: Mapping[str, Any] | None,
    healing: Healing | None,
    world: World | None,
) -> tuple[Start, dict[str, Any]]:
    """What the session begins from, and what ``run.json`` says of it so far."""
    info = {**(before or {}), "asked": asked.to_dict()}
    if healing is not None:
        info["healed"] = healing.to_dict()
    start = begin(task, asked, _decided(asked, before), world)
    run.task = start.task
    _same_data(start, info)
    if world is not None:
        same_for_all(world, "training data", fingerprint(start.opened.train))
        info |= launched(world)
    start.threads = (_mechanics(before) or {}).get("threads", start.threads)
    return start, info


def _prepared(
    run: Run,
    start: Start,
    info: dict[str, Any],
    before: Mapping[str, Any] | None,
    *,
    chunks: bool,
    world: World | None,
) -> Prepared:
    """The descent before its first step.

    Raises:
        Interrupted: a signal came; what there was is saved.
    """
    writes, mechanics = leads(world), _mechanics(before)
    try:
        if mechanics is None and writes:
            _announce(run.folder, info, start)
        keep_start(start, run.folder, world)
        if mechanics is None:
            measure(start, lambda: measure_rate(start, poll), world)
        prepared = assemble(start, run.folder, mechanics, chunks=chunks, world=world)
    except StopRequested:
        if writes:
            _leave_unstarted(run.folder, info, start)
        raise Interrupted(run, requested_code()) from None
    if prepared.descent.sharded is None:
        evidence = (info.get("resolved") or start.resolved.why).get("lr", {}).get("evidence", {})
        prepared.descent.verification = verification(start, evidence)
        run.attach(prepared.descent.machine.objective.model)
    return prepared


def _mechanics(before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the steps of a run were taken that had got so far; None of a new one."""
    found: dict[str, Any] | None = None if before is None else before.get("mechanics")
    return found


def _decided(asked: Recipe, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The resolved recipe of a run that had got so far, with what was asked for anew."""
    if before is None or _mechanics(before) is None:
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


def _diagnosed(prepared: Prepared, start: Start | None) -> None:
    """Tell the faults that the first batch of a new run shows, and from now on those that events speak of."""
    from fogline.doctor.first_look import Narrator, first_look

    if not prepared.descent.recipe.watch:
        return
    narrator = Narrator(prepared.descent.store)
    try:
        found = [] if start is None else first_look(start)
    except Exception as error:  # noqa: BLE001 - whatever it may be, it is none of the run's
        said = f"the first look at the program failed ({type(error).__name__}: {error}); the run goes on without it"
        prepared.descent.store.event(0, "note", said)
        found = []
    for finding in found:
        narrator.tell(0, finding)
    prepared.descent.store.listener = narrator


def _unseen(loop: Iterator[Taken]) -> Iterator[Step]:
    """All steps, and none of them given to the caller."""
    for _ in loop:
        pass
    yield from ()


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
        slope = measured_end(descent)
        if descent.examples is not None:
            descent.examples.finish(descent.step)
        descent.save()
        complete = True
        if leads(descent.world):
            _keep_looks(run.folder, prepared)
        finish(descent, info, slope)  # last: killed before, the run is not over, and what is missing is written again
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
    with suppress(OSError):  # the last checkpoint is kept: pictures are no reason to fail
        keep_looks(folder, prepared.opened, hardest(folder))


def _leave(descent: Descent, info: dict[str, Any], *, save: bool = True) -> None:
    """Save where it stands; the verdict says that it was interrupted.

    Once the last checkpoint is written the model takes on its best weights, which must not get into it: no ``save``.
    """
    if save:
        settle(descent)
        descent.save()
    if not leads(descent.world):
        return
    descent.store.event(descent.step, "interrupted", _STOPPED)
    write_verdict(descent, info, Judgement(Verdict.INTERRUPTED, {"steps": descent.step}))


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
