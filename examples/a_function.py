"""The hiker: gradient descent on functions, where every step can be checked by hand.

    python examples/a_function.py [--pictures FOLDER]

A hiker stands on a slope in dense fog. They feel how steep it is under their feet and take a step down, as long as the
slope is steep, times the learning rate. Too small a rate crawls, too large a one steps over the valley and, from some
rate on, up the other side.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from pictures import BLUE, GREEN, INK, ORANGE, RED, Panel, save
from torch import Tensor

import fogline

VALLEY_RATES = {"crawls": 0.02, "arrives": 0.3, "overshoots": 0.95, "runs away": 1.03}
RAVINE_RATES = {"crawls": 0.004, "arrives": 0.09, "overshoots": 0.0985, "runs away": 0.101}
COLOURS = (ORANGE, GREEN, BLUE, RED)
STEPS = 20


def valley(w: Tensor) -> Tensor:
    """One weight; the bottom is at 2, the curvature 2 everywhere."""
    return ((w - 2) ** 2).sum()


def ravine(w: Tensor) -> Tensor:
    """Two weights; curvature 2 along the first, 20 along the second."""
    return w[0] ** 2 + 10 * w[1] ** 2


def one_step() -> Any:
    """From 5, against a slope of 6, with a rate of 0.1: to 4.4."""
    return fogline.minimize(valley, torch.tensor([5.0]), method="gd", lr=0.1, max_steps=1)


def down_the_valley() -> dict[str, Any]:
    """The same start, four rates."""
    start = torch.tensor([5.0], dtype=torch.float64)
    return {
        name: fogline.minimize(valley, start, method="gd", lr=lr, max_steps=STEPS) for name, lr in VALLEY_RATES.items()
    }


def down_the_ravine() -> dict[str, Any]:
    """Where the curvature differs from one direction to the other, one rate has to suit both."""
    start = torch.tensor([4.0, 1.0], dtype=torch.float64)
    return {
        name: fogline.minimize(ravine, start, method="gd", lr=lr, max_steps=60) for name, lr in RAVINE_RATES.items()
    }


def draw_hiker(step: Any, folder: Path) -> Path:
    """What the hiker knows, and where they stand."""
    here, there, slope = 5.0, step.x.item(), step.grad.item()
    known = Panel("in the fog: the slope underfoot", "weight", (-1, 7), (-2, 18))
    known.band(-1, here - 0.9)
    known.band(here + 0.9, 7)
    known.line([(here + d, 9 + slope * d) for d in (-0.9, 0.9)], ORANGE, 2)
    seen = Panel("without it: a step of 0.1 times the slope", "weight", (-1, 7), (-2, 18))
    for panel in (known, seen):
        panel.line([(here, 9), (there, 9), (there, (there - 2) ** 2)], BLUE, 1.4, dash="4 3")
        panel.dots([(here, 9)], INK, 4)
        panel.words((here - 0.35, 10.4), "5", INK)
    seen.curve(lambda w: (w - 2) ** 2)
    seen.dots([(there, (there - 2) ** 2)], BLUE, 4)
    seen.words((there + 0.15, 4.6), f"{there:.1f}", BLUE)
    return save([known, seen], folder / "function-hiker.svg", "A step down a parabola, with and without fog")


def draw_valley(results: dict[str, Any], folder: Path) -> Path:
    """A panel a rate: the curve, the places of the steps on it."""
    panels = []
    for (name, result), colour in zip(results.items(), COLOURS, strict=True):
        places = [(float(x), (float(x) - 2) ** 2) for x in result.path.x[:, 0]]
        panel = Panel(f"rate {VALLEY_RATES[name]:g} {name}", "weight", (-4, 8), (-2, 34))
        panel.curve(lambda w: (w - 2) ** 2)
        panel.line(places, colour, 1.2)
        panel.dots(places, colour)
        panel.dots(places[:1], INK, 4)
        panels.append(panel)
    return save(panels, folder / "function-valley.svg", "Gradient descent on a parabola with four learning rates")


def draw_ravine(results: dict[str, Any], folder: Path) -> Path:
    """A panel a rate: the ravine from above."""
    panels = []
    for (name, result), colour in zip(results.items(), COLOURS, strict=True):
        places = result.path.x.tolist()
        panel = Panel(f"rate {RAVINE_RATES[name]:g} {name}", "first weight", (-1.5, 4.5), (-2.5, 2.5))
        panel.ellipses((0, 0), ((1, 0), (0, 10)), (0.3, 1, 3, 8, 16, 26, 40, 60))
        panel.line(places, colour, 1.2)
        panel.dots(places, colour, 2)
        panel.dots(places[:1], INK, 4)
        panels.append(panel)
    return save(panels, folder / "function-ravine.svg", "Gradient descent in a ravine with four learning rates")


def tell(results: dict[str, Any], rates: dict[str, float]) -> None:
    """A line a rate."""
    for name, result in results.items():
        print(
            f"  {rates[name]:<7g} {name:<11} loss {result.path.fun[0]:.3g} -> {result.fun:.3g} "
            f"in {result.nit} steps: {result.verdict.name}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=Path("pictures"), metavar="FOLDER")
    folder = parser.parse_args().pictures

    first = one_step()
    print(f"one step: from 5, slope {first.grad.item():g}, to {first.x.item():.2g}")

    print("a valley (curvature 2: the limit is a rate of 1)")
    in_valley = down_the_valley()
    tell(in_valley, VALLEY_RATES)
    print("  by hand: each step multiplies the distance from the bottom by 1 - 2 lr")
    for name, lr in VALLEY_RATES.items():
        by_hand = 2 + 3 * (1 - 2 * lr) ** in_valley[name].nit
        print(f"  {lr:<7g} {name:<11} ends at {in_valley[name].x.item():.6g}, by hand {by_hand:.6g}")

    print("a ravine (curvatures 2 and 20: the limit is a rate of 0.1)")
    in_ravine = down_the_ravine()
    tell(in_ravine, RAVINE_RATES)

    print(draw_hiker(first, folder))
    print(draw_valley(in_valley, folder))
    print(draw_ravine(in_ravine, folder))


if __name__ == "__main__":
    main()
