"""What 32 learning rates cost in one program, compiled or not, in steps of one: taking turns costs 32 of them.

    python benchmarks/population.py            # prints the table
    python benchmarks/population.py --write    # also docs/evidence/population.md

Contenders take slices in turn in one process, on one thread; see ``timing.py``. "One" is an ordinary eager step.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402 - after the number of threads is set
from torch import Tensor, nn  # noqa: E402

from fogline import Recipe  # noqa: E402
from fogline.data.source import InMemory  # noqa: E402
from fogline.descent.batches import Batches  # noqa: E402
from fogline.descent.objective import Objective  # noqa: E402
from fogline.descent.population import InTurn, Population, Together, populate  # noqa: E402

MEMBERS = 32


@dataclass(frozen=True)
class Problem:
    """A model to be trained 32 times, and what 32 together may cost at most."""

    title: str
    model: nn.Module
    loss: Any
    data: tuple[Tensor, Tensor]
    optimizer: str
    most: float


def problems() -> list[Problem]:
    """Made with seed 0; batches of 64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(10, (512,), generator=generator)
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    cnn = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    entropy = nn.CrossEntropyLoss()
    return [
        Problem("linear 20, SGD", nn.Linear(20, 1), nn.MSELoss(), (normal(512, 20), normal(512, 1)), "sgd", 4.0),
        Problem("MLP 64-128-128-10, AdamW", mlp, entropy, (normal(512, 64), labels), "adamw", 12.0),
        Problem("CNN on 8 x 8, momentum", cnn, entropy, (normal(512, 1, 8, 8), labels), "momentum", 32.0),
    ]


def measure(problem: Problem, rounds: int) -> dict[str, Any]:
    """Ratios of a step of 32 members, together and in turn, to a step of one."""
    objective, batches = Objective(problem.model, problem.loss), Batches(InMemory(problem.data), 64)
    recipe = Recipe(optimizer=problem.optimizer, batch_size=64)
    rates = [10 ** (-4 + 3 * k / (MEMBERS - 1)) for k in range(MEMBERS)]
    held = [batches.at(k) for k in range(8)]

    def contender(population: Population) -> timing.Contender:
        def run(steps: int) -> int:
            for k in range(steps):
                population.step(k, held[k % 8], rates[: population.size])
            return steps

        return timing.Contender(run)

    compiled = Together(objective, recipe, MEMBERS)
    started = time.perf_counter()
    compiled.compile(held[0])
    seconds = time.perf_counter() - started
    costs = timing.interleave(
        {
            "one": contender(InTurn(objective, recipe, 1, batches)),
            "compiled": contender(compiled),
            "together": contender(Together(objective, recipe, MEMBERS)),
            "in turn": contender(InTurn(objective, recipe, MEMBERS, batches)),
        },
        rounds=rounds,
        seconds=0.1,
    )
    return {
        "title": problem.title,
        "one": timing.microseconds(costs["one"]),
        "compiled": timing.ratio(costs["compiled"], costs["one"]),
        "compiling": seconds,
        "together": timing.ratio(costs["together"], costs["one"]),
        "in turn": timing.ratio(costs["in turn"], costs["one"]),
        "most": problem.most,
        "chosen": "one program" if populate(objective, recipe, MEMBERS, batches).together else "turns",
    }


def table(found: list[dict[str, Any]]) -> str:
    """The table of the page."""
    rows = [
        [
            row["title"],
            f"{row['one'].median:.0f}",
            _spread(row["compiled"]),
            f"{row['compiling']:.0f}",
            _spread(row["together"]),
            _spread(row["in turn"]),
            f"{row['most']:g}",
            *("pass" if row[form].median <= row["most"] else "**short**" for form in ("compiled", "together")),
            row["chosen"],
        ]
        for row in found
    ]
    header = ["model", "one, us", f"{MEMBERS} compiled", "compiling, s", f"{MEMBERS} in one program"]
    header += [f"{MEMBERS} in turn", "at most", "compiled", "in one program", "chosen"]
    return timing.table(header, rows)


def _spread(spread: timing.Spread) -> str:
    return f"{spread.median:.1f} ({spread.low:.1f} to {spread.high:.1f})"


PAGE = """# Many at once

What a step of 32 copies of a model costs, each at a learning rate of its own on the same batch, in steps of one; made
by `python benchmarks/population.py --write`. Medians (quartiles) of {rounds} rounds by processor time, one thread,
batch 64, seed 0. *Compiled* is that program with forward, gradient and update in one Inductor graph, `populate(...,
compiled=True)`; *in one program* is without, what the race of learning rates uses, whose probes are shorter than
compiling. *Chosen* is the form that a short measurement takes, not compiled.

{stamp}

{table}

Where a step is mostly calling, many cost little more than one; where it is mostly computing, the computing remains.
Not measured on a GPU; see `gpu.md`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(problem, arguments.rounds) for problem in problems()]
    print(table(found))
    if arguments.write:
        stamped = timing.stamp(["torch", "numpy"])
        page = PAGE.format(rounds=arguments.rounds, stamp=timing.describe(stamped), table=table(found))
        timing.write_evidence("population", page, {"stamp": stamped, "rounds": arguments.rounds, "results": found})


if __name__ == "__main__":
    main()
