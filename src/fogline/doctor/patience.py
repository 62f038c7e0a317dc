"""Early stopping: where a run that may stop early really ends, and whether it should have gone on.

A descent with its held-out scores on the way tells of every patience at once where a run with it would have ended, and
which weights it would have kept: nothing need be run for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fogline.doctor.bench import AS_GOOD, ENOUGH, PLAINLY
from fogline.doctor.descended import Descended
from fogline.doctor.examination import Examination
from fogline.doctor.finding import RECIPE, Evidence, Remedy, Suspicion, Trial
from fogline.doctor.standing import level, standing
from fogline.doctor.trial import SEEDS, WORTH, Laboratory, compared
from fogline.doctor.validations import LONGER, kept, stopped

_AS_LONG = 4  # times the steps that the stopped run has: it may well have gained by then


def stopped_early(exam: Examination) -> Suspicion | None:
    """A run that lost patience early, and scores clearly below the observed one, which went on.

    Where a longer run comes to no lower held-out loss both keep the same weights, whatever patience there is.
    """
    seen = exam.observed
    if seen is None or seen.error or seen.stop is None:
        return None
    recipe, stop, further = exam.program.recipe, seen.stop, level(exam)
    gap = further - stop.score
    if gap < max(ENOUGH, standing(exam).error, WORTH * (1 - stop.score)):
        return None
    waited = f"{recipe.patience} validation{'s' if recipe.patience != 1 else ''}"
    return Suspicion(
        "too_few_steps",
        0.8,
        (
            Evidence("steps until patience was lost", stop.step, f"up to {exam.planned}"),
            Evidence("score of the weights kept by then", stop.score, f"{further:.3g}, after {seen.steps} steps"),
            Evidence(f"patience, in validations every {recipe.validate_every}", recipe.patience or 0, "more"),
        ),
        f"The run stops early, after {stop.step} of {exam.planned} steps, because {waited}, one every "
        f"{recipe.validate_every}, brought no lower held-out loss. That was noise: a run that goes on gets clearly "
        "further.",
        tuple(_patience(count) for count in _longer(exam, gap)),
    )


def _longer(exam: Examination, gap: float) -> list[int | None]:
    """Patience to try, the shortest first: one that the whole run cannot lose is none, nor is one that leaves a gap."""
    recipe, seen = exam.program.recipe, exam.observed
    assert recipe.patience is not None
    assert seen is not None
    count = LONGER * recipe.patience
    stop = stopped(seen.validations, count)
    enough = stop is None or level(exam) - stop.score <= AS_GOOD * gap
    return [count, None] if enough and count < exam.planned // seen.validated_every else [None]


def _patience(count: int | None) -> Remedy:
    return Remedy(
        "do not stop early" if count is None else f"stop only after {count} validations without a lower loss",
        f"fogline.Recipe(patience={count})",
        on_recipe=lambda recipe: recipe.replace(patience=count),
        place="patience",
        order=RECIPE,
    )


def waited(
    exam: Examination, laboratory: Laboratory, suspicion: Suspicion, *, sound: bool
) -> tuple[Remedy, Trial] | None:
    """The shortest of the longer patiences that suffices, and its trial; None where none clearly helps.

    Args:
        sound: whether the stopped run does about as well as a classical learner: there is always something to gain.
    """
    seen = exam.observed
    assert seen is not None
    assert seen.stop is not None
    share = int(laboratory.left / len(SEEDS))
    steps = min(seen.steps, share, max(_AS_LONG * seen.stop.step, seen.steps // 2))  # other causes are to be tried too
    if steps < 2 * seen.stop.step:
        return None
    runs = laboratory.validated(exam.program, steps)
    trials = [(remedy, _trial(exam, remedy, runs, steps)) for remedy in suspicion.remedies]
    most = max(trial.effect for _, trial in trials)
    margin = max(PLAINLY if sound else ENOUGH, standing(exam).error)
    for remedy, trial in trials:
        if trial.accepted and trial.effect >= max(margin, (1 - AS_GOOD) * most):
            return remedy, trial
    return None


def _trial(exam: Examination, remedy: Remedy, runs: Sequence[Descended], steps: int) -> Trial:
    """A longer patience against that of the recipe, by descents that went on: the same until the recipe's is lost."""
    recipe = exam.program.recipe
    assert remedy.on_recipe is not None
    longer, without = (
        [replace(run, score=kept(run.validations, patience)) for run in runs]
        for patience in (remedy.on_recipe(recipe).patience, recipe.patience)
    )
    metric = exam.case.yardstick.name
    return compared([remedy], "the program as it is", longer, without, seeds=SEEDS, metric=metric, steps=steps)
