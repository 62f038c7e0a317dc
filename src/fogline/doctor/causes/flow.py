"""Causes of the group "flow"."""

from __future__ import annotations

ON_ONE_BATCH = ()
IN_MOTION = ()
