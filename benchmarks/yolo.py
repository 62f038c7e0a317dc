"""Ultralytics' trainer with Fogline beside it: what watching costs, what a measured rate and a guard are worth.

    python benchmarks/yolo.py --seeds 1 --steps 40 --rounds 5      # a look, a few minutes
    python benchmarks/yolo.py --write                              # docs/evidence/yolo.md and yolo.json

YOLO26n from its first weights on drawn shapes of 96 pixels, 64 images, a batch of 8, an update a batch. It wants an
environment of its own, see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402  after the number of threads is set

from overhead_parts.trainers import Parked, Tick  # noqa: E402
from yolo_parts.muon import Muon, muon  # noqa: E402
from yolo_parts.quiet import quiet  # noqa: E402
from yolo_parts.shapes import draw  # noqa: E402
from yolo_parts.training import BATCH, IMAGES, PLAIN, SIDE, VALID, Outcome, contrasting, settings, train  # noqa: E402

LIMIT, WORSE, FASTER, EQUAL = 1.03, 1.05, 2.0, 1e-5
_SECONDS = 1.2  # of a slice


def drawn(folder: Path, seed: int) -> Path:
    """The data of a seed, drawn once."""
    place = folder / f"shapes-{seed}"
    return place / "boxes.yaml" if place.exists() else draw(place, train=IMAGES, valid=VALID, side=SIDE, seed=seed)


# -- what watching costs -----------------------------------------------------------------------------------------------


def contender(data: Path, folder: Path, **watched: Any) -> timing.Contender:
    """A training without an end, parked between batches."""

    def run(tick: Tick) -> None:
        from ultralytics import YOLO

        from fogline.plugins.ultralytics import watch

        yolo = YOLO("yolo26n.yaml")
        if watched:
            watch(yolo, runs=folder / "runs", **{k: v for k, v in watched.items() if k != "watched"})
        yolo.add_callback("on_train_batch_end", lambda _: tick())
        given = settings(data, 10**6, 0) | {"project": str(folder / "parked"), "name": str(sorted(watched))}
        yolo.train(**given)

    return timing.Contender(Parked(run).run, seconds=_SECONDS)


def overhead(folder: Path, rounds: int) -> dict[str, list[timing.Cost]]:
    """Watched, guarded and neither in turn."""
    data = drawn(folder, 0)
    loops = {
        "plain": contender(data, folder),
        "watched": contender(data, folder, watched=True),
        "guarded": contender(data, folder, watched=True, guard=True),
    }
    return timing.interleave(loops, rounds=rounds, seconds=_SECONDS)


# -- what a measured rate is worth -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A data seed: the loss behind auto's rate and behind the one that was found."""

    seed: int
    auto_rate: float
    rate: float
    cost_steps: int
    auto: Outcome
    found: Outcome

    @property
    def ratio(self) -> float:
        return self.found.last / self.auto.last


def pair(folder: Path, seed: int, steps: int) -> Pair:
    """Find a rate, and train with it and with what ``optimizer="auto"`` takes."""
    from ultralytics import YOLO

    from fogline.plugins.ultralytics import find_lr
    from fogline.plugins.ultralytics.session import base_rate
    from fogline.plugins.ultralytics.setting import setting

    given = settings(drawn(folder, seed), steps, seed)
    named = {name: value for name, value in given.items() if name != "data"}
    yolo = YOLO("yolo26n.yaml")
    rate = find_lr(yolo, data=given["data"], **named)
    held = setting(yolo, given["data"], named)
    auto_rate = base_rate(held.beginning()[1].param_groups)
    auto, _ = train(given, folder)
    found, _ = train(given, folder, lr=rate.value)
    return Pair(seed, auto_rate, rate.value, rate.cost_steps, auto, found)


# -- a poisoned image --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poisoned:
    """What became of a training with an image that gives NaN.

    Attributes:
        broken: batch normalisation layers whose statistics are not finite at the end, without the guard and with it.
        ended: what Ultralytics said.
        first, last: mean losses of ten steps with the guard.
        named: the files that were named.
        skipped: batches that were left out.
    """

    broken: tuple[int, int]
    ended: str
    first: float
    last: float
    named: list[str]
    skipped: int


def poisoned(folder: Path, steps: int) -> Poisoned:
    """One image of a single colour, and a trainer that divides by its contrast."""
    from PIL import Image

    place = folder / "poisoned"
    data = draw(place, train=IMAGES, valid=VALID, side=SIDE, seed=0)
    Image.new("RGB", (SIDE, SIDE)).save(place / "boxes" / "images" / "train" / "0017.png")
    given = settings(data, steps, 0) | PLAIN | {"save": True}
    broken: list[int] = []

    def count(held: Any) -> None:
        layers = [m for m in held.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        broken.append(sum(not bool(torch.isfinite(layer.running_mean).all()) for layer in layers))

    theirs, _ = train(given, folder, trainer=contrasting(), teardown=count)
    _, watching = train(given, folder, trainer=contrasting(), teardown=count, guard=True)
    events = [row for row in watching.run.events if row["kind"] == "refused"]
    named = sorted({Path(part).name for row in events for part in row["message"].partition("images ")[2].split(", ")})
    last = "a loss of NaN" if theirs.losses and math.isnan(theirs.losses[-1]) else "a loss that is finite"
    losses = watching.run.steps["loss"]
    first_last = float(losses[:10].mean()), float(losses[-10:].mean())
    names = [name for name in named if name]
    return Poisoned((broken[0], broken[1]), theirs.error or last, *first_last, names, len(events))


# -- the page ----------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """What was measured; None for what was left out."""

    costs: dict[str, list[timing.Cost]] | None = None
    pairs: list[Pair] | None = None
    muon: Muon | None = None
    poisoned: Poisoned | None = None


def overhead_table(costs: dict[str, list[timing.Cost]]) -> str:
    rows = []
    for name, cost in costs.items():
        by, wall = timing.ratio(cost, costs["plain"]), timing.ratio(cost, costs["plain"], "wall")
        lowest = min(c.processor for c in cost) / min(c.processor for c in costs["plain"])
        spent = timing.microseconds(cost).median / 1e3
        verdict = "" if name == "plain" else "pass" if by.median <= LIMIT else "**short**"
        quartiles = f"{by.low:.3f} to {by.high:.3f}"
        rows.append(
            [name, f"{spent:.1f}", f"{by.median:.3f}", quartiles, f"{lowest:.3f}", f"{wall.median:.3f}", verdict]
        )
    return timing.table(["training", "ms a step", "ratio", "quartiles", "lowest", "wall ratio", ""], rows)


def rates_table(pairs: Sequence[Pair]) -> str:
    rows = [
        [
            p.seed, f"{p.auto_rate:.2e}", f"{p.rate:.2e}", p.cost_steps, f"{p.auto.last:.3f}", f"{p.found.last:.3f}",
            f"{p.ratio:.3f}", f"{p.auto.valid:.3f}", f"{p.found.valid:.3f}",
        ]
        for p in pairs
    ]  # fmt: skip
    header = ["seed", "auto's rate", "found", "cost in steps", "loss, auto", "loss, found", "ratio"]
    return timing.table([*header, "held-out, auto", "held-out, found"], rows)


def muon_table(found: Muon) -> str:
    rows = []
    for name, cost in (("Ultralytics", found.theirs), ("Fogline", found.ours), ("Fogline, float32", found.exactly)):
        by = timing.ratio(found.theirs, cost)
        rows.append([name, f"{timing.microseconds(cost).median / 1e3:.1f}", f"{by.median:.2f}"])
    return timing.table(["MuSGD", "ms a step", "times as fast"], rows)


def page(found: Results, steps: int, command: str, stamp: dict[str, Any]) -> str:
    """The page of evidence."""
    assert found.costs is not None
    assert found.pairs is not None
    assert found.muon is not None
    assert found.poisoned is not None
    better = sum(p.ratio <= 1 for p in found.pairs)
    worst = max(p.ratio for p in found.pairs)
    speed, bad = timing.ratio(found.muon.theirs, found.muon.ours).median, found.poisoned
    return f"""# Ultralytics

YOLO26n from its first weights by Ultralytics' own trainer, on drawn shapes: {IMAGES} images of {SIDE} pixels, a batch
of {BATCH}, an update a batch (`nbs={BATCH}`), everything else as it is by default.

## What watching costs

`watch(yolo)` and `watch(yolo, guard=True)` over neither, in one process, in turn, {len(found.costs["plain"])} rounds of
{_SECONDS} s each; at most {LIMIT:.2f} was asked for. The ratio is of processor time between slices of the same round.

{overhead_table(found.costs)}

## The learning rate

{steps} steps with what `optimizer="auto"` takes and with `find_lr`'s rate, set by `watch(yolo, lr=...)`; the loss is
the mean of the last 30 steps, for an image. Each seed draws its own data, first weights and order.

{rates_table(found.pairs)}

At least as low on {better} of {len(found.pairs)} seeds (asked for: 4 of 5), at worst {worst:.3f} times as high (at most
{WORSE:.2f}).

Where every seed has the same rate, the race was won by its upper end on each of them (a warning of `find_lr` says so):
it begins around auto's rate in ratios of the root of ten, goes one further while the end wins and the budget lasts, and
what a short race wins is lowered for the length of the run.

## MuSGD

A step on the parameters of YOLO26n, 126 matrices among them, on the same random gradients, in turn.

{muon_table(found.muon)}

{speed:.2f} times as fast (asked for: {FASTER:g}). The largest difference of any element of an update at a rate of 0.01,
whose own largest is {found.muon.largest:.1e}: {found.muon.difference:.1e} from theirs computed in float32 (asked for:
{EQUAL:g}), and {found.muon.exact:.1e} with ours in float32 throughout (`precision="float32"`). Theirs as it is shipped
rounds to bfloat16 and differs by {found.muon.as_shipped:.1e}, which is its own rounding.

## A poisoned image

One image of a single colour among {IMAGES}, and a trainer that stretches contrast: 0 / 0. {steps} steps were asked for.

| | Ultralytics | with `guard=True` |
|---|---|---|
| ended with | {bad.ended} | loss {bad.first:.2f} at first, {bad.last:.2f} at last |
| batch normalisation layers with NaN | {bad.broken[0]} | {bad.broken[1]} |
| named | nothing | {", ".join(bad.named)} ({bad.skipped} batches were left out) |

{timing.describe(stamp)}

Made by `{command}`. The seeds are those of the tables; weights and order have the seed of the data.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", nargs="+", choices=["overhead", "rate", "muon", "poisoned"])
    parser.add_argument("--write", action="store_true", help="write docs/evidence/yolo.md and yolo.json")
    arguments = parser.parse_args()
    if find_spec("ultralytics") is None:
        print(
            "Ultralytics is not installed here; benchmarks/README.md says how to have it in an environment of its own"
        )
        return
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="yolo-"))
    quiet(folder)
    wanted = arguments.only or ["muon", "poisoned", "rate", "overhead"]
    found = Results()
    if "muon" in wanted:
        found.muon = muon(arguments.rounds)
        print(muon_table(found.muon), found.muon.difference, found.muon.as_shipped, found.muon.exact, flush=True)
    if "poisoned" in wanted:
        found.poisoned = poisoned(folder, arguments.steps)
        print(found.poisoned.ended, found.poisoned.named, found.poisoned.last, flush=True)
    if "rate" in wanted:
        found.pairs = []
        for seed in range(arguments.seeds):
            found.pairs.append(pair(folder, seed, arguments.steps))
            print(rates_table(found.pairs[-1:]), flush=True)
    if "overhead" in wanted:
        timing.StandingClock.install()
        found.costs = overhead(folder, arguments.rounds)
        print(overhead_table(found.costs), flush=True)
    if arguments.write:
        stamp = timing.stamp(("torch", "torchvision", "ultralytics", "numpy"))
        said = f"python benchmarks/yolo.py --seeds {arguments.seeds} --steps {arguments.steps}"
        command = f"{said} --rounds {arguments.rounds} --write"
        plain = {"costs": found.costs, "pairs": [asdict(p) for p in found.pairs or []], "muon": vars(found.muon)}
        plain["poisoned"] = asdict(found.poisoned)
        timing.write_evidence("yolo", page(found, arguments.steps, command, stamp), {**plain, **stamp})


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # parked trainers never return
