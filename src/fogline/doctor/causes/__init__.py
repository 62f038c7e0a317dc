"""The causes, a file or folder a group: each supposes itself from what was seen, and owns the remedy to be tried.

A cause is a function of an :class:`~fogline.doctor.examination.Examination` that gives a
:class:`~fogline.doctor.finding.Suspicion` or None. Those of ``ON_ONE_BATCH`` need no training; those of ``IN_MOTION``
look at a descent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fogline.doctor.case import FAILURES
from fogline.doctor.causes import data, fit, flow, loop, number, output, step
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion

Cause = Callable[[Examination], Suspicion | None]

GROUPS = (data, output, flow, number, loop, step, fit)
ON_ONE_BATCH: tuple[Cause, ...] = tuple(cause for group in GROUPS for cause in group.ON_ONE_BATCH)
IN_MOTION: tuple[Cause, ...] = tuple(cause for group in GROUPS for cause in group.IN_MOTION)


def suspicions(examination: Examination) -> Iterator[Suspicion]:
    """What the causes suppose: of one batch, and of the descent where one was observed.

    One that fails on a program of a kind that nobody thought of is left out, and the others are asked all the same.
    """
    causes = ON_ONE_BATCH if examination.observed is None else IN_MOTION
    for cause in causes:
        try:
            found = cause(examination)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            examination.case.failed[cause.__name__] = f"{type(error).__name__}: {error}"
            continue
        if found is not None:
            yield found
