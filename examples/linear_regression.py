"""Linear regression by gradient descent, where the right answer is known in closed form.

    python examples/linear_regression.py [--seeds 50] [--pictures FOLDER]

1. Full-batch descent reaches what the normal equations give.
2. Batch, mini-batch and stochastic descent from the same start, on one picture.
3. A line fitted with a robust loss has a poor local minimum. Exact descent that begins there stays; the noise of small
   batches leaves it. How often is measured over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pictures import BLUE, GREEN, INK, ORANGE, Panel, save
from torch import Tensor, nn

import fogline

ROWS, GRIP = 240, 0.5
SIZES: dict[int | str, str] = {1: ORANGE, 16: GREEN, "full": BLUE}
STEPS, RATE = 120, 0.15
ROBUST_SIZES: tuple[int | str, ...] = ("full", 16, 8, 4, 2, 1)
ROBUST_STEPS, ROBUST_RATE = 400, 0.4
Data = tuple[Tensor, Tensor]
Point = tuple[float, float]


def line_data() -> Data:
    """Rows about the line y = 1.5 x + 0.5, in float64."""
    draws = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(ROWS, 1, generator=draws, dtype=torch.float64) - 1
    return x, 1.5 * x + 0.5 + 0.4 * torch.randn(ROWS, 1, generator=draws, dtype=torch.float64)


def closed_form(data: Data) -> Tensor:
    """Slope and offset of the least squares line, by the normal equations."""
    x, y = data
    columns = torch.cat([x, torch.ones_like(x)], dim=1)
    return torch.linalg.solve(columns.T @ columns, columns.T @ y).flatten()


def weights(model: nn.Module) -> Point:
    """Slope and offset of the model as it is now."""
    return model.weight.item(), model.bias.item()


def far_away() -> nn.Module:
    """A line to begin with: y = -1 x - 0.8."""
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.fill_(-1.0)
        model.bias.fill_(-0.8)
    return model


def descended(data: Data, size: int | str, steps: int, lr: float, seed: int = 0) -> tuple[list[Point], Any]:
    """Slope and offset after every step, the start first; and the run."""
    task = fogline.Task(far_away, nn.MSELoss(), data)
    recipe = fogline.Recipe(
        optimizer="sgd", lr=lr, batch_size=size, duration=f"{steps}st", schedule="constant", seed=seed, step="eager"
    )
    path = [weights(far_away())]
    for step in fogline.descend(task, recipe):
        path.append(weights(step.run.model))
    return path, step.run


class Slope(nn.Module):
    """A line through the origin: one weight."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(first, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def two_lines() -> Data:
    """Two thirds of the rows lie about y = x, one third about y = -x."""
    draws = torch.Generator().manual_seed(1)
    x = torch.where(torch.rand(ROWS, 1, generator=draws) < 0.5, -1.0, 1.0).double()
    x = x * (0.5 + 0.5 * torch.rand(ROWS, 1, generator=draws, dtype=torch.float64))
    side = torch.where(torch.arange(ROWS)[:, None] % 3 == 0, -1.0, 1.0)
    return x, side * x + 0.1 * torch.randn(ROWS, 1, generator=draws, dtype=torch.float64)


def robust(outputs: Tensor, targets: Tensor) -> Tensor:
    """Geman and McClure's loss: a square near zero, at most 1 for rows that are far off."""
    off = (outputs - targets).square()
    return (off / (GRIP + off)).mean()


def loss_of(slope: float, data: Data) -> float:
    """The robust loss of a line through the origin."""
    return robust(slope * data[0], data[1]).item()


def bottom(data: Data, start: float) -> float:
    """The minimum that exact descent finds from a slope."""
    x, y = data
    return fogline.minimize(lambda w: robust(w * x, y), torch.tensor(start, dtype=torch.float64)).x.item()


def left_it(data: Data, start: float, size: int | str, seeds: Sequence[int]) -> list[float]:
    """Where descents from the poor minimum end, one a seed."""
    ends = []
    for seed in seeds:
        run = fogline.fit(
            fogline.Task(Slope(start), robust, data),
            fogline.Recipe(
                optimizer="sgd", lr=ROBUST_RATE, batch_size=size, duration=f"{ROBUST_STEPS}st", schedule="constant",
                seed=seed, step="eager", watch=0,
            ),
            progress=False,
        )  # fmt: skip
        ends.append(run.model.weight.item())
    return ends


def draw_paths(data: Data, paths: dict[int | str, list[Point]], folder: Path) -> Path:
    """The ways of three batch sizes over one landscape, and how far each is from the closed form."""
    best = closed_form(data)
    x = data[0]
    shape = ((x * x).mean().item(), x.mean().item()), (x.mean().item(), 1.0)
    above = Panel("one landscape, three batch sizes", "slope", (-1.4, 2.4), (-1.1, 1.3))
    above.ellipses((best[0].item(), best[1].item()), shape, (0.02, 0.1, 0.3, 0.7, 1.3, 2.1, 3.2, 4.5))
    far = Panel("distance from the closed form", "step", (0, STEPS), (1e-4, 10), log_y=True)
    for place, (size, path) in enumerate(paths.items()):
        colour = SIZES[size]
        above.line(path, colour, 1.6 if size == "full" else 0.9)
        far.line([(k, torch.dist(torch.tensor(w).double(), best).item()) for k, w in enumerate(path)], colour)
        far.words((4, 10 ** (-2.5 - 0.5 * place)), f"batch size {size}", colour)
    above.dots([best.tolist()], INK, 4)
    return save([above, far], folder / "linear-regression-paths.svg", "Batch, mini-batch and stochastic descent")


def draw_minima(data: Data, ends: dict[int | str, list[float]], poor: float, good: float, folder: Path) -> Path:
    """The robust loss with its two minima, and the share of seeds that left the poor one."""
    landscape = Panel("a poor minimum and a good one", "slope of the line", (-1.6, 1.6), (0.2, 0.75))
    landscape.curve(lambda w: loss_of(w, data))
    landscape.dots([(poor, loss_of(poor, data))], ORANGE, 4.5)
    landscape.dots([(good, loss_of(good, data))], GREEN, 4.5)
    share = Panel("seeds that left the poor one", "batch size", (-0.6, len(ends) - 0.4), (0, 1.1))
    for place, where in enumerate(ends.values()):
        left = sum(w > 0 for w in where) / len(where)
        share.line([(place, 0), (place, left)], GREEN, 16)
        share.words((place - 0.28, left + 0.03), f"{left:.0%}")
    share.marks = {place: str(size) for place, size in enumerate(ends)}
    return save([landscape, share], folder / "linear-regression-minima.svg", "Noise of small batches leaves a minimum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--pictures", type=Path, default=Path("pictures"), metavar="FOLDER")
    given = parser.parse_args()

    data = line_data()
    best = closed_form(data)
    print(f"closed form: slope {best[0]:.6f}, offset {best[1]:.6f}")
    path, run = descended(data, "full", 400, 0.3)
    print(f"full batch, 400 steps of 0.3: slope {path[-1][0]:.6f}, offset {path[-1][1]:.6f}; {run.verdict.name}")
    print(f"  apart by {torch.dist(torch.tensor(path[-1]).double(), best):.1e}")

    paths = {size: descended(data, size, STEPS, RATE)[0] for size in SIZES}
    print(f"the same start, {STEPS} steps of {RATE}:")
    for size, each in paths.items():
        late = torch.tensor(each[-40:]).double()
        distance = (late - best).norm(dim=1).mean()
        print(f"  batch size {size!s:<4} distance from the closed form over the last 40 steps {distance:.2g}")

    rows = two_lines()
    poor, good = bottom(rows, -1.0), bottom(rows, 1.0)
    print(
        f"robust loss: {loss_of(poor, rows):.3f} at {poor:.3f}, the poor one, {loss_of(good, rows):.3f} at {good:.3f}"
    )
    ends = {size: left_it(rows, poor, size, range(given.seeds)) for size in ROBUST_SIZES}
    print(f"begun at the poor one, {ROBUST_STEPS} steps of {ROBUST_RATE}, {given.seeds} seeds:")
    for size, where in ends.items():
        print(f"  batch size {size!s:<4} left it: {sum(w > 0 for w in where)} of {len(where)}")

    print(draw_paths(data, paths, given.pictures))
    print(draw_minima(rows, ends, poor, good, given.pictures))


if __name__ == "__main__":
    main()
