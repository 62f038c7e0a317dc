"""Causes in what was learned: too much of these rows, too little of any, or something other than what is reported."""

from __future__ import annotations

from fogline.doctor.causes.fit.capacity import overfitting, underfitting
from fogline.doctor.causes.fit.critical import saddle
from fogline.doctor.causes.fit.metric import metric_mismatch

ON_ONE_BATCH = ()
IN_MOTION = (overfitting, underfitting, metric_mismatch, saddle)
