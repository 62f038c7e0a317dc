"""Causes in how the steps are taken: their length, number and noise, the method, and what pulls the weights back."""

from __future__ import annotations

from fogline.doctor.causes.step.batch import batch_too_large, batch_too_small, nothing_to_compare
from fogline.doctor.causes.step.length import bad_schedule, too_few_steps
from fogline.doctor.causes.step.method import optimizer_mismatch
from fogline.doctor.causes.step.rate import lr_too_high, lr_too_low
from fogline.doctor.causes.step.regularization import regularization_too_strong

ON_ONE_BATCH = (nothing_to_compare,)
IN_MOTION = (
    lr_too_high,
    lr_too_low,
    bad_schedule,
    too_few_steps,
    optimizer_mismatch,
    batch_too_small,
    batch_too_large,
    regularization_too_strong,
)
