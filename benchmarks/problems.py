"""Functions with known minima for comparing solvers: More, Garbow & Hillstrom's 18, quadratics, Rosenbrock's valley.

The 18 are the unconstrained problems of J. J. More, B. S. Garbow and K. E. Hillstrom, Testing Unconstrained
Optimization Software, ACM Transactions on Mathematical Software 7 (1981) 17-41, written from the paper's formulas with
its standard starts. Each is a sum of squared residuals. In the Gulf function the exponent is ``|y_i - x_2|^x_3 / x_1``,
the form whose minimum is the one that the paper states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

F64 = torch.float64
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TestFunction:
    """A function to minimise.

    Attributes:
        name: as in the paper.
        function: maps a vector of shape (n,) to a scalar.
        start: the standard start, shape (n,).
        minima: values at its known minima to the digits known, the global one first.
    """

    __test__ = False  # a name that begins with Test, but nothing for pytest

    name: str
    function: Function
    start: Tensor
    minima: tuple[float, ...] = (0.0,)


def _count(first: int, last: int) -> Tensor:
    return torch.arange(first, last + 1, dtype=F64)


def _squares(residuals: Function) -> Function:
    return lambda x: residuals(x).square().sum()


def helical_valley(x: Tensor) -> Tensor:
    turn = torch.atan(x[1] / x[0]) / (2 * math.pi) + (0.5 if x[0] < 0 else 0.0)
    return torch.stack([10 * (x[2] - 10 * turn), 10 * (torch.hypot(x[0], x[1]) - 1), x[2]])


def biggs_exp6(x: Tensor) -> Tensor:
    t = 0.1 * _count(1, 13)
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    return x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1]) + x[5] * torch.exp(-t * x[4]) - y


def gaussian(x: Tensor) -> Tensor:
    half = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]
    y = torch.tensor([*half, 0.3989, *reversed(half)], dtype=F64)
    return x[0] * torch.exp(-x[1] * ((8 - _count(1, 15)) / 2 - x[2]) ** 2 / 2) - y


def powell_badly_scaled(x: Tensor) -> Tensor:
    return torch.stack([1e4 * x[0] * x[1] - 1, torch.exp(-x[0]) + torch.exp(-x[1]) - 1.0001])


def box_three_dimensional(x: Tensor) -> Tensor:
    t = 0.1 * _count(1, 10)
    return torch.exp(-t * x[0]) - torch.exp(-t * x[1]) - x[2] * (torch.exp(-t) - torch.exp(-10 * t))


def variably_dimensioned(x: Tensor) -> Tensor:
    weighted = (_count(1, x.numel()) * (x - 1)).sum()
    return torch.cat([x - 1, torch.stack([weighted, weighted**2])])


def watson(x: Tensor) -> Tensor:
    t = (_count(1, 29) / 29)[:, None]
    powers = t ** _count(0, x.numel() - 1)  # (29, n)
    slopes = powers[:, :-1] * _count(1, x.numel() - 1)  # (29, n - 1)
    return torch.cat([slopes @ x[1:] - (powers @ x) ** 2 - 1, torch.stack([x[0], x[1] - x[0] ** 2 - 1])])


def penalty_1(x: Tensor) -> Tensor:
    return torch.cat([math.sqrt(1e-5) * (x - 1), (x.dot(x) - 0.25)[None]])


def penalty_2(x: Tensor) -> Tensor:
    n, small = x.numel(), math.sqrt(1e-5)
    i, grown = _count(2, n), torch.exp(x / 10)
    y = torch.exp(i / 10) + torch.exp((i - 1) / 10)
    last = ((n - _count(1, n) + 1) * x**2).sum() - 1
    middle = small * (grown[1:] + grown[:-1] - y)
    return torch.cat([(x[0] - 0.2)[None], middle, small * (grown[1:] - math.exp(-0.1)), last[None]])


def brown_badly_scaled(x: Tensor) -> Tensor:
    return torch.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def brown_and_dennis(x: Tensor) -> Tensor:
    t = _count(1, 20) / 5
    return (x[0] + t * x[1] - torch.exp(t)) ** 2 + (x[2] + x[3] * torch.sin(t) - torch.cos(t)) ** 2


def gulf(x: Tensor) -> Tensor:
    t = _count(1, 99) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return torch.exp(-((y - x[1]).abs() ** x[2]) / x[0]) - t


def trigonometric(x: Tensor) -> Tensor:
    n = x.numel()
    return n - torch.cos(x).sum() + _count(1, n) * (1 - torch.cos(x)) - torch.sin(x)


def extended_rosenbrock(x: Tensor) -> Tensor:
    return torch.cat([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def extended_powell_singular(x: Tensor) -> Tensor:
    a, b, c, d = x.view(-1, 4).T
    return torch.cat([a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2])


def beale(x: Tensor) -> Tensor:
    return torch.tensor([1.5, 2.25, 2.625], dtype=F64) - x[0] * (1 - x[1] ** _count(1, 3))


def wood(x: Tensor) -> Tensor:
    a, b, c, d = x
    ten, ninety = math.sqrt(10), math.sqrt(90)
    left = [10 * (b - a**2), 1 - a, ninety * (d - c**2), 1 - c]
    return torch.stack([*left, ten * (b + d - 2), (b - d) / ten])


def chebyquad(x: Tensor) -> Tensor:
    n, z = x.numel(), 2 * x - 1
    rows, before = [z], torch.ones_like(z)
    while len(rows) < n:
        rows.append(2 * z * rows[-1] - before)
        before = rows[-2]
    integrals = [0.0 if i % 2 else -1 / (i * i - 1) for i in range(1, n + 1)]
    return torch.stack(rows).mean(1) - torch.tensor(integrals, dtype=F64)


def more_garbow_hillstrom() -> list[TestFunction]:
    """The 18 unconstrained problems in the paper's order. Minima as the paper states them, to its six digits; the
    second value of Biggs EXP6 is the paper's, that of the trigonometric function the local minimum known for n = 10."""

    def made(name: str, residuals: Function, start: list[float] | Tensor, *minima: float) -> TestFunction:
        return TestFunction(name, _squares(residuals), torch.as_tensor(start, dtype=F64), minima or (0.0,))

    return [
        made("helical valley", helical_valley, [-1, 0, 0]),
        made("Biggs EXP6", biggs_exp6, [1, 2, 1, 1, 1, 1], 0.0, 5.65565e-3),
        made("Gaussian", gaussian, [0.4, 1, 0], 1.12793e-8),
        made("Powell badly scaled", powell_badly_scaled, [0, 1]),
        made("box 3-D", box_three_dimensional, [0, 10, 20]),
        made("variably dimensioned 10", variably_dimensioned, 1 - _count(1, 10) / 10),
        made("Watson 9", watson, [0] * 9, 1.39976e-6),
        made("penalty I 10", penalty_1, _count(1, 10), 7.08765e-5),
        made("penalty II 10", penalty_2, [0.5] * 10, 2.93660e-4),
        made("Brown badly scaled", brown_badly_scaled, [1, 1]),
        made("Brown and Dennis", brown_and_dennis, [25, 5, -5, -1], 85822.2),
        made("Gulf", gulf, [5, 2.5, 0.15]),
        made("trigonometric 10", trigonometric, [0.1] * 10, 0.0, 2.79506e-5),
        made("extended Rosenbrock 10", extended_rosenbrock, [-1.2, 1] * 5),
        made("extended Powell singular 12", extended_powell_singular, [3, -1, 0, 1] * 3),
        made("Beale", beale, [1, 1]),
        made("Wood", wood, [-3, -1, -3, -1]),
        made("Chebyquad 8", chebyquad, _count(1, 8) / 9, 3.51687e-3),
    ]


def quadratic(condition: float, size: int = 50, seed: int = 0) -> TestFunction:
    """``(x - c)' A (x - c) / 2``: eigenvalues from 1 / condition to 1, even in the logarithm, rotated at random."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))
    matrix = rotation @ torch.diag(torch.logspace(-math.log10(condition), 0, size, dtype=F64)) @ rotation.T
    centre = torch.randn(size, generator=generator, dtype=F64)
    return TestFunction(
        f"quadratic, condition {condition:.0e}",
        lambda x: 0.5 * (x - centre).dot(matrix.mv(x - centre)),
        torch.zeros(size, dtype=F64),
    )


def rosenbrock(size: int) -> TestFunction:
    """Rosenbrock's valley with every neighbour coupled, from -1.2, 1, -1.2, 1, ..."""
    start = torch.tensor([-1.2, 1.0], dtype=F64).repeat(size // 2)

    def function(x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return TestFunction(f"Rosenbrock {size}", function, start, (0.0,) if size < 4 else (0.0, 3.98662))


def everything(seed: int = 0) -> list[TestFunction]:
    """All 25."""
    quadratics = [quadratic(10.0**power, seed=seed) for power in range(2, 7)]
    return [*more_garbow_hillstrom(), *quadratics, rosenbrock(2), rosenbrock(100)]
