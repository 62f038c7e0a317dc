"""Causes of the group "data"."""

from __future__ import annotations

from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion

ON_ONE_BATCH = ()
IN_MOTION = ()
