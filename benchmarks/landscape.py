"""The error landscape of a small CNN, beside a plain loop and the package loss-landscapes.

    python benchmarks/landscape.py            # two threads a minute each; prints the tables
    python benchmarks/landscape.py --write    # also docs/evidence/landscape.md

A surface of 51 x 51 places of the digits CNN of ``fogline demo`` on a probe of 1,024 examples. What a place takes is
measured in slices that take turns in one process (``timing.py``); whole surfaces are made once each, by the clock, with
everything that belongs to them, and compared value by value.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = int(os.environ.get("LANDSCAPE_THREADS", "1"))
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(THREADS)

import numpy as np  # noqa: E402 - after the number of threads is set
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import fogline  # noqa: E402
import timing  # noqa: E402
from fogline._landscape.directions import Plane, random_plane  # noqa: E402
from fogline._landscape.evaluate import Choice, choose  # noqa: E402
from fogline._landscape.probe import Probe, open_probe  # noqa: E402
from fogline._landscape.surface import survey  # noqa: E402
from fogline.demo import digits  # noqa: E402

try:
    import loss_landscapes
    from loss_landscapes.metrics import Loss
except ImportError:
    loss_landscapes = None

POINTS, EXAMPLES = 51, 1024
REFINED = 53  # lines of the refined surface: one more than a multiple of four
FULL = "fogline, every place"
PLAIN = "plain loop"
PEER = "loss-landscapes"

Places = list[tuple[float, float]]


@dataclass
class Setting:
    """A trained model, its probe and a plane."""

    probe: Probe
    plane: Plane
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def places(self) -> Places:
        """The grid, row by row."""
        line = np.linspace(-1, 1, POINTS)
        return [(float(a), float(b)) for b in line for a in line]


def prepare(folder: Path) -> Setting:
    """The digits CNN after five epochs; filter-normalised random directions, seed 0."""
    example = digits()
    run = fogline.fit(
        example.task, runs=folder, optimizer="momentum", lr=0.1, batch_size=64, duration="5ep", device="cpu", seed=0,
        progress=False,
    )  # fmt: skip
    probe = open_probe(example.task, run.model, EXAMPLES, 0)
    inputs, targets = probe.batch
    plane = random_plane(probe.weights, probe.shapes, 0)
    return Setting(probe, plane, copy.deepcopy(run.model).eval(), inputs, targets)


def plain_loop(setting: Setting) -> Callable[[Places], list[float]]:
    """What one writes: load the weights of a place, call the model, keep the number."""
    model = copy.deepcopy(setting.model)
    origin = [p.detach().clone() for p in model.parameters()]
    sizes = [p.numel() for p in origin]
    first, second = (
        [part.view_as(p) for part, p in zip(torch.split(flat, sizes), origin, strict=True)]
        for flat in (setting.plane.first, setting.plane.second)
    )
    loss = nn.CrossEntropyLoss()

    def losses(places: Places) -> list[float]:
        found = []
        with torch.no_grad():
            for a, b in places:
                for weight, start, along, across in zip(model.parameters(), origin, first, second, strict=True):
                    weight.copy_(start + a * along + b * across)
                found.append(loss(model(setting.inputs), setting.targets).item())
        return found

    return losses


def peer_surface(setting: Setting, steps: int) -> np.ndarray:
    """The peer's surface between three models: the corner (-1, -1) and its two neighbours."""

    def moved(a: float, b: float) -> nn.Module:
        model = copy.deepcopy(setting.model)
        nn.utils.vector_to_parameters(setting.plane.at(a, b), model.parameters())
        return model

    metric = Loss(nn.CrossEntropyLoss(), setting.inputs, setting.targets)
    return loss_landscapes.planar_interpolation(
        moved(-1, -1), moved(1, -1), moved(-1, 1), metric, steps=steps, deepcopy_model=True
    )


def peer_places(steps: int) -> Places:
    """Where the peer's columns are evaluated: one step on in every first, third, ... of them."""
    return [(-1 + 2 * i / steps, -1 + 2 * (j + 1 - i % 2) / steps) for i in range(steps) for j in range(steps)]


def costs(setting: Setting, chosen: Choice, rounds: int) -> dict[str, list[timing.Cost]]:
    """What a place takes, contenders in turn."""
    places, plain = setting.places, plain_loop(setting)

    def of(losses: Callable[[Places], list[float]]) -> timing.Contender:
        def run(count: int) -> int:
            start = np.random.default_rng(count).integers(len(places) - count)
            losses(places[start : start + count])
            return count

        return timing.Contender(run, quantum=chosen.way.width)

    contenders = {PLAIN: of(plain), FULL: of(chosen.way.losses)}
    if loss_landscapes is not None:

        def peer(count: int) -> int:
            side = max(1, math.isqrt(count))
            peer_surface(setting, side)
            return side * side

        contenders[PEER] = timing.Contender(peer, quantum=16)
    with setting.probe.surroundings():
        return timing.interleave(contenders, rounds=rounds, seconds=0.4)


def whole_surfaces(setting: Setting) -> dict[str, dict[str, Any]]:
    """Seconds of each surface from nothing, and how far its values are from those of the plain loop."""
    started = time.perf_counter()
    true = np.array(plain_loop(setting)(setting.places)).reshape(POINTS, POINTS)
    found: dict[str, dict[str, Any]] = {PLAIN: {"seconds": time.perf_counter() - started, "places": true.size}}
    line = np.linspace(-1, 1, POINTS)
    with setting.probe.surroundings():
        started = time.perf_counter()
        way = choose(setting.probe, setting.plane, setting.places).way
        full = survey(way.losses, line, line, refine=False)
        found[FULL] = {"seconds": time.perf_counter() - started, "places": full.evaluations, "way": way.name}
        found[FULL]["largest difference"] = float(np.abs(full.loss / true - 1).max())
        finer = np.linspace(-1, 1, REFINED)
        started = time.perf_counter()
        way = choose(setting.probe, setting.plane, [(float(a), float(b)) for b in finer for a in finer]).way
        refined = survey(way.losses, finer, finer)
        name = f"fogline, refined ({REFINED} lines)"
        found[name] = {"seconds": time.perf_counter() - started, "places": refined.evaluations, "way": way.name}
        drawn = np.array(way.losses([(float(a), float(b)) for b in finer for a in finer])).reshape(REFINED, REFINED)
        off = np.abs(refined.loss - drawn) / drawn
        found[name]["drawn, median and largest difference"] = [
            float(np.median(off[~refined.evaluated])), float(off[~refined.evaluated].max()),
        ]  # fmt: skip
    if loss_landscapes is not None:
        started = time.perf_counter()
        theirs = peer_surface(setting, POINTS).ravel()
        found[PEER] = {"seconds": time.perf_counter() - started, "places": theirs.size}
        with setting.probe.surroundings():
            ours = np.array(way.losses(peer_places(POINTS)))
        found[PEER]["largest difference"] = float(np.abs(ours / theirs - 1).max())
    return found


def measure(rounds: int) -> dict[str, Any]:
    """Everything, with the number of threads this process was given."""
    torch.set_num_threads(THREADS)
    commit = timing.stamp()["commit"]
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(Path(folder))
        surfaces = whole_surfaces(setting)
        with setting.probe.surroundings():
            chosen = choose(setting.probe, setting.plane, setting.places)
        found = costs(setting, chosen, rounds)
    by = "processor" if THREADS == 1 else "wall"
    names = list(found)
    return {
        "commit": commit,
        "threads": THREADS,
        "by": by,
        "chosen": chosen.way.name,
        "ways": {name: float(f"{1000 * seconds:.3g}") for name, seconds in chosen.seconds.items()},
        "milliseconds": {
            name: timing.Spread.of([1000 * getattr(cost, by) for cost in found[name]]) for name in names
        },
        "faster": {
            name: timing.ratio(found[name], found[FULL], by) for name in names if name != FULL
        },
        "surfaces": surfaces,
    }  # fmt: skip


def in_process_of_its_own(threads: int, rounds: int) -> dict[str, Any]:
    """The number of threads is set before PyTorch is imported."""
    environment = {**os.environ, "LANDSCAPE_THREADS": str(threads)}
    command = [sys.executable, __file__, "--one", "--rounds", str(rounds)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def table_of_places(found: list[dict[str, Any]]) -> str:
    """What a place takes."""
    rows = [
        [
            f"{name}, {part['threads']} thread(s), {part['by']} time",
            f"{spread['median']:.1f} ({spread['low']:.1f} to {spread['high']:.1f})",
            *([""] if name == FULL else [_times(part["faster"][name])]),
        ]
        for part in found
        for name, spread in part["milliseconds"].items()
    ]
    return timing.table(["who", "ms a place", "over fogline"], rows)


def _times(spread: dict[str, float]) -> str:
    return f"{spread['median']:.1f} x ({spread['low']:.1f} to {spread['high']:.1f})"


def table_of_surfaces(found: list[dict[str, Any]]) -> str:
    """What a whole surface takes."""
    rows = []
    for part in found:
        first = part["surfaces"][PLAIN]["seconds"]
        for name, row in part["surfaces"].items():
            differs = row.get("largest difference")
            rows.append(
                [
                    f"{name}, {part['threads']} thread(s)",
                    f"{row['places']:,}",
                    f"{row['seconds']:.1f}",
                    f"{first / row['seconds']:.1f} x",
                    "" if differs is None else f"{differs:.0e}",
                ]
            )
    return timing.table(["surface", "places evaluated", "s", "plain loop over it", "values differ by"], rows)


def drawn(found: list[dict[str, Any]]) -> str:
    """How far the refined surface is off where it was not evaluated."""
    rows = [row for row in found[0]["surfaces"].values() if "drawn, median and largest difference" in row]
    median, largest = rows[0]["drawn, median and largest difference"]
    return f"{100 * median:.1f} % in the middle and {100 * largest:.0f} % at most"


PAGE = """# The error landscape

A surface of {points} x {points} places of the digits CNN of `fogline demo` (16 and 32 channels, 8 x 8 pixels) around
its weights after five epochs, along two filter-normalised random directions, on a probe of {examples} examples; made by
`python benchmarks/landscape.py --write`, seed 0. Beside it a plain loop, and loss-landscapes if it is installed.

{stamp}

## A place

Medians (quartiles) of {rounds} rounds of slices that take turns in one process. *Over fogline* is what others take over
what we take where every place is evaluated.

{places}

The way was chosen by measurement, at the start of what is timed here: with one thread *{chosen}*,
with two *{chosen_two}*.
The ways that were measured, with one thread:

{ways}

Several places mapped into one call by `vmap` are slower on this processor than one after the other.

## A whole surface

Made once each, by the clock, with the choice of the way. *Values differ by* is the largest relative difference from the
plain loop at the same places; loss-landscapes evaluates every second column one step further on, so for it ours were
evaluated again at its places.

{surfaces}

**The target, every place five times as fast as by a plain loop, is {verdict}.**
Most of what is left is the second convolution. The refined surface, which is the default, evaluates fewer places; what
it draws between them is off by {drawn} of the loss there, and is marked as not
evaluated.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--one", action="store_true", help="measure with the threads of this process, print JSON")
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    parser.add_argument("--tables", action="store_true", help="write the page anew from the numbers that are there")
    arguments = parser.parse_args()
    if arguments.tables:
        kept = json.loads((timing.ROOT / "docs/evidence/landscape.json").read_text())
        write(kept["stamp"], kept["rounds"], kept["results"])
        return
    if arguments.one:
        print(json.dumps(measure(arguments.rounds), default=timing._plain))
        return
    found = [in_process_of_its_own(threads, arguments.rounds) for threads in (1, 2)]
    print(table_of_places(found), table_of_surfaces(found), sep="\n\n")
    if arguments.write:
        write(timing.stamp(["torch", "numpy", "loss-landscapes"]), arguments.rounds, found)


def write(stamped: dict[str, Any], rounds: int, found: list[dict[str, Any]]) -> None:
    """The page of evidence and its numbers."""
    one, two = (part["faster"][PLAIN]["median"] for part in found)
    ratios = f"{one:.1f} times with one thread, {two:.1f} times with two"
    stamped = {**stamped, "commit": " and ".join(dict.fromkeys(part["commit"] for part in found))}
    page = PAGE.format(
        points=POINTS,
        examples=EXAMPLES,
        rounds=rounds,
        stamp=timing.describe({**stamped, "threads": "1 and 2"}),
        places=table_of_places(found),
        surfaces=table_of_surfaces(found),
        chosen=found[0]["chosen"],
        chosen_two=found[1]["chosen"],
        ways=timing.table(["way", "ms a place"], [[name, f"{value:g}"] for name, value in found[0]["ways"].items()]),
        verdict=f"{'reached' if min(one, two) >= 5 else 'not reached'}: {ratios}",
        drawn=drawn(found),
    )
    timing.write_evidence("landscape", page, {"stamp": stamped, "rounds": rounds, "results": found})


if __name__ == "__main__":
    main()
