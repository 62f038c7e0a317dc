"""The targets of the overhead benchmark, and its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import timing
from overhead_parts.problems import Problem

TRAINERS = (
    "Lightning", "Hugging Face Trainer", "Accelerate", "skorch", "fastai", "Keras on PyTorch", "Keras on JAX"
)  # fmt: skip
MODES = ("fogline eager", "fogline compiled", "fogline chunked", "fogline auto")


@dataclass
class Outcome:
    """What was measured on one problem: costs and notes by contender, and why others have none."""

    problem: Problem
    rounds: int
    stamp: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, list[timing.Cost]] = field(default_factory=dict)
    beside: dict[str, list[timing.Cost]] = field(default_factory=dict)  # the raw loop in another process
    setup: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values and costs, for the JSON file."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "problem"}

    @classmethod
    def from_dict(cls, problem: Problem, values: Mapping[str, Any]) -> Outcome:
        """What an earlier run wrote."""
        costs = {
            key: {name: [timing.Cost(**cost) for cost in costs] for name, costs in values[key].items()}
            for key in ("costs", "beside")
        }
        return cls(problem, **{**values, **costs})

    def ratio(self, name: str, against: str = "raw", by: str = "processor") -> timing.Spread:
        """A contender's cost over another's.

        Two that ran in different processes are compared through the raw loop that ran beside each.
        """
        if name in self.beside or against in self.beside:
            ours = timing.ratio(self.costs[name], self.beside.get(name, self.costs["raw"]), by)
            if against == "raw":
                return ours
            theirs = timing.ratio(self.costs[against], self.beside.get(against, self.costs["raw"]), by)
            return timing.Spread(ours.median / theirs.median, ours.low / theirs.high, ours.high / theirs.low)
        return timing.ratio(self.costs[name], self.costs[against], by)


@dataclass(frozen=True)
class Target:
    """A promise: the cost of ``contender`` is at most ``limit`` times that of ``against``."""

    problem: str
    contender: str
    against: str
    limit: float


@dataclass(frozen=True)
class Judged:
    """A target beside what was measured; ``word`` is pass, level (the lower quartile passes), short or not measured."""

    claim: str
    limit: str
    measured: str
    word: str


ALL = ("linear", "mlp", "cnn", "transformer")
TARGETS = (
    Target("linear", "fogline eager", "raw", 1.30),
    Target("mlp", "fogline eager", "raw", 1.15),
    Target("cnn", "fogline eager", "raw", 1.05),
    Target("transformer", "fogline eager", "raw", 1.05),
    Target("linear", "fogline compiled", "raw", 0.15),
    Target("mlp", "fogline compiled", "raw", 0.38),
    Target("cnn", "fogline auto", "fogline eager", 1.0),
    Target("transformer", "fogline auto", "fogline eager", 1.0),
    Target("linear", "fogline compiled", "JAX jit", 1.0),
    Target("mlp", "fogline compiled", "JAX jit", 1.0),
    Target("cnn", "fogline auto", "JAX jit", 1.0),
    Target("transformer", "fogline auto", "JAX jit", 1.0),
    Target("linear", "fogline chunked", "JAX lax.scan", 2.0),
    Target("mlp", "fogline chunked", "JAX lax.scan", 2.0),
)
STARTUP_SECONDS = 0.3


def judge(outcomes: Sequence[Outcome], started: Mapping[str, timing.Spread]) -> list[Judged]:
    """Every target beside its measurement, by processor time."""
    by_name = {outcome.problem.name: outcome for outcome in outcomes}
    judged = [_judge_ratio(target, by_name[target.problem]) for target in TARGETS if target.problem in by_name]
    for outcome in outcomes:
        judged += _against_trainers(outcome)
    extra = started["difference"]
    measured = f"{extra.median:.2f} s ({extra.low:.2f} to {extra.high:.2f})"
    limit = f"{STARTUP_SECONDS} s"
    word = _word(extra, STARTUP_SECONDS)
    return [*judged, Judged("`import fogline; fogline.fit` beyond `import torch`", f"at most {limit}", measured, word)]


def _against_trainers(outcome: Outcome) -> Iterator[Judged]:
    there = [name for name in TRAINERS if name in outcome.costs]
    if not there:
        return
    fastest = min(there, key=lambda name: outcome.ratio(name).median)
    for mode in MODES:
        yield _judge_ratio(Target(outcome.problem.name, mode, fastest, 1.0), outcome, "the fastest trainer, ")


def _judge_ratio(target: Target, outcome: Outcome, what: str = "") -> Judged:
    claim = f"{target.problem}: {target.contender} / {what}{target.against}"
    limit = f"at most {target.limit:.2f}"
    missing = [name for name in (target.contender, target.against) if name not in outcome.costs]
    if missing:
        return Judged(claim, limit, f"no {missing[0]}", "not measured")
    spread = outcome.ratio(target.contender, target.against)
    return Judged(claim, limit, _digits(spread), _word(spread, target.limit))


def _word(spread: timing.Spread, limit: float) -> str:
    if spread.median <= limit:
        return "pass"
    return "level" if spread.low <= limit else "**short**"


def _digits(spread: timing.Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def summary(outcome: Outcome) -> str:
    """The table of one problem, fastest first after the raw loop."""
    problem = outcome.problem
    header = ["loop", "us a step", "quartiles", "x raw", "wall us", "wall x raw", "set-up s"]
    names = sorted(outcome.costs, key=lambda name: (not name.startswith("raw"), outcome.ratio(name).median))
    rows = []
    for name in names:
        cost = timing.microseconds(outcome.costs[name])
        rows.append([
            name, _us(cost.median), f"{_us(cost.low)} to {_us(cost.high)}", f"{outcome.ratio(name).median:.3f}",
            _us(timing.microseconds(outcome.costs[name], "wall").median),
            f"{outcome.ratio(name, by='wall').median:.3f}",
            f"{outcome.setup[name]:.2f}" if outcome.setup.get(name) else "",
        ])  # fmt: skip
    notes = [f"- {name}: {outcome.notes[name]}." for name in names if outcome.notes.get(name)]
    notes += [f"- {name} is not in the table: {why}" for name, why in outcome.absent.items()]
    made = f"{outcome.rounds} rounds, {outcome.stamp['date']}, commit {outcome.stamp['commit']}."
    return f"### {problem.title}\n\n{timing.table(header, rows)}\n\n{made}\n\n" + "\n".join(notes)


def _us(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def startup_lines(started: Mapping[str, timing.Spread]) -> str:
    """Start-up as one sentence."""
    torch, lazy, ours, extra = (started[name].median for name in ("torch", "lazy", "fogline", "difference"))
    return (
        f"A fresh process takes {torch:.2f} s for `import torch`, {lazy:.2f} s for `import fogline`, which is lazy, "
        f"and {ours:.2f} s for `import fogline; fogline.fit`, which loads everything: {extra:+.2f} s over torch "
        f"(medians over interleaved processes, wall)."
    )


def targets_table(judged: Sequence[Judged]) -> str:
    """Every target beside its measurement."""
    rows = [[one.claim, one.limit, one.measured, one.word] for one in judged]
    return timing.table(["cost", "target", "measured (quartiles)", "result"], rows, text_columns=2)


ABOUT = """# What a step costs

Fogline's loop with default watching, logging and checkpoints on, beside the best raw PyTorch loop found, other
trainers, and JAX. Made by `python benchmarks/overhead.py --write`; see `benchmarks/README.md`.

- One thread each (PyTorch, OpenMP, XLA). Data is in memory. Contenders run in slices of {seconds} s that take turns in
  one process; a ratio is taken within a round. Times are medians of processor time over the rounds,
  with wall time beside them. Ratios and targets are by processor time, which other work on the machine disturbs less.
- *raw* is the fastest of six hand-written loops (rows gathered by batch or by epoch; optimizer fused, foreach or
  for-loop): its note says which. *As usually written* gathers by batch and leaves the choice of the optimizer's
  implementation to PyTorch.
- Fogline and the trainers run their own `fit`, parked between slices with their clock standing still. The trainers get
  batches already cut; their progress bars, loggers, checkpoints and validation are off. Fogline's own signals, log and
  checkpoints stay on, and its slices last over a second, so that all of them fall into every slice.
- Set-up is not in the cost of a step. *Set-up* is Fogline's compile time as `run.json` has it, and of the others the
  wall time to the end of the first step; caches are cold, but `auto` finds those of the modes that were compiled before
  it. `auto` is asked for a run long enough for compiling to be considered.
- *pass*: the median holds the target; *level*: it does not, but the lower quartile does; *short*: neither does.
"""


def page(
    outcomes: Sequence[Outcome],
    started: Mapping[str, timing.Spread],
    judged: Sequence[Judged],
) -> str:
    """The whole page of evidence."""
    seconds = " to ".join(f"{value:g}" for value in sorted({outcome.problem.seconds for outcome in outcomes}))
    parts = [
        ABOUT.format(seconds=seconds),
        timing.describe(max((outcome.stamp for outcome in outcomes), key=lambda stamp: stamp["date"])),
        "## Targets",
        targets_table(judged),
        "## Tables",
        *(summary(outcome) for outcome in outcomes),
        "### Start-up",
        startup_lines(started),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
