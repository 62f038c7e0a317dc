"""Causes in the numbers themselves: NaN and infinity, logarithms of zero, constants below what a float can hold.

Autograd keeps what went into each operation that needs it for its derivative, so the values that entered a logarithm,
a root or a division can be looked at, wherever it stands.
"""

from __future__ import annotations

from fogline.doctor.causes.number.epsilon import epsilon_underflow
from fogline.doctor.causes.number.logarithm import log_of_zero
from fogline.doctor.causes.number.source import nan_source

ON_ONE_BATCH = (log_of_zero, epsilon_underflow, nan_source)
IN_MOTION = (log_of_zero, epsilon_underflow, nan_source)
