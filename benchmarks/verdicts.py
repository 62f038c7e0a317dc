"""Whether a run that is called converged has nothing more to gain: the same run four times as long says so.

    python benchmarks/verdicts.py                      # prints the tables of both sets; about twenty minutes
    python benchmarks/verdicts.py --set calibration    # of the set that the tests of the verdict were chosen on
    python benchmarks/verdicts.py --write              # also docs/evidence/verdicts.md

Every problem is trained by four recipes for 2, 6, 20 and 60 epochs, and again four times as long. What the longer run
gains in training loss, as a share of what the shorter one gained in all, is the truth; the verdict of the shorter run
is what is judged.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402 - after the number of threads is set
from sklearn import datasets  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import fogline  # noqa: E402
from fogline import _session  # noqa: E402

Pair = tuple[Tensor, Tensor]
Problem = tuple[Callable[[], nn.Module], Any, Pair]

RECIPES = {
    "rate measured": fogline.Recipe(),
    "adam to zero": fogline.Recipe(optimizer="adam", lr=1e-3, schedule="cosine"),
    "momentum to zero": fogline.Recipe(optimizer="momentum", lr=0.02, schedule="cosine"),
    "adam, one rate": fogline.Recipe(optimizer="adam", lr=1e-3, schedule="constant"),
}
EPOCHS, LONGER, HELD = (2, 6, 20, 60), 4, 0.25
MUCH, LITTLE = 0.05, 0.01
"""Of what was gained: more to come makes "converged" false, less makes "still improving" idle."""


class LastState(nn.Module):
    """A number, or one for each class, of the last state of a recurrent layer."""

    def __init__(self, layer: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.layer(x)[0][:, -1])
        return answer


def net(*sizes: int, between: Callable[[], nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    """Linear layers of these sizes."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), between()]
        return nn.Sequential(*layers[:-1])

    return make


def small_cnn() -> nn.Module:
    """Of pictures of 8 x 8 in a row."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def scaled(values: Any) -> Tensor:
    """Columns of mean 0 and standard deviation 1."""
    x = torch.as_tensor(values, dtype=torch.float32)
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


def waves() -> Pair:
    """Sines of a phase and a frequency of their own, and the value that comes next."""
    generator = torch.Generator().manual_seed(0)
    phase, pace = 6 * torch.rand(800, 1, generator=generator), 1 + torch.rand(800, 1, generator=generator)
    wave = torch.sin(phase + 0.4 * pace * torch.arange(25))
    return wave[:, :24, None], wave[:, 24:]


def valley(rows: int, columns: int, decades: float) -> Pair:
    """Columns whose sizes go over decades, each as important as any other."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.logspace(0, -decades, columns)
    x = torch.randn(rows, columns, generator=generator) * sizes
    y = (x / sizes) @ torch.randn(columns, 1, generator=generator) / math.sqrt(columns)
    return x, y + 0.1 * torch.randn(rows, 1, generator=generator)


def spirals() -> Pair:
    """Two arms, wound once around each other."""
    generator = torch.Generator().manual_seed(0)
    turn, label = 6 * torch.rand(800, generator=generator).sqrt(), torch.arange(800) % 2
    angle = turn + math.pi * label
    noise = 0.15 * torch.randn(800, 2, generator=generator)
    return torch.stack([turn * angle.cos(), turn * angle.sin()], 1) / 3 + noise / 3, label


@cache
def calibration() -> dict[str, Problem]:
    """The problems on which the tests of the verdict were chosen."""
    digits, entropy, squares = datasets.load_digits(), nn.CrossEntropyLoss(), nn.MSELoss()
    pixels, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    cancer, diabetes = datasets.load_breast_cancer(), datasets.load_diabetes()
    friedman = datasets.make_friedman1(1500, random_state=0)
    moons, moon = datasets.make_moons(600, noise=0.2, random_state=0)
    line = torch.linspace(-1, 1, 400)[:, None]
    return {
        "diabetes, linear": (net(10, 1), squares, (scaled(diabetes.data), scaled(diabetes.target[:, None]))),
        "cancer, linear": (net(30, 2), entropy, (scaled(cancer.data), torch.tensor(cancer.target))),
        "digits, one hidden layer": (net(64, 64, 10), entropy, (pixels, labels)),
        "digits, three of tanh": (net(64, 64, 64, 64, 10, between=nn.Tanh), entropy, (pixels, labels)),
        "digits, convolutions": (small_cnn, entropy, (pixels, labels)),
        "digits, autoencoder": (net(64, 32, 8, 32, 64), squares, (pixels, pixels)),
        "friedman 1": (net(10, 64, 64, 1), squares, (scaled(friedman[0]), scaled(friedman[1][:, None]))),
        "moons": (net(2, 32, 32, 2), entropy, (scaled(moons), torch.tensor(moon))),
        "fast sine": (net(1, 64, 64, 1, between=nn.Tanh), squares, (line, torch.sin(9 * line))),
        "waves, GRU": (lambda: LastState(nn.GRU(1, 24, batch_first=True), 24, 1), squares, waves()),
        "valley, linear": (net(40, 1), squares, valley(500, 40, 1.5)),
    }


@cache
def evaluation() -> dict[str, Problem]:
    """Others, which no constant was chosen on."""
    digits, entropy, squares = datasets.load_digits(), nn.CrossEntropyLoss(), nn.MSELoss()
    rows, labels = torch.tensor(digits.data, dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(digits.target)
    wine, iris, linnerud = datasets.load_wine(), datasets.load_iris(), datasets.load_linnerud()
    made, kind = datasets.make_classification(1200, 20, n_informative=8, n_classes=3, flip_y=0.05, random_state=1)
    second = datasets.make_friedman2(1200, noise=0.1, random_state=0)
    third = datasets.make_friedman3(1200, noise=0.1, random_state=0)
    roll, place = datasets.make_swiss_roll(1000, noise=0.1, random_state=0)
    rate = torch.exp(0.5 * scaled(second[0])[:, :2].sum(1, keepdim=True))
    counts = torch.poisson(rate, torch.Generator().manual_seed(0))
    layer = lambda: nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True)  # noqa: E731
    return {
        "wine": (net(13, 16, 3), entropy, (scaled(wine.data), torch.tensor(wine.target))),
        "iris, linear": (net(4, 3), entropy, (scaled(iris.data), torch.tensor(iris.target))),
        "linnerud": (net(3, 16, 3), squares, (scaled(linnerud.data), scaled(linnerud.target))),
        "made classes": (net(20, 64, 3), entropy, (scaled(made), torch.tensor(kind))),
        "friedman 2": (net(4, 64, 64, 1, between=nn.GELU), squares, (scaled(second[0]), scaled(second[1][:, None]))),
        "friedman 3": (net(4, 32, 1, between=nn.Tanh), nn.HuberLoss(), (scaled(third[0]), scaled(third[1][:, None]))),
        "swiss roll": (net(3, 64, 64, 1), nn.L1Loss(), (scaled(roll), scaled(place[:, None]))),
        "spirals": (net(2, 64, 64, 2, between=nn.Tanh), entropy, spirals()),
        "counts": (net(4, 32, 1), nn.PoissonNLLLoss(), (scaled(second[0]), counts)),
        "digits by rows, LSTM": (lambda: LastState(nn.LSTM(8, 32, batch_first=True), 32, 10), entropy, (rows, labels)),
        "digits by rows, attention": (
            lambda: nn.Sequential(layer(), layer(), nn.Flatten(), nn.Linear(64, 10)), entropy, (rows, labels),
        ),
        "steep valley, linear": (net(12, 1), squares, valley(600, 12, 2.0)),
    }  # fmt: skip


SETS = {"calibration": calibration, "evaluation": evaluation}


def trained(problem: Problem, recipe: fogline.Recipe, epochs: int) -> dict[str, Any]:
    """Verdict, training loss of the kept weights, and what judging took of the whole."""
    make, loss, (x, y) = problem
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    learned, held = order[int(HELD * len(x)) :], order[: int(HELD * len(x))]
    task = fogline.Task(make, loss, (x[learned], y[learned]), (x[held], y[held]))
    seconds = 0.0
    judging = _session.measured_end

    def timed(descent: Any) -> Any:
        nonlocal seconds
        started = time.process_time()
        found = judging(descent)
        seconds = time.process_time() - started
        return found

    _session.measured_end = timed
    try:
        with tempfile.TemporaryDirectory() as runs:
            started = time.process_time()
            run = fogline.fit(task, recipe.replace(duration=f"{epochs}ep", batch_size=32), runs=runs, progress=False)
            whole = time.process_time() - started
            first, judgement = float(run.steps["loss"][0]), run.judgement
    finally:
        _session.measured_end = judging
    with torch.no_grad():
        last = float(loss(run.model(x[learned]), y[learned]))
    found = {"verdict": judgement.verdict.name, "first": first, "last": last}
    return found | {"share": seconds / whole, "evidence": judgement.evidence}


def judged(problem: Problem, recipe: fogline.Recipe, epochs: int) -> dict[str, Any]:
    """A run, and what one four times as long gains beyond it, of what it gained."""
    run, longer = trained(problem, recipe, epochs), trained(problem, recipe, LONGER * epochs)
    return run | {"left": (run["last"] - longer["last"]) / max(run["first"] - run["last"], 1e-9)}


def row_of(wanted: tuple[str, str, str, int]) -> dict[str, Any]:
    """One run and the longer one: of a set, a problem, a recipe and a number of epochs."""
    name, title, kind, epochs = wanted
    torch.set_num_threads(1)
    found = judged(SETS[name]()[title], RECIPES[kind], epochs)
    return {"set": name, "problem": title, "recipe": kind, "epochs": epochs, **found}


def table(rows: list[dict[str, Any]]) -> str:
    """What was left to gain, by verdict."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        kinds[row["verdict"]].append(row["left"])
    header = ["verdict", "runs", "median left", f"more than {MUCH:.0%} left", f"less than {LITTLE:.0%} left"]
    return timing.table(
        header,
        [
            [
                f"`{kind}`",
                len(left),
                f"{statistics.median(left):.1%}",
                f"{sum(share > MUCH for share in left)} ({sum(share > MUCH for share in left) / len(left):.0%})",
                f"{sum(share < LITTLE for share in left)} ({sum(share < LITTLE for share in left) / len(left):.0%})",
            ]
            for kind, left in sorted(kinds.items(), key=lambda pair: -len(pair[1]))
        ],
    )


def costs(rows: list[dict[str, Any]]) -> str:
    """What judging takes of the processor time of a run, by its length."""
    header = ["epochs", "median share of the run", "largest"]
    shares = {epochs: [row["share"] for row in rows if row["epochs"] == epochs] for epochs in EPOCHS}
    return timing.table(header, [[k, f"{statistics.median(v):.1%}", f"{max(v):.1%}"] for k, v in shares.items() if v])


PAGE = """# Converged, or not

Whether the verdict of a run is true, by the same run four times as long; made by `python benchmarks/verdicts.py
--write`. *Left* is what the longer run gains in training loss beyond the shorter one, as a share of what that gained in
all. Problems of scikit-learn's bundled sets and generators, of generated waves, spirals and valleys; four recipes (the
default, Adam at 1e-3 and momentum at .02 annealed by a cosine, Adam at 1e-3 throughout), batches of 32, seed 0, 2, 6,
20 and 60 epochs; a quarter of the rows is held out. The calibration set is the one that the tests of the verdict were
chosen on; of the other one run was looked at, too, when the length of the look ahead was chosen.

{stamp}

{tables}

## What it takes

Processor time of the look at the end, of that of the whole run (start, recording and checkpoints with it); both sets.

{costs}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=[*SETS, "both"], default="both")
    parser.add_argument("--only", help="problems with this in their name")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    arguments = parser.parse_args()
    names = [*SETS] if arguments.set == "both" else [arguments.set]
    wanted = [
        (name, title, kind, epochs)
        for name in names
        for title in SETS[name]()
        if not arguments.only or arguments.only in title
        for kind in RECIPES
        for epochs in EPOCHS
    ]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(row_of, wanted):
            found[row["set"]].append(row)
            print("{problem}, {recipe}, {epochs} epochs: {verdict}, {left:+.3f} left".format(**row), flush=True)
    tables = "\n\n".join(f"## The {name} set\n\n{table(rows)}" for name, rows in found.items())
    taken = costs([row for rows in found.values() for row in rows])
    print(tables, taken, sep="\n\n")
    if arguments.write:
        stamped = timing.stamp(["torch", "numpy", "scikit-learn"])
        page = PAGE.format(stamp=timing.describe(stamped), tables=tables, costs=taken)
        timing.write_evidence("verdicts", page, {"stamp": stamped, "results": found})


if __name__ == "__main__":
    main()
