"""Fogline: gradient descent with the fog lifted."""

from fogline.descent.interrupts import Interrupted as Interrupted
from fogline.descent.loop import Step as Step
from fogline.descent.optimizers import OPTIMIZERS as OPTIMIZERS
from fogline.descent.schedules import SCHEDULES as SCHEDULES
from fogline.fit import descend as descend
from fogline.fit import fit as fit
from fogline.fit import resume as resume
from fogline.minimize import minimize as minimize
from fogline.recipe import Duration as Duration
from fogline.recipe import Recipe as Recipe
from fogline.run import Run as Run
from fogline.task import Task as Task
from fogline.task import on_batch as on_batch
from fogline.verdict import Verdict as Verdict

__version__ = "0.1.0"
