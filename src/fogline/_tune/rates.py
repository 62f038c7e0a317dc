"""The learning rate of a trial: a multiple of the one that is measured for the choices around it.

It is measured once for each combination of what moves it much: the optimizer, the shape of the model.
Between batch sizes it is carried by the square root of their ratio (Malladi et al., 2022, arXiv:2205.10287, for
adaptive methods), which costs no steps.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from fogline._tune.plan import Plan
from fogline._tune.space import WIDEST, Span, label
from fogline.descent.prepare import Start, begin
from fogline.descent.randomness import Surroundings
from fogline.descent.resolve import batch_rows
from fogline.rate import measure_rate
from fogline.rate.find import NEVER_LOWERED, planned_steps

_CARRIED = ("lr", "batch_size", "schedule", "weight_decay", "warmup", "ema", "shuffle", "accumulate")
"""Choices that do not ask for a measurement of their own."""
_NEVER_LOWERS = ("constant", "plateau")

ENDS = 1 / WIDEST, WIDEST
"""The ends of the search as multiples of the measured rate; the same for all, whatever was measured for them.

A range that was given is kept where the rate is made of it: what is measured differs from one optimizer to the next,
and each must be able to reach all of it.
"""


class Rates:
    """Measured rates, kept in the study for all its workers.

    Args:
        plan: of the search.
        study: Optuna's.
        usual: the values of the first trial.
    """

    def __init__(self, plan: Plan, study: Any, usual: Mapping[str, Any]) -> None:
        self.plan, self.study, self.usual = plan, study, usual
        dimension = plan.space.dimensions.get("lr")
        self.span = dimension if isinstance(dimension, Span) else None
        self.needed = dimension is not None or plan.recipe.lr == "auto"
        kept = {name: known for name, known in study.user_attrs.items() if name.startswith("rate/")}
        self._known: dict[str, dict[str, Any]] = {name.removeprefix("rate/"): known for name, known in kept.items()}

    def lr(self, values: Mapping[str, Any], factor: float | None) -> float | str:
        """The rate of a trial at a multiple of the measured one; None where the rate is not searched."""
        if factor is None:
            return self.at(values) if self.needed else self.plan.recipe.lr
        return self._within(factor * self._within(self.at(values)))

    def reach(self, values: Mapping[str, Any]) -> tuple[float, float]:
        """The multiples of the measured rate that lie within the range that was given, as far as is known."""
        low, high = ENDS
        known = None if self.span is None else self._known.get(self._key(values))
        if self.span is None or known is None:
            return low, high
        rate = self._within(self._scaled(known, values))
        return max(low, self.span.low / rate), min(high, self.span.high / rate)

    def _within(self, rate: float) -> float:
        """The rate, or the nearest end of the range that was given."""
        return rate if self.span is None else min(max(rate, self.span.low), self.span.high)

    def at(self, values: Mapping[str, Any]) -> float:
        """The measured rate for these choices; measured now where it is not known."""
        return self._scaled(self._kept(values), values)

    def _scaled(self, known: Mapping[str, Any], values: Mapping[str, Any]) -> float:
        """A measured rate, carried to the batch size and schedule of these choices."""
        size = values.get("batch_size")
        rate = float(known["lr"])
        if isinstance(size, int) and known["rows"]:
            rate *= math.sqrt(size * self._accumulated(values) / known["rows"])
        measured, wanted = self.usual.get("schedule"), values.get("schedule")
        if wanted in _NEVER_LOWERS and measured not in _NEVER_LOWERS:
            rate *= NEVER_LOWERED  # as measuring it for that schedule would
        return rate

    def _kept(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What was measured, here or by another worker, or is now."""
        key = self._key(values)
        if key not in self._known:
            known = self.study.user_attrs.get(f"rate/{key}")
            if known is None:
                known = self._measured(values)
                self.study.set_user_attr(f"rate/{key}", known)
            self._known[key] = known
        return self._known[key]

    def _accumulated(self, values: Mapping[str, Any]) -> int:
        return int(values.get("accumulate", self.plan.recipe.accumulate))

    def _key(self, values: Mapping[str, Any]) -> str:
        return json.dumps({name: self._coarse(name, value) for name, value in values.items() if name not in _CARRIED})

    def _coarse(self, name: str, value: Any) -> Any:
        """Of a range: whether it is low, in the middle or high."""
        dimension = self.plan.space.dimensions[name]
        if not isinstance(dimension, Span):
            return label(value)
        return sum(value > dimension.at(share) for share in (1 / 3, 2 / 3))

    def _measured(self, values: Mapping[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        carried = {name: self.usual[name] for name in _CARRIED if name in values and name in self.usual}
        values = {**values, **carried}
        start = self.start(values)
        recipe = start.resolved.recipe
        with Surroundings(start.batches.device, start.threads):
            rate = measure_rate(start)
        planned = planned_steps(start) or 0
        return {
            "lr": rate.value,
            "rows": batch_rows(recipe, start.opened.train.size),
            "steps": rate.cost_steps,
            "trials": rate.cost_steps / planned if planned else 0.0,
            "seconds": time.perf_counter() - began,
            "warnings": list(rate.warnings),
        }

    def start(self, values: Mapping[str, Any], lr: float | str = "auto") -> Start:
        """What a run with these choices begins from."""
        _, arguments = self.plan.space.split(values)
        return begin(self.plan.make_task(arguments), self.plan.make_recipe(values, lr))
