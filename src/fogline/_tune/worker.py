"""The loop of a search: ask, train, tell, until the trials or the budget are used up.

Any number of processes may run it on one study, here or on other machines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from fogline._tune.cohort import Cohort, fits_one_program, own_names
from fogline._tune.plan import Plan
from fogline._tune.pruning import make_pruner
from fogline._tune.rates import ENDS, Rates
from fogline._tune.sampling import Sampler, chosen_value, distributions
from fogline._tune.space import RATE, Span, label
from fogline._tune.study import left_behind, mine, open_study, over, write_summary
from fogline._tune.trial import Asked, make_trial, values_in_words
from fogline.descent.interrupts import Interrupted, StopRequested, poll, requested_code, watched_signals
from fogline.descent.prepare import Start, begin
from fogline.doctor.case import FAILURES
from fogline.rate.find import planned_steps
from fogline.run import Run
from fogline.words import number

Say = Callable[[str], None]
_STARTS = 4  # kept, for the next trials of the same program
_RUNNING = optuna.trial.TrialState.RUNNING
_PRUNED, _FAILED = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL


class SearchStopped(Interrupted):
    """The search was stopped from outside; the same call, or the same command, goes on with it."""

    def __str__(self) -> str:
        return f"the search was stopped and is kept in {self.run.folder}; the same command goes on with it"


@dataclass(frozen=True)
class _Kind:
    """What trials of one program share."""

    planned: int | None
    one_program: bool
    own: tuple[str, ...]


class Worker:
    """One process of a search.

    Args:
        plan: of the search.
        say: is told a line for each trial.
    """

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan, self.say = plan, say
        self.study = open_study(plan)
        self.usual = usual_values(plan)
        self.rates = Rates(plan, self.study, self.usual)
        dimensions = plan.space.dimensions
        ends = ENDS if "lr" in dimensions else None
        first = {n: v if isinstance(dimensions[n], Span) else label(v) for n, v in self.usual.items()}
        if ends is not None:
            first[RATE] = 1.0
        self.space = distributions(plan, ends)
        self.sampler = Sampler(plan, self.space, first, self._reach)
        self.study.sampler, self.study.pruner = self.sampler, make_pruner(plan, self.sampler)
        self._kinds: dict[str, _Kind] = {}
        self._starts: dict[str, Start] = {}

    def run(self) -> None:
        """Make trials until the search is over.

        Raises:
            SearchStopped: a signal came; what runs is gone on with by the next call.
        """
        with watched_signals():
            try:
                for asked in self._left_behind():
                    self._make([asked])
                while not over(self.study, self.plan):
                    poll()
                    self._make(self._group(self._ask({})))
            except (StopRequested, Interrupted):
                raise SearchStopped(Run(self.plan.folder), requested_code()) from None
            finally:
                write_summary(self.study, self.plan)

    # -- asking ----------------------------------------------------------------------------------------------------

    def _ask(self, shared: Mapping[str, Any]) -> Asked:
        self.sampler.fixed = shared
        trial = self.study.ask(self.space)
        trial.set_user_attr("worker", mine())
        return self._asked(trial)

    def _reach(self, stored: Mapping[str, Any]) -> tuple[float, float]:
        return self.rates.reach(self._chosen(stored))

    def _chosen(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The values that stored ones stand for, without the learning rate."""
        dimensions = self.plan.space.dimensions
        return {name: chosen_value(dimensions[name], value) for name, value in stored.items() if name != RATE}  # type: ignore[arg-type]

    def _asked(self, trial: Any) -> Asked:
        factor, values = trial.params.get(RATE), self._chosen(trial.params)
        _, arguments = self.plan.space.split(values)
        recipe = self.plan.make_recipe(values, self.rates.lr(values, factor))
        shown = {"lr": recipe.lr, **values} if factor is not None else values
        asked = Asked(trial, shown, arguments, recipe)
        asked.planned = self._kind(asked).planned
        return asked

    def _group(self, first: Asked) -> list[Asked]:
        """The trial, and others that can share its program."""
        kind, members = self._kind(first), [first]
        if not kind.one_program or not kind.own:
            return members
        shared = {name: value for name, value in first.trial.params.items() if name not in kind.own}
        while len(members) < self.plan.together and not self._enough():
            members.append(self._ask(shared))
        return members

    def _enough(self) -> bool:
        most = self.plan.trials
        return most is not None and len(self.study.get_trials(deepcopy=False)) >= most

    def _kind(self, asked: Asked) -> _Kind:
        key = self._key(asked)
        if key not in self._kinds:
            start = self._start(asked)
            recipe = start.resolved.recipe
            own = tuple(RATE if name == "lr" else name for name in own_names([*asked.values], recipe))
            one = self.plan.together > 1 and planned_steps(start) is not None and fits_one_program(start)
            self._kinds[key] = _Kind(planned_steps(start), one, own)
        return self._kinds[key]

    def _key(self, asked: Asked) -> str:
        own = own_names([*asked.values], asked.recipe)
        return json.dumps({name: label(value) for name, value in asked.values.items() if name not in own})

    def _start(self, asked: Asked) -> Start:
        key = self._key(asked)
        if key not in self._starts:
            while len(self._starts) >= _STARTS:
                self._starts.pop(next(iter(self._starts)))
            self._starts[key] = begin(self.plan.make_task(asked.arguments), asked.recipe)
        return self._starts[key]

    def _left_behind(self) -> list[Asked]:
        """Trials that a process of this machine had begun when it ended."""
        found = []
        for frozen in self.study.get_trials(deepcopy=False, states=(_RUNNING,)):
            if not left_behind(frozen.user_attrs.get("worker"), active=False):
                continue
            if frozen.params.keys() != self.space.keys():
                self.study.tell(frozen.number, state=_FAILED)
                continue
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
            trial.set_user_attr("worker", mine())
            found.append(self._asked(trial))
        return found

    # -- training and telling --------------------------------------------------------------------------------------

    def _make(self, group: list[Asked]) -> None:
        prune = self.plan.pruning != "none"
        if self._kind(group[0]).one_program:
            try:
                Cohort(group, self._start(group[0]), prune=prune, check=poll).run()
            except FAILURES as error:
                for asked in group:
                    asked.ended, asked.why = "failed", f"{type(error).__name__}: {error}"
        else:
            make_trial(group[0], self.plan.make_task(group[0].arguments), self.plan.folder, prune=prune)
        for asked in group:
            self._tell(asked)
        write_summary(self.study, self.plan)

    def _tell(self, asked: Asked) -> None:
        if asked.ended == "complete" and asked.best == float("inf"):
            asked.ended, asked.why = "diverged", "no held-out loss was finite"
        for name, value in asked.attributes().items():
            asked.trial.set_user_attr(name, value)
        if self.plan.method == "tpe":  # which takes what is above 0 for worse than anything that trained
            asked.trial.set_constraint("trains", float(asked.ended in ("diverged", "failed")))
        if asked.ended == "complete":
            self.study.tell(asked.trial, asked.best)
        else:
            self.study.tell(asked.trial, state=_PRUNED)
        self.say(line(asked))


def usual_values(plan: Plan) -> dict[str, Any]:
    """What the first trial has: the recipe's and the function's own values where the space holds them.

    Raises:
        ValueError, TypeError: the task and the recipe do not fit, before anything is trained.
    """
    names = [name for name in plan.space.dimensions if name != "lr"]
    arguments = {name: plan.usual(name, plan.recipe) for name in names if name in plan.space.arguments}
    resolved = begin(plan.make_task(arguments), plan.recipe).resolved.recipe
    return {name: arguments.get(name, plan.usual(name, resolved)) for name in names}


def line(asked: Asked) -> str:
    """A trial in one line."""
    loss = number(asked.best) if asked.curve else "no loss"
    words = f"trial {asked.trial.number}: {loss}, {asked.ended} ({values_in_words(asked.values)})"
    return words if not asked.why or asked.ended == "pruned" else f"{words}: {asked.why}"
