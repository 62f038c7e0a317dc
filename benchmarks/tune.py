"""How good a recipe a search finds for 10, 20 and 40 trials' worth of steps: Fogline beside Optuna, random and ASHA.

Run ``python benchmarks/tune.py --quick`` for one problem and one seed, ``--full --jobs 2 --write`` for the page of
evidence. All contenders search the same space from the same first weights on the same order of the data, and all
training steps count, those that measure a learning rate too. Ray Tune's ASHA is run where ``ray[tune]`` is installed
(``tune-requirements.txt``). A cell is a problem and a seed; finished searches are kept in the folder ``--cache``.
"""

from __future__ import annotations

import timing

timing.one_thread()

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import multiprocessing  # noqa: E402
import time  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from tune_parts import arena, contenders, problems, report  # noqa: E402

SEEDS = {"quick": 1, "reduced": 1, "full": 3}


@dataclass(frozen=True)
class Job:
    """One search."""

    problem: str
    seed: int
    contender: str
    cache: Path

    @property
    def file(self) -> Path:
        """Where its result is kept."""
        return self.cache / f"{self.problem}-{self.seed}-{self.contender.lower().replace(' ', '-')}.json"


def main() -> None:
    """Make the searches that are missing, print the tables."""
    arguments = _arguments()
    names = list(contenders.CONTENDERS)
    left_out = []
    if importlib.util.find_spec("ray") is None:
        names.remove("Ray Tune ASHA")
        left_out.append("Ray Tune's ASHA is left out: ray is not installed (benchmarks/tune-requirements.txt).")
    names_of_set = arena.SCORED if arguments.set == "scored" else arena.CALIBRATION
    size = "quick" if arguments.quick else "full" if arguments.full else "reduced"
    chosen = arguments.problems or (names_of_set[:1] if size == "quick" else names_of_set)
    first = arena.FIRST_SEED[arguments.set]
    seeds = range(first, first + (arguments.seeds or SEEDS[size]))
    names = [name for name in names if not arguments.contenders or name in arguments.contenders]
    jobs = [Job(name, seed, who, arguments.cache) for seed in seeds for name in chosen for who in names]
    arguments.cache.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not job.file.exists()]
    started = time.perf_counter()
    for done, said in enumerate(_worked(missing, arguments.jobs), 1):
        print(f"[{done}/{len(missing)}, {time.perf_counter() - started:.0f} s] {said}", flush=True)
    results = [json.loads(job.file.read_text()) for job in jobs]
    page, numbers = report.make(results, names, left_out, arguments.set)
    print("\n" + page)
    if arguments.write:
        for path in timing.write_evidence("tune", page, numbers):
            print(f"written: {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("scored", "calibration"), default="scored", help="which problems")
    parser.add_argument("--quick", action="store_true", help="one problem, one seed")
    parser.add_argument("--full", action="store_true", help="all problems, three seeds")
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="these only")
    parser.add_argument("--contenders", nargs="+", choices=list(contenders.CONTENDERS), help="these only")
    parser.add_argument("--seeds", type=int, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--cache", type=Path, default=timing.ROOT / "build" / "tune", help="folder of the searches")
    parser.add_argument("--write", action="store_true", help="write docs/evidence/tune.md and .json")
    return parser.parse_args()


def _worked(jobs: list[Job], processes: int) -> Any:
    if processes < 2:
        _prepare()
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_prepare) as pool:
        yield from pool.imap(work, jobs)


def _prepare() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as a run of Fogline does


def work(job: Job) -> str:
    """One search; its result is written to its file."""
    task = problems.problem(job.problem).make(job.seed)
    began = time.process_time()
    events = contenders.CONTENDERS[job.contender](task, job.seed)
    seconds = time.process_time() - began
    found = {str(budget): arena.best_by(events, budget) for budget in arena.BUDGETS}
    result = {
        "problem": job.problem,
        "seed": job.seed,
        "contender": job.contender,
        "best": found,
        "first": arena.Arena(task, job.seed).first(),
        "processor_seconds": seconds,
        "events": [asdict(event) for event in events],
    }
    job.file.write_text(json.dumps(result))
    words = ", ".join(f"{loss:.4g} after {budget}" for budget, loss in found.items())
    return f"{job.problem} seed {job.seed}, {job.contender}: {words} ({seconds:.0f} s of processor time)"


if __name__ == "__main__":
    main()
