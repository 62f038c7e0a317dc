"""A method that does not suit the loss."""

from __future__ import annotations

from dataclasses import replace

from fogline.descent.optimizers import spec_of
from fogline.doctor.causes.step.common import HARDLY_MOVED, began, too_long
from fogline.doctor.examination import Examination
from fogline.doctor.finding import RATE, Evidence, Remedy, Suspicion
from fogline.doctor.remedies import ends_early, measured_rate
from fogline.doctor.standing import motion, resolved, standing, steps_of

PLAIN = ("gd", "sgd", "momentum", "nesterov", "asgd")
_LONG_MEMORY = 20.5  # steps: a momentum of 0.95 has 20, the usual 0.9 has 10
_VERY_LONG_MEMORY, _OF_ALL = 50.5, 0.1  # steps, and of those of the run: Adam's first decay rate may be 0.98


def with_adamw() -> Remedy:
    return Remedy(
        "use adamw, its learning rate measured",
        'fogline.Recipe(optimizer="adamw", lr="auto")',
        on_recipe=lambda recipe: recipe.replace(optimizer="adamw", lr="auto", options={}),
        place="rate",
        order=RATE,
    )


def of_one_rate(exam: Examination, strength: float, *seen: Evidence) -> Suspicion:
    """That all weights share one learning rate; or that it is but the wrong one, which is less to change."""
    recipe = exam.program.recipe
    simpler = () if recipe.lr == "auto" else (_another_rate(exam, float(recipe.lr), strength),)
    return Suspicion(
        "optimizer_mismatch",
        strength,
        (*seen, Evidence("method", str(resolved(exam).optimizer), "one with a rate for every weight")),
        "All weights share one learning rate here. Where slopes differ much from weight to weight it is too long "
        "for some and too short for the others.",
        (with_adamw(),),
        simpler=simpler,
    )


def _another_rate(exam: Examination, lr: float, strength: float) -> Suspicion:
    """Said of short steps; that the measured rate is a lower one is seen where it is taken."""
    return Suspicion(
        "lr_too_low",
        strength,
        (Evidence("learning rate", lr, "the one that is measured"),),
        "The steps are too short: with the learning rate that is measured the same method does most of what another "
        "one would.",
        (measured_rate(),),
        otherwise=ends_early(exam),
    )


def _long_memory(name: str, memory: float, planned: int) -> Suspicion:
    """Too many gradients are summed up: the descent runs past the bottom long after the slope has turned."""
    return Suspicion(
        "optimizer_mismatch",
        0.9,
        (Evidence("steps that a gradient is remembered for, of all", f"{memory:.0f} of {planned}", "10"),),
        f"{name} adds up the gradients of about {memory:.0f} steps. It goes on down a slope that has long turned, and "
        f"{memory:.0f} times as far as the learning rate says.",
        (
            Remedy(
                "momentum 0.9, its learning rate measured",
                'fogline.Recipe(lr="auto", options={"momentum": 0.9})',
                on_recipe=lambda recipe: recipe.replace(lr="auto", options={**recipe.options, "momentum": 0.9}),
                place="rate",
                order=RATE,
            ),
            with_adamw(),
        ),
    )


def _odd_options(exam: Examination) -> Suspicion | None:
    """Options of the optimizer that hardly anybody means: decay rates that have changed places, steps that die out."""
    options = resolved(exam).options
    betas, fading = options.get("betas"), float(options.get("lr_decay", 0.0)) * exam.planned
    odd, why = {}, f"its steps get {1 + fading:.0f} times shorter over the run. "
    if isinstance(betas, (tuple, list)) and len(betas) >= 2:
        first, second = float(betas[0]), float(betas[1])
        memory = 1 / max(1e-9, 1 - first)
        if second < first or memory > max(_VERY_LONG_MEMORY, _OF_ALL * exam.planned):
            odd["betas"] = f"({first:g}, {second:g})", "(0.9, 0.999)"
            why = f"it remembers directions for {memory:.0f} steps of {exam.planned}. "
        if second < first:
            why = "it remembers directions for longer than it remembers how steep they are. "
    if fading > 1:
        odd["lr_decay"] = f"{options['lr_decay']:g}", "0"
    if not odd or not standing(exam).improvable:
        return None
    names = ", ".join(odd)
    shrunk = ("bad_schedule", "The learning rate is all but gone before anything is learned.")
    return Suspicion(
        "optimizer_mismatch",
        0.7,
        tuple(Evidence(f"option {name} of the optimizer", found, usual) for name, (found, usual) in odd.items()),
        f"With these options the method is another one than its name says: {why}",
        (
            Remedy(
                f"leave {names} as usual",
                f"fogline.Recipe(options={{...}})  # without {names}",
                on_recipe=lambda recipe: recipe.replace(
                    options={name: value for name, value in recipe.options.items() if name not in odd}
                ),
                place="options",
                order=RATE,
            ),
        ),
        otherwise=shrunk if "lr_decay" in odd else None,
    )


def optimizer_mismatch(exam: Examination) -> Suspicion | None:
    """A method that does not suit the problem, or the way its batches are drawn."""
    if not began(exam):
        return None
    recipe, stands, moves, steps = resolved(exam), standing(exam), motion(exam), steps_of(exam)
    if (odd := _odd_options(exam)) is not None:
        return odd
    name = recipe.optimizer if isinstance(recipe.optimizer, str) else recipe.optimizer.__name__.lower()
    noisy = recipe.batch_size != "full" and exam.case.batch_size < exam.program.rows
    if name in ("rprop", "lbfgs") and noisy and stands.improvable:
        return Suspicion(
            "optimizer_mismatch",
            0.8,
            (Evidence(f"share of the rows in a step of {name}", exam.case.batch_size / exam.program.rows, 1),),
            f"{name} compares one gradient with the next as if both were exact. On mini-batches they differ by chance, "
            "and its steps follow the chance.",
            (with_adamw(),),
        )
    memory = 1 / (1 - float(recipe.options.get("momentum", 0.9))) if name in PLAIN else 0.0
    if memory > _LONG_MEMORY and (stands.short or too_long(moves, steps) > 0):
        return _long_memory(name, memory, exam.planned)
    if moves.refused or too_long(moves, steps) >= 0.65:
        return None
    slow = steps.path < HARDLY_MOVED
    if name in ("adadelta", "adagrad") and slow and stands.improvable:
        return Suspicion(
            "optimizer_mismatch",
            0.7,
            (
                Evidence("way that the weights went, relative to them", steps.path, "1 or more"),
                Evidence(f"learning rate of {name}", exam.observed.lr if exam.observed else 0.0, spec_of(name).lr),
            ),
            f"{name} shortens its own steps, and at this learning rate nothing is left of them.",
            (with_adamw(),),
        )
    behind = stands.short and stands.train_short and not stands.near  # what is near gains something of any method
    if name in PLAIN and (behind or (stands.poor and not stands.known)):
        learned = Evidence("score on learned rows", stands.train_score, f"{stands.goal:.3g}, as classical learners get")
        return replace(of_one_rate(exam, 0.5 if slow else 0.4, learned), follows=True)
    return None
