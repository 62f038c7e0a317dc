"""Causes of the group "data"."""

from __future__ import annotations

ON_ONE_BATCH = ()
IN_MOTION = ()
