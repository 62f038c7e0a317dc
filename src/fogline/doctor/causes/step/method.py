"""A method that does not suit the loss."""

from __future__ import annotations

from fogline.descent.optimizers import spec_of
from fogline.doctor.causes.step.common import HARDLY_MOVED, began, too_long
from fogline.doctor.examination import Examination
from fogline.doctor.finding import RATE, Evidence, Remedy, Suspicion
from fogline.doctor.standing import motion, resolved, standing, steps_of

_PLAIN = ("gd", "sgd", "momentum", "nesterov", "asgd")


def _with_adamw() -> Remedy:
    return Remedy(
        "use adamw, its learning rate measured",
        'fogline.Recipe(optimizer="adamw", lr="auto")',
        on_recipe=lambda recipe: recipe.replace(optimizer="adamw", lr="auto", options={}),
        place="rate",
        order=RATE,
    )


def optimizer_mismatch(exam: Examination) -> Suspicion | None:
    """A method that does not suit the problem, or the way its batches are drawn."""
    if not began(exam):
        return None
    recipe, stands, moves, steps = resolved(exam), standing(exam), motion(exam), steps_of(exam)
    name = recipe.optimizer if isinstance(recipe.optimizer, str) else recipe.optimizer.__name__.lower()
    noisy = recipe.batch_size != "full" and exam.case.batch_size < exam.program.rows
    if name in ("rprop", "lbfgs") and noisy and stands.short:
        return Suspicion(
            "optimizer_mismatch",
            0.8,
            (Evidence(f"share of the rows in a step of {name}", exam.case.batch_size / exam.program.rows, 1),),
            f"{name} compares one gradient with the next as if both were exact. On mini-batches they differ by chance, "
            "and its steps follow the chance.",
            (_with_adamw(),),
        )
    if not stands.short or moves.refused or too_long(moves, steps) >= 0.65:
        return None
    slow = steps.path < HARDLY_MOVED
    if name in ("adadelta", "adagrad") and slow:
        return Suspicion(
            "optimizer_mismatch",
            0.7,
            (
                Evidence("way that the weights went, relative to them", steps.path, "1 or more"),
                Evidence(f"learning rate of {name}", exam.observed.lr if exam.observed else 0.0, spec_of(name).lr),
            ),
            f"{name} shortens its own steps, and at this learning rate nothing is left of them.",
            (_with_adamw(),),
        )
    if name in _PLAIN and stands.train_short:
        return Suspicion(
            "optimizer_mismatch",
            0.5 if slow else 0.4,
            (
                Evidence("score on learned rows", stands.train_score, f"{stands.goal:.3g}, as classical learners get"),
                Evidence("method", name, "one with a rate for every weight"),
            ),
            "All weights share one learning rate here. Where slopes differ much from weight to weight it is too long "
            "for some and too short for the others.",
            (_with_adamw(),),
            follows=True,
        )
    return None
