"""How good a learning rate each finder proposes, against the best of a 20-point grid, and what finding it costs.

Run ``python benchmarks/rate.py`` for a reduced table in a few minutes, ``--quick`` for a minute, ``--full --jobs 2
--write`` for the page of evidence. Every proposed rate is really trained at. Regret is the share of the possible
descent that was missed, ``(L(rate) - L*) / (L0 - L*)``: held-out loss of the last weights, L0 before training, L* the
lowest of the cell. Runs are kept in the folder ``--cache``: a second call trains only what it has not seen, and asks
Fogline's finder again.
"""

from __future__ import annotations

import timing

timing.one_thread()

import argparse  # noqa: E402
import multiprocessing  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from rate_parts import constant, grid, peers, report, tasks, verified  # noqa: E402

QUICK = {"evaluation": ("sensors", "mixture"), "calibration": ("wine", "radial")}
SEEDS = {"quick": 1, "reduced": 1, "full": 3}


@dataclass(frozen=True)
class Job:
    """One cell and what is wanted of it."""

    which: str
    task: str
    optimizer: str
    seed: int
    finders: tuple[str, ...]
    cache: Path
    reuse: bool
    schedule: str


def main() -> None:
    """Fill the cells, print the tables."""
    arguments = _arguments()
    jobs, left_out = _planned(arguments)
    for line in left_out:
        print(line)
    started = time.perf_counter()
    for done, said in enumerate(_worked(jobs, arguments.jobs), 1):
        print(f"[{done}/{len(jobs)}, {time.perf_counter() - started:.0f} s] {said}", flush=True)
    cells = [grid.Cell.read(grid.cell_path(job.cache, job.task, job.optimizer, job.seed)) for job in jobs]
    if arguments.grid_only:
        return
    if arguments.schedule == "constant":
        print("\n" + constant.section({arguments.set: cells}))
        return
    steady = {}
    if arguments.set == "evaluation":
        steady = {which: constant.cells(arguments.cache, names) for which, names in tasks.CONSTANT.items()}
    page, numbers = report.make(
        cells, tasks.problems(arguments.set), arguments.finders, left_out, arguments.set, [constant.section(steady)]
    )
    numbers["constant"] = {which: constant.summary(found) for which, found in steady.items()}
    print("\n" + page)
    if arguments.write:
        name = "rate" if arguments.set == "evaluation" else f"rate-{arguments.set}"
        for path in timing.write_evidence(name, page, numbers):
            print(f"written: {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*peers.FINDERS, verified.NAME, *peers.METHODS]
    parser.add_argument("--set", choices=("evaluation", "calibration"), default="evaluation", help="which problems")
    parser.add_argument("--quick", action="store_true", help="two tasks, one optimizer, one seed: about a minute")
    parser.add_argument("--full", action="store_true", help="all tasks, all optimizers, three seeds")
    parser.add_argument(
        "--schedule", choices=("linear", "constant"), default="linear",
        help="constant: the cells of runs whose rate is never lowered, for a section of the page",
    )  # fmt: skip
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="these problems only")
    parser.add_argument("--optimizers", nargs="+", choices=grid.OPTIMIZERS, help="these optimizers only")
    parser.add_argument("--seeds", type=int, help="how many seeds, from 0")
    parser.add_argument("--finders", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--grid-only", action="store_true", help="train at the rates of the grid and stop")
    parser.add_argument("--reuse", action="store_true", help="take Fogline's proposals from the cache as well")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--cache", type=Path, default=timing.ROOT / "build" / "rate", help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="write docs/evidence/rate.md and .json")
    return parser.parse_args()


def _planned(arguments: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """The cells to fill, and what is left out."""
    if arguments.schedule == "constant":
        return _planned_constant(arguments), []
    size = "quick" if arguments.quick else "full" if arguments.full else "reduced"
    problems, left_out = tasks.problems(arguments.set), tasks.missing(arguments.set)
    reduced = {"quick": QUICK[arguments.set], "reduced": tasks.REDUCED[arguments.set], "full": tuple(problems)}[size]
    chosen = arguments.tasks or list(reduced)
    for name in chosen:
        if name not in problems:
            raise SystemExit(f"--tasks: expected some of {', '.join(problems)}; received {name!r}")
    optimizers = arguments.optimizers or {"quick": ["adamw"], "reduced": ["momentum", "adamw"]}.get(size)
    optimizers = list(optimizers or grid.OPTIMIZERS)
    seeds = arguments.seeds or SEEDS[size]
    if len(chosen) < len(problems) or len(optimizers) < len(grid.OPTIMIZERS) or seeds < SEEDS["full"]:
        unseen = [name for name in problems if name not in chosen]
        left_out.append(
            f"A reduced run: {len(chosen)} of {len(problems)} tasks ({', '.join(unseen) or 'none'} left out), "
            f"optimizers {', '.join(optimizers)}, {seeds} seed(s); --full has {SEEDS['full']} seeds of everything."
        )
    finders = () if arguments.grid_only else tuple(arguments.finders)
    jobs = [
        Job(arguments.set, name, optimizer, seed, finders, arguments.cache, arguments.reuse, "linear")
        for seed in range(seeds)
        for name in chosen
        for optimizer in optimizers
        if grid.applies(problems[name], optimizer)
    ]
    return jobs, left_out


def _planned_constant(arguments: argparse.Namespace) -> list[Job]:
    finders = () if arguments.grid_only else ("fogline", "default")
    return [
        Job(arguments.set, name, optimizer, seed, finders, constant.folder(arguments.cache), False, "constant")
        for name in arguments.tasks or tasks.CONSTANT[arguments.set]
        for optimizer in constant.OPTIMIZERS
        for seed in range(constant.SEEDS)
    ]


def _worked(jobs: list[Job], processes: int) -> Iterator[str]:
    if processes < 2:
        _prepare()
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_prepare) as pool:
        yield from pool.imap_unordered(work, jobs)


def _prepare() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as a run of Fogline does


def work(job: Job) -> str:
    """Fill one cell; says in a line what came out."""
    ready = grid.Ready.of(tasks.problems(job.which)[job.task], job.optimizer, job.seed, job.schedule)
    cell = grid.Cell.open(ready, job.cache)
    grid.fill_grid(ready, cell)
    cell.write(job.cache)
    if job.schedule == "constant":
        if job.finders:
            constant.ask(ready, cell)
            cell.write(job.cache)
        return _line(cell)
    for name in peers.FINDERS:
        if name in job.finders and _wanted(name, job, ready, cell):
            _ask(name, ready, cell)
    if verified.NAME in job.finders and (verified.NAME not in cell.others or not job.reuse):
        cell.others[verified.NAME] = verified.run(ready, cell)
    for name, (optimizer, _) in peers.METHODS.items():
        if name in job.finders and optimizer == job.optimizer and name not in cell.others:
            try:
                cell.others[name] = peers.run_method(name, ready)
                cell.absent.pop(name, None)
            except ImportError as error:
                cell.absent[name] = str(error)
    cell.write(job.cache)
    return _line(cell)


def _wanted(name: str, job: Job, ready: grid.Ready, cell: grid.Cell) -> bool:
    """Fogline's finder is asked every time, and Optuna when its budget, which is Fogline's, has changed."""
    if name not in cell.proposals:
        return True
    if name == "optuna":
        return bool(cell.proposals[name]["cost_steps"] != peers.TRIALS * peers.trial_steps(ready, cell))
    return name == "fogline" and not job.reuse


def _ask(name: str, ready: grid.Ready, cell: grid.Cell) -> None:
    try:
        cell.proposals[name] = peers.propose(name, ready, cell)
    except ImportError as error:
        cell.absent[name] = str(error)
        return
    cell.absent.pop(name, None)
    rate = cell.proposals[name]["rate"]
    if rate is not None:
        cell.at(ready, rate)


def _line(cell: grid.Cell) -> str:
    best, found = cell.best_of_grid, cell.proposals.get("fogline")
    said = f"{cell.task}, {cell.optimizer}, seed {cell.seed}: grid {best.rate:.3g} from {cell.initial:.4g} to "
    said += f"{best.loss:.4g}"
    if found is None:
        return said
    if found["rate"] is None:
        return f"{said}; fogline: {found['note']}"
    regret = cell.regret(cell.runs[repr(found["rate"])].loss)
    return f"{said}; fogline {found['rate']:.3g}, regret {regret:.3f}, {found['cost_steps']} steps"


if __name__ == "__main__":
    main()
