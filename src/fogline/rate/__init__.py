"""The learning rate, by measurement: a sweep and the curvature edge, joined."""

from __future__ import annotations

from fogline.rate.find import Rate as Rate
from fogline.rate.find import measure_rate as measure_rate
