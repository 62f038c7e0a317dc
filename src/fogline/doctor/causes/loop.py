"""Causes of the group "loop"."""

from __future__ import annotations

ON_ONE_BATCH = ()
IN_MOTION = ()
