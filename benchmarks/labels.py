"""How well a run tells which of its labels are wrong, how many, and what is rare but right; and a leak that it finds.

    python benchmarks/labels.py                 # everything once, an hour of one core
    python benchmarks/labels.py --seeds 3       # more seeds of what is quick
    python benchmarks/labels.py --reuse --write # also docs/evidence/labels.md, from what is in the cache

Wrong labels are planted in MNIST-5k and Fashion-MNIST: 20 and 40 percent symmetric (any other class), 20 percent to the
next class, and none. A run of ``fogline.fit`` is asked for its label errors, once with the data at hand and once from
its record alone. Beside it stand cleanlab on five-fold out-of-fold probabilities of the same model trained the same
way, and three rankings that are read off the same record.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timing

timing.one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import fogline  # noqa: E402
from labels_parts import peers, scale  # noqa: E402
from labels_parts.leak import frames, leak  # noqa: E402
from labels_parts.problems import Problem, fashion, mnist, mnist_with_a_rare_kind, seeded  # noqa: E402
from labels_parts.report import page  # noqa: E402

NOISE = (("symmetric", 0.2), ("symmetric", 0.4), ("pair", 0.2), ("none", 0.0))
FIRST_SEED = 20  # methods were chosen on seeds 0 and 1, and mended once after a look at 10 to 12
Cell = dict[str, Any]


def trained(problem: Problem, seed: int, runs: Path) -> tuple[fogline.Task, fogline.Run, float]:
    """A run with the defaults of ``fit``, and the processor seconds it took; one that is there is not made again."""
    started = time.process_time()
    task = fogline.Task(
        model=lambda: seeded(problem.model, seed),
        loss=nn.CrossEntropyLoss(),
        train=(torch.from_numpy(problem.inputs), torch.from_numpy(problem.labels)),
    )
    spent = runs / "seconds.json"
    if spent.exists():
        for made in ("ranking", "embedding"):
            (runs / "run" / "examples" / f"{made}.safetensors").unlink(missing_ok=True)
        return task, fogline.Run.open(runs / "run", task=task), json.loads(spent.read_text())
    recipe = fogline.Recipe(duration=f"{problem.epochs}ep", batch_size=peers.BATCH, seed=seed, device="cpu")
    run = fogline.fit(task, recipe, runs=runs, name="run", progress=False)
    seconds = time.process_time() - started
    spent.write_text(json.dumps(seconds))
    return task, run, seconds


def noisy(problem: Problem, seed: int, kind: str, rate: float, runs: Path) -> Cell:
    """One cell: a problem with planted errors, all rankings side by side."""
    _, run, training = trained(problem, seed, runs)
    wrong = problem.wrong
    cell: Cell = {
        "problem": problem.name,
        "kind": kind,
        "rate": rate,
        "seed": seed,
        "wrong": int(wrong.sum()),
        "examples": len(wrong),
    }
    cell |= {"training_seconds": training, "lr": run.recipe.lr, "rankings": {}}
    for name, opened in (("fogline, record alone", fogline.Run.open(run.folder)), ("fogline", run)):
        started = time.process_time()
        examples = fogline.examples(opened)
        errors = examples.label_errors()
        seconds = time.process_time() - started
        flagged = np.zeros(len(wrong), dtype=bool)
        flagged[errors.ids[: errors.cut]] = True
        score = np.empty(len(wrong))
        score[errors.ids] = -np.arange(len(wrong))
        half = max(1, int(wrong.sum()) // 2)
        cell["rankings"][name] = {
            "average_precision": peers.average_precision(wrong, score) if wrong.any() else None,
            "f1": peers.f1(wrong, flagged),
            "flagged": int(flagged.sum()),
            "count": errors.count,
            "interval": errors.interval,
            "likely": float((errors.likely[wrong[errors.ids]] == problem.truth[errors.ids][wrong[errors.ids]]).mean())
            if wrong.any()
            else None,
            "expected_precision": {str(cut): float(errors.precision[cut - 1]) for cut in _cuts(half)},
            "precision": {str(cut): float(wrong[errors.ids[:cut]].mean()) for cut in _cuts(half)},
            "seconds": seconds,
        }
    if wrong.any():
        for name, score in peers.from_the_record(examples).items():
            cell["rankings"][name] = {"average_precision": peers.average_precision(wrong, score)}
    return cell


def peer(problem: Problem, seed: int, ours: Path, runs: Path) -> Cell:
    """cleanlab on the same labels, the models trained at the rate that our run found."""
    if peers.num_label_issues is None or not ours.exists():
        return {}
    probabilities, seconds = peers.out_of_fold(problem, float(json.loads(ours.read_text())["lr"]), seed)
    found = peers.cleanlab(problem, probabilities)
    return found | {"seconds": found["seconds"] + seconds}


def _cuts(half: int) -> tuple[int, ...]:
    """Where precision is compared: at half as many as there are wrong ones, as many, and half as many more."""
    return half, 2 * half, 3 * half


def rare(seed: int, runs: Path) -> Cell:
    """One cell of the rare kind: are the wrong ones ranked above it?"""
    problem = mnist_with_a_rare_kind(seed)
    _, run, _ = trained(problem, seed, runs)
    cell: Cell = {"problem": problem.name, "seed": seed, "rare": int(problem.rare.sum())}
    cell["wrong"] = int(problem.wrong.sum())
    for name, opened in (("fogline, record alone", fogline.Run.open(run.folder)), ("fogline", run)):
        examples = fogline.examples(opened)
        score = examples.table["label_error"]
        cell[name] = {
            "area": peers.area_under_curve(score[problem.wrong], score[problem.rare]),
            "flagged_rare": float((score[problem.rare] > 0.5).mean()),
            "flagged_wrong": float((score[problem.wrong] > 0.5).mean()),
        }
    loss = examples.record.values("loss", -1).astype(np.float64)
    cell["last-epoch loss"] = {"area": peers.area_under_curve(loss[problem.wrong], loss[problem.rare])}
    return cell


def cells(seeds: int, peer_seeds: int, cache: Path, *, with_fashion: bool) -> dict[str, Callable[[Path], Cell]]:
    """What is to be measured, by name."""
    wanted: dict[str, Callable[[Path], Cell]] = {}
    for problem in (mnist(), fashion() if with_fashion else None):
        if problem is not None:
            wanted |= _noisy_cells(problem, seeds, peer_seeds, cache)
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        wanted[f"rare {seed}"] = partial(rare, seed)
    data = frames()
    if data is not None:
        wanted |= {f"leak {seed}": partial(leak, data, seed) for seed in range(FIRST_SEED, FIRST_SEED + seeds)}
    wanted["scale"] = lambda _: scale.measure(1_000_000, 20)
    wanted["neighbours"] = lambda _: scale.neighbours()
    return wanted


def _noisy_cells(problem: Problem, count: int, peer_seeds: int, cache: Path) -> dict[str, Callable[[Path], Cell]]:
    found: dict[str, Callable[[Path], Cell]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        for kind, rate in NOISE:
            made = problem if kind == "none" else problem.with_noise(kind, rate, seed)
            name = f"{problem.name} {kind} {rate} {seed}"
            found[name] = partial(noisy, made, seed, kind, rate)
            if kind != "none" and seed < FIRST_SEED + peer_seeds:
                found[f"peer {name}"] = partial(peer, made, seed, _file(cache, name))
    return found


def _file(cache: Path, name: str) -> Path:
    return cache / f"{name.replace(' ', '_').replace(',', '')}.json"


def run_cells(
    wanted: Mapping[str, Callable[[Path], Cell]], cache: Path, *, reuse: bool, only: str, keep: bool
) -> dict[str, Cell]:
    """Each from the cache or by running it."""
    cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, Cell] = {}
    for name, make in wanted.items():
        path = _file(cache, name)
        if reuse and path.exists():
            found[name] = json.loads(path.read_text())
        elif name.startswith(only):
            with nullcontext(cache / "runs" / path.stem) if keep else tempfile.TemporaryDirectory() as runs:
                found[name] = make(Path(runs))
            path.write_text(json.dumps(found[name]))
            print(name, summary(found[name]), flush=True)
    return found


def summary(cell: Cell) -> str:
    """A line for the terminal."""
    if "rankings" in cell:
        parts = [
            f"{name} {row['average_precision'] or 0:.4f}" + (f" ({row['count']:.0f})" if "count" in row else "")
            for name, row in cell["rankings"].items()
        ]
        return f"{cell['wrong']} wrong: " + ", ".join(parts)
    return json.dumps(cell)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peer-seeds", type=int, default=1, help="seeds of which cleanlab is run")
    parser.add_argument("--without-fashion", action="store_true")
    parser.add_argument("--cache", type=Path, default=timing.ROOT / "build" / "labels")
    parser.add_argument("--reuse", action="store_true", help="take what is in the cache")
    parser.add_argument(
        "--keep-runs", action="store_true", help="keep them with the cache: another ranking needs no other"
    )
    parser.add_argument("--only", default="", help="run only the cells whose name begins with this")
    parser.add_argument("--write", action="store_true", help="write docs/evidence/labels.md")
    asked = parser.parse_args()
    missing = [name for name in ("cleanlab", "mlxtend") if find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} not installed here; benchmarks/README.md says how to have an environment for it")
        return
    torch.set_num_threads(1)
    wanted = cells(asked.seeds, asked.peer_seeds, asked.cache, with_fashion=not asked.without_fashion)
    found = run_cells(wanted, asked.cache, reuse=asked.reuse, only=asked.only, keep=asked.keep_runs)
    stamp = timing.stamp(("torch", "numpy", "cleanlab", "mlxtend", "duckdb"))
    text = page(found, stamp)
    print(text)
    if asked.write:
        timing.write_evidence("labels", text, {"stamp": stamp, "cells": found})


if __name__ == "__main__":
    sys.exit(main())
