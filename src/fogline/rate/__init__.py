"""The learning rate, by measurement: bracket, race, verify."""

from __future__ import annotations

from fogline.rate.find import Rate as Rate
from fogline.rate.find import find_lr as find_lr
from fogline.rate.find import measure_rate as measure_rate
from fogline.rate.verify import verification as verification
