"""Fogline: gradient descent with the fog lifted.

PyTorch takes a second to import, so a public name is imported when it is first asked for: the command line answers
``--help``, and shows a run, at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fogline._examples import Examples as Examples
    from fogline._examples import examples as examples
    from fogline._fit import descend as descend
    from fogline._fit import fit as fit
    from fogline._fit import resume as resume
    from fogline._landscape import Landscape as Landscape
    from fogline._landscape import landscape as landscape
    from fogline._minimize import minimize as minimize
    from fogline._watch import watch as watch
    from fogline.descent.interrupts import Interrupted as Interrupted
    from fogline.descent.loop import Step as Step
    from fogline.descent.optimizers import OPTIMIZERS as OPTIMIZERS
    from fogline.doctor.examine import diagnose as diagnose
    from fogline.doctor.finding import Finding as Finding
    from fogline.doctor.report import Report as Report
    from fogline.rate.find import Rate as Rate
    from fogline.rate.find import find_lr as find_lr
    from fogline.recipe import SCHEDULES as SCHEDULES
    from fogline.recipe import Duration as Duration
    from fogline.recipe import Recipe as Recipe
    from fogline.run import Run as Run
    from fogline.task import Task as Task
    from fogline.task import on_batch as on_batch
    from fogline.verdict import Verdict as Verdict

__version__ = "0.1.0"

_PLACES = {
    "Duration": "recipe",
    "Examples": "_examples",
    "Finding": "doctor.finding",
    "Interrupted": "descent.interrupts",
    "Landscape": "_landscape",
    "OPTIMIZERS": "descent.optimizers",
    "Rate": "rate.find",
    "Recipe": "recipe",
    "Report": "doctor.report",
    "Run": "run",
    "SCHEDULES": "recipe",
    "Step": "descent.loop",
    "Task": "task",
    "Verdict": "verdict",
    "descend": "_fit",
    "diagnose": "doctor.examine",
    "examples": "_examples",
    "find_lr": "rate.find",
    "fit": "_fit",
    "landscape": "_landscape",
    "minimize": "_minimize",
    "on_batch": "task",
    "resume": "_fit",
    "watch": "_watch",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fogline' has no attribute {name!r}")
    value = getattr(import_module(f"fogline.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
