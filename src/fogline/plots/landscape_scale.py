"""What every view of an error landscape shares: heights, colours and words, from the contents of ``landscape.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.plots.theme import Palette, between, shades

Numbers = NDArray[np.float64]
Values = Mapping[str, Any]

_STEEP = 6.0  # heights whose top is this many times the middle are drawn on a logarithmic scale
_UNIT = 1e-3  # of the height: what the logarithmic scale begins at
_COLOURS = 9
_MUTED = 0.25  # how far the colours of the surface go towards the page, so that paths stand out
_TITLES = {
    "path": "Plane of the path",
    "filter": "Random directions",
    "hessian": "Steepest curvature",
    "function": "Landscape",
}


@dataclass(frozen=True)
class Scale:
    """From losses to heights in a figure, and back for the ticks."""

    low: float
    high: float
    unit: float  # 0: linear

    @classmethod
    def of(cls, loss: Numbers) -> Scale:
        """The scale for the finite ones of some losses.

        >>> Scale.of(np.array([0.0, 0.5, 1.0])).unit, Scale.of(np.array([0.0, 0.1, 1000.0])).unit
        (0.0, 1.0)
        """
        finite = loss[np.isfinite(loss)]
        low, high, middle = float(finite.min()), float(finite.max()), float(np.median(finite))
        return cls(low, high, _UNIT * (high - low) if high - low > _STEEP * (middle - low) else 0.0)

    def heights(self, loss: Any) -> Numbers:
        """Heights of losses; NaN where a loss is not finite."""
        values = np.asarray(loss, dtype=np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        if not self.unit:
            return values
        return np.asarray(np.log10(np.maximum(values - self.low, 0.0) + self.unit))

    def ticks(self, count: int = 6) -> dict[str, Any]:
        """Settings of an axis of heights: ticks that tell losses."""
        low, high = self.heights([self.low, self.high])
        at = np.linspace(low, high, count)
        losses = 10**at - self.unit + self.low if self.unit else at
        return {"tickmode": "array", "tickvals": at.tolist(), "ticktext": [_tick(float(loss)) for loss in losses]}


def told(path: Values) -> list[str]:
    """What stands beside a place of a path: its loss, that of the plane and how far it is from it."""
    words = []
    columns = zip(path["step"], path["loss"], path["plane_loss"], path["distance"], strict=True)
    for step, loss, on_plane, distance in columns:
        said = f"step {step}, loss {_number(loss)}"
        if distance:
            said += f"; on the plane {_number(on_plane)}, {distance:.3g} away"
        words.append(said)
    return words


def _tick(loss: float) -> str:
    """
    >>> _tick(1163.2), _tick(0.01074), _tick(2e9)
    ('1,163', '0.0107', '2e+09')
    """
    return f"{loss:,.0f}" if 1000 <= abs(loss) < 1e6 else f"{loss:.3g}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def title_of(values: Values) -> str:
    title = _TITLES.get(values["span"], "Landscape")
    explained = values.get("explained")
    return title if explained is None else f"{title}, {100 * sum(explained):.0f} %"


def label(values: Values, at: int) -> str:
    return escape(str(values["labels"][at]))


def short_label(values: Values, at: int) -> str:
    """A label for an axis that has little room."""
    words = label(values, at)
    return words if len(words) <= 12 else ("first", "second")[at]


def path_colours(values: Values, colours: Palette) -> list[str]:
    several = [colours.ink, colours.third, colours.second, colours.first, colours.middle, colours.faint]
    return [several[k % len(several)] for k in range(len(values["paths"]))]


def surface_colours(colours: Palette) -> list[list[Any]]:
    tones = [between(shade, colours.page, _MUTED) for shade in shades(_COLOURS, colours)]
    return [[k / (_COLOURS - 1), tone] for k, tone in enumerate(tones)]


def tone(scale: Sequence[Sequence[Any]], share: float) -> str:
    at = min(max(share, 0.0), 1.0) * (len(scale) - 1)
    low = min(int(at), len(scale) - 2)
    return between(scale[low][1], scale[low + 1][1], at - low)


def array(values: Any) -> Numbers:
    return np.array(values, dtype=np.float64)


def listed(values: Numbers) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in values]
