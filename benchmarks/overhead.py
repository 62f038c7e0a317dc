"""What ``fogline.fit`` costs over a hand-written loop, beside other trainers and JAX, interleaved in one process.

    python benchmarks/overhead.py                # everything that is installed; peers that are not get a row saying so
    python benchmarks/overhead.py --quick        # a minute: two problems, fogline and the raw loop only
    python benchmarks/overhead.py --write        # also docs/evidence/overhead.md and overhead.json

Every contender trains the same model on the same data in memory by the same optimizer, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import timing

timing.one_thread()
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="inductor-"))  # compile times from cold

import torch  # noqa: E402  after the number of threads is set

from overhead_parts.problems import BATCHES, PROBLEMS, Problem, best_raw_loop, raw_loop  # noqa: E402
from overhead_parts.report import Outcome, judge, page, startup_lines, summary, targets_table  # noqa: E402
from overhead_parts.trainers import Parked, Tick  # noqa: E402

if TYPE_CHECKING:
    from fogline.progress import ProgressReport

MODES = ("eager", "compiled", "chunked", "auto")
QUICK_MODES = ("eager", "compiled")
QUICK_PROBLEMS = ("linear", "mlp")
PACKAGES = (
    "torch", "numpy", "lightning", "transformers", "accelerate", "skorch", "fastai", "keras", "jax", "jaxlib"
)  # fmt: skip


def fogline_fit(problem: Problem, mode: str) -> timing.Contender:
    """``fogline.fit`` itself, with default watching, log and checkpoints; it is parked at its log points."""
    import fogline

    recipe = fogline.Recipe(
        optimizer=problem.optimizer, lr=problem.lr, batch_size=problem.batch_size,
        duration=f"{problem.planned_steps}st", schedule="constant", warmup=0, seed=0, step=mode,
    )  # fmt: skip
    task = fogline.Task(model=problem.model(), loss=problem.loss, train=(problem.inputs, problem.targets))
    runs = Path(tempfile.mkdtemp(prefix="overhead-"))

    def train(tick: Tick) -> None:
        before = 0

        def at_log_point(report: ProgressReport) -> None:
            nonlocal before
            before, steps = report.step, report.step - before
            tick(steps)

        fogline.fit(task, recipe, runs=runs, name=mode, progress=at_log_point)

    run = Parked(train).run
    mechanics = json.loads((runs / mode / "run.json").read_text(encoding="utf-8"))["mechanics"]
    compiling = mechanics.get("compile_seconds", 0.0)
    note = "; ".join(str(mechanics[key]) for key in ("mode", "why") if key in mechanics)
    # Rows are written twice a second and checkpoints at most once a second.
    return timing.Contender(run, seconds=1.0, setup_seconds=compiling, note=f"took its steps {note}")


def contenders(peers: bool, modes: Sequence[str]) -> dict[str, Callable[[Problem], timing.Contender]]:
    """Everything that is timed in this process, by the name of its row."""

    def usual(problem: Problem) -> timing.Contender:
        return raw_loop(problem, BATCHES["rows gathered by batch"])

    chosen: dict[str, Callable[[Problem], timing.Contender]] = {"raw": best_raw_loop, "raw, as usually written": usual}
    chosen |= {f"fogline {mode}": partial(fogline_fit, mode=mode) for mode in modes}
    if peers:
        from overhead_parts import jax_loops, trainers

        chosen |= trainers.all_trainers()
        chosen |= {"JAX jit": jax_loops.jit, "JAX lax.scan": jax_loops.scan}
    return chosen


def measure(problem: Problem, rounds: int, peers: bool, modes: Sequence[str] = MODES) -> Outcome:
    """Set every contender up and let them take turns."""
    outcome, ready = Outcome(problem, rounds), {}
    for name, make in contenders(peers, modes).items():
        if name == "fogline chunked" and not problem.chunked:
            outcome.absent[name] = "several steps of such a net in one graph take minutes to compile and save little"
            continue
        try:
            contender = make(problem)
            contender.run(contender.quantum)
        except Exception as error:  # noqa: BLE001  a contender that does not run is a row that says why
            outcome.absent[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            continue
        ready[name] = contender
        outcome.setup[name], outcome.notes[name] = contender.setup_seconds, contender.note
        print(f"  {name} is ready", file=sys.stderr)
    outcome.costs = timing.interleave(ready, rounds=rounds, seconds=problem.seconds)
    if peers:
        for backend in ("torch", "jax"):
            _keras(outcome, backend, rounds)
    outcome.stamp = timing.stamp(PACKAGES)
    return outcome


def _keras(outcome: Outcome, backend: str, rounds: int) -> None:
    name = f"Keras on {'PyTorch' if backend == 'torch' else 'JAX'}"
    done = subprocess.run(
        [sys.executable, __file__, "--keras", backend, "--problems", outcome.problem.name, "--rounds", str(rounds)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        outcome.absent[name] = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:160]
        return
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    costs = {who: [timing.Cost(**cost) for cost in values] for who, values in answer["costs"].items()}
    outcome.costs[name], outcome.beside[name] = costs["keras"], costs["raw"]
    outcome.setup[name] = answer["setup_seconds"]
    outcome.notes[name] = "in a process of its own with the raw loop beside it"


def startup(rounds: int) -> dict[str, timing.Spread]:
    """Seconds of fresh processes that import torch, and fogline; and the difference, round by round.

    ``import fogline`` alone is lazy, so what is compared with torch goes on to ``fogline.fit``, which loads it all.
    """
    code = {"torch": "import torch", "lazy": "import fogline", "fogline": "import fogline; fogline.fit"}
    seconds: dict[str, list[float]] = {name: [] for name in code}
    for turn in range(rounds + 1):
        for name in seconds:
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code[name]], check=True)
            if turn > 0:
                seconds[name].append(time.perf_counter() - begin)
    extra = [ours - theirs for ours, theirs in zip(seconds["fogline"], seconds["torch"], strict=True)]
    return {name: timing.Spread.of(values) for name, values in (seconds | {"difference": extra}).items()}


def keras_worker(problem: Problem, backend: str, rounds: int) -> None:
    """Time Keras beside the raw loop and print one line of JSON: a process has one Keras backend."""
    os.environ["KERAS_BACKEND"] = backend
    from overhead_parts import keras_fit

    keras = keras_fit.fit(problem)
    loops = {"raw": best_raw_loop(problem), "keras": keras}
    costs = timing.interleave(loops, rounds=rounds, seconds=problem.seconds)
    plain = {name: [vars(cost) for cost in values] for name, values in costs.items()}
    print(json.dumps({"costs": plain, "setup_seconds": keras.setup_seconds}))


def write(outcomes: list[Outcome], started: dict[str, timing.Spread]) -> None:
    """Write the page of evidence and its JSON; problems that were not measured now are kept as they were."""
    earlier = timing.ROOT / "docs" / "evidence" / "overhead.json"
    known = {outcome.problem.name: outcome for outcome in outcomes}
    before = json.loads(earlier.read_text(encoding="utf-8"))["problems"] if earlier.exists() else {}
    kept = [
        known[name] if name in known else Outcome.from_dict(make(), before[name])
        for name, make in PROBLEMS.items()
        if name in known or name in before
    ]
    judged = judge(kept, started)
    data = {
        "startup_seconds": started,
        "targets": [vars(one) for one in judged],
        "problems": {outcome.problem.name: outcome.to_dict() for outcome in kept},
    }
    written = timing.write_evidence("overhead", page(kept, started, judged), data)
    print("written:", *(path.relative_to(timing.ROOT) for path in written))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute: linear and mlp, eager and compiled, no peers")
    parser.add_argument("--rounds", type=int, default=None, help="slices each contender gets (5, or 15 with --write)")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS)
    parser.add_argument("--without-peers", action="store_true", help="only fogline and the raw loop")
    parser.add_argument("--write", action="store_true", help="write docs/evidence/overhead.md and overhead.json")
    parser.add_argument("--keras", choices=("torch", "jax"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    rounds = arguments.rounds or (2 if arguments.quick else 15 if arguments.write else 5)
    peers = not (arguments.quick or arguments.without_peers)
    torch.set_num_threads(1)
    timing.StandingClock.install()
    if arguments.keras:
        keras_worker(PROBLEMS[arguments.problems[0]](), arguments.keras, rounds)
        return

    started = startup(rounds=3 if arguments.quick else 9)
    print(startup_lines(started))
    outcomes = []
    for name in arguments.problems or (QUICK_PROBLEMS if arguments.quick else PROBLEMS):
        outcomes.append(measure(PROBLEMS[name](), rounds, peers, QUICK_MODES if arguments.quick else MODES))
        print(f"\n{summary(outcomes[-1])}\n", flush=True)
        if arguments.write:
            write(outcomes, started)
    print(targets_table(judge(outcomes, started)))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # parked trainers never return
