"""How many test functions each solver brings to the minimum, in how many evaluations and how much time.

Run ``python benchmarks/descent.py``; ``--json PATH`` writes the numbers, ``--markdown PATH`` the page of evidence.
Peers are given the same torch gradients. Each is run with its own defaults and with its tolerances at zero, so that
none is called beaten for stopping early on purpose.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy import optimize
from torch import Tensor

from fogline._minimize import METHODS, minimize
from problems import TestFunction, everything

SEED = 0
STEPS = 10_000
LEVELS = (1e-8, 1e-12)

Solver = Callable[["Meter"], None]


@dataclass
class Meter:
    """A test function that notes the value of every evaluation."""

    problem: TestFunction
    values: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        value = self.problem.function(x)
        self.values.append(value.item())
        return value

    def with_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """As SciPy wants it."""
        leaf = torch.tensor(x, requires_grad=True)
        value = self(leaf)
        (grad,) = torch.autograd.grad(value, leaf)
        return value.item(), grad.numpy()


@dataclass
class Outcome:
    """One solver on one function.

    Attributes:
        lowest: lowest finite value evaluated.
        evaluations: evaluations until the solver stopped by itself (Hessian-vector products counted as two each).
        to_reach: for each level, evaluations until the value was that near the minimum; None where it never was.
        minimum: the known minimum that it came to.
        milliseconds: processor time, least of the repeats.
        claim: what the solver said.
    """

    lowest: float
    evaluations: int
    milliseconds: float
    claim: str
    values: list[float]
    minimum: float = 0.0
    to_reach: dict[str, int | None] = field(default_factory=dict)


def ours(method: str) -> Callable[[Meter], tuple[str, int]]:
    """A method of fogline.minimize, everything at its default."""

    def solve(meter: Meter) -> tuple[str, int]:
        result = minimize(meter, meter.problem.start, method=method, max_steps=STEPS)
        return result.verdict.name, 2 * result.nhev

    return solve


def scipy_solver(name: str, **options: float) -> Callable[[Meter], tuple[str, int]]:
    """A method of scipy.optimize.minimize."""

    def solve(meter: Meter) -> tuple[str, int]:
        start = meter.problem.start.numpy()
        result = optimize.minimize(meter.with_gradient, start, jac=True, method=name, options=options)
        return ("success" if result.success else "no success"), 0

    return solve


def torch_lbfgs(**options: float) -> Callable[[Meter], tuple[str, int]]:
    """torch.optim.LBFGS with its strong Wolfe line search."""

    def solve(meter: Meter) -> tuple[str, int]:
        x = meter.problem.start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([x], max_iter=STEPS, max_eval=STEPS, line_search_fn="strong_wolfe", **options)

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = meter(x)
            value.backward()
            return value

        optimizer.step(closure)
        return "", 0

    return solve


OURS = {f"fogline {name}": ours(name) for name in ("lbfgs", "bfgs", "newton-cg")}
PEERS = {
    "SciPy L-BFGS-B": scipy_solver("L-BFGS-B"),
    "SciPy L-BFGS-B, tight": scipy_solver("L-BFGS-B", ftol=0, gtol=0, maxiter=STEPS, maxfun=STEPS),
    "SciPy BFGS": scipy_solver("BFGS"),
    "SciPy BFGS, tight": scipy_solver("BFGS", gtol=0, maxiter=STEPS),
    "SciPy CG": scipy_solver("CG"),
    "SciPy CG, tight": scipy_solver("CG", gtol=0, maxiter=STEPS),
    "torch LBFGS": torch_lbfgs(),
    "torch LBFGS, tight": torch_lbfgs(tolerance_grad=0, tolerance_change=0),
}
FIRST_ORDER = {f"fogline {name}": ours(name) for name in METHODS if f"fogline {name}" not in OURS}


def run(problem: TestFunction, solve: Callable[[Meter], tuple[str, int]], repeats: int) -> Outcome:
    """Solve, keeping the least processor time."""
    least = math.inf
    for _ in range(repeats):
        meter = Meter(problem)
        begun = time.process_time()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            claim, extra = solve(meter)
        least = min(least, time.process_time() - begun)
    finite = [value for value in meter.values if math.isfinite(value)]
    return Outcome(min(finite), len(meter.values) + extra, least * 1e3, claim, meter.values)


def judge(problem: TestFunction, outcomes: dict[str, Outcome]) -> None:
    """Fill in which minimum was reached and after how many evaluations.

    The minima are known to six digits; where any solver came lower than one within those digits, that is its value.
    """
    minima = []
    for known in problem.minima:
        near = [o.lowest for o in outcomes.values() if known and abs(o.lowest - known) <= 1e-5 * known]
        minima.append(min([known, *near]) if not near else min(near))
    height = problem.function(problem.start).item()
    for outcome in outcomes.values():
        outcome.minimum = min(minima, key=lambda value: abs(outcome.lowest - value))
        for level in LEVELS:
            bar = outcome.minimum + level * (height - outcome.minimum)
            within = [i + 1 for i, value in enumerate(outcome.values) if value <= bar]
            outcome.to_reach[f"{level:.0e}"] = within[0] if within else None


def solved_table(table: dict[str, dict[str, Outcome]], names: list[str]) -> str:
    """Totals, one line a solver."""
    rows = [
        "| solver | solved to 1e-8 | solved to 1e-12 | evaluations, all | time, all (ms) |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        outcomes = [row[name] for row in table.values()]
        counts = [sum(o.to_reach[f"{level:.0e}"] is not None for o in outcomes) for level in LEVELS]
        rows.append(
            f"| {name} | {counts[0]} | {counts[1]} | {sum(o.evaluations for o in outcomes):,} "
            f"| {sum(o.milliseconds for o in outcomes):,.0f} |"
        )
    return "\n".join(rows)


def detail_table(table: dict[str, dict[str, Outcome]], names: list[str]) -> str:
    """Evaluations to reach 1e-8, and milliseconds until the solver stopped, by function."""
    rows = ["| function | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for problem, row in table.items():
        cells = []
        for name in names:
            outcome = row[name]
            reached, tight = (outcome.to_reach[f"{level:.0e}"] for level in LEVELS)
            mark = "-" if reached is None else f"{reached}{'' if tight else '*'}"
            cells.append(f"{mark} / {outcome.milliseconds:.0f}")
        rows.append(f"| {problem} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def page(table: dict[str, dict[str, Outcome]], arguments: argparse.Namespace) -> str:
    """The page of evidence."""
    tight = [name for name in PEERS if "tight" in name]
    last = ["git", "log", "-1", "--format=%h", "--", "src/fogline/_minimize"]
    commit = subprocess.run(last, capture_output=True, text=True, check=False).stdout
    lines = [
        "# Descent: functions with known minima",
        "",
        f"{arguments.date}. {arguments.hardware}. Python {platform.python_version()}, torch {torch.__version__}, "
        f"NumPy {np.__version__}, SciPy {scipy.__version__}; commit {commit.strip() or 'unknown'}; seed {SEED} "
        f"(quadratics); one thread; float64; time is processor time, the least of {arguments.repeats}. "
        "Written by `python benchmarks/descent.py --markdown docs/evidence/descent.md`.",
        "",
        f"{len(table)} functions: the 18 unconstrained problems of Moré, Garbow and Hillstrom (1981) with their "
        "standard starts, five quadratics in 50 dimensions (random rotation, condition 1e2 to 1e6), Rosenbrock's "
        "valley in 2 and 100 dimensions.",
        "",
        "**Solved** means that some evaluated point had `f - f* <= 1e-8 (f(start) - f*)`; the harder level is 1e-12. "
        "`f*` is the known minimum nearest to the lowest value found: the global one, or a local one that the "
        "literature states (Biggs EXP6 5.65565e-3, trigonometric 2.79506e-5, Rosenbrock 100 with its neighbours "
        "coupled 3.98662). These are known to six digits; where a solver came lower within those digits its value "
        "is taken. "
        '"Tight" peers have their stopping tolerances at zero and stop at 10,000 steps or evaluations at the latest; '
        "the others are as they come. "
        "Every evaluation counts; a Hessian-vector product counts as two in the totals and is left out by function, "
        "where it flatters newton-cg. The first function's times hold the warm-up.",
        "",
        "## Totals",
        "",
        solved_table(table, [*OURS, *PEERS]),
        "",
        'The first-order methods with `lr="auto"`, at most 10,000 steps:',
        "",
        solved_table(table, list(FIRST_ORDER)),
        "",
        "## By function",
        "",
        "Evaluations to reach 1e-8 / milliseconds until the solver stopped by itself. `-`: not reached; `*`: reached "
        "1e-8 and not 1e-12.",
        "",
        detail_table(table, [*OURS, *tight]),
        "",
        "First-order methods:",
        "",
        detail_table(table, list(FIRST_ORDER)),
        "",
        "## What the verdicts said",
        "",
        verdicts(table),
        "",
    ]
    return "\n".join(lines)


def verdicts(table: dict[str, dict[str, Outcome]]) -> str:
    """How often a claim of a minimum was right: CONVERGED (or SciPy's success) against solved to 1e-8."""
    rows = ["| solver | claims a minimum | of these not solved | solved without the claim |", "|---|---|---|---|"]
    for name in [*OURS, *FIRST_ORDER, *(peer for peer in PEERS if "SciPy" in peer)]:
        pairs = [(row[name].claim in ("CONVERGED", "success"), row[name].to_reach["1e-08"]) for row in table.values()]
        claimed = sum(claim for claim, _ in pairs)
        wrong = sum(claim and not solved for claim, solved in pairs)
        silent = sum(bool(solved) and not claim for claim, solved in pairs)
        rows.append(f"| {name} | {claimed} | {wrong} | {silent} |")
    return "\n".join(rows)


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--markdown", type=Path, help="write the page of evidence here")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each solver; the least time is kept")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"), help="date on the page")
    parser.add_argument("--hardware", default=platform.machine(), help="machine as named on the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, dict[str, Outcome]] = {}
    for problem in everything(SEED):
        row = {name: run(problem, solve, arguments.repeats) for name, solve in (OURS | PEERS).items()}
        row |= {name: run(problem, solve, 1) for name, solve in FIRST_ORDER.items()}
        judge(problem, row)
        table[problem.name] = row
        print(f"{problem.name}: " + ", ".join(f"{n} {o.to_reach['1e-08'] or '-'}" for n, o in row.items()), flush=True)
    print("\n" + solved_table(table, [*OURS, *PEERS, *FIRST_ORDER]) + "\n\n" + verdicts(table))
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(page(table, arguments))
    if arguments.json:
        rows = {p: {n: asdict(o) | {"values": None} for n, o in row.items()} for p, row in table.items()}
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
