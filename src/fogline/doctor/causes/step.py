"""Causes of the group "step"."""

from __future__ import annotations

ON_ONE_BATCH = ()
IN_MOTION = ()
