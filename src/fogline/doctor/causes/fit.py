"""Causes of the group "fit"."""

from __future__ import annotations

ON_ONE_BATCH = ()
IN_MOTION = ()
