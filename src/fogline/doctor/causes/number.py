"""Causes of the group "number"."""

from __future__ import annotations

ON_ONE_BATCH = ()
IN_MOTION = ()
