"""Small pictures as SVG: panels with axes, lines, dots and words. Nothing is needed but Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

Point = tuple[float, float]

INK, FAINT, PAPER, FOG = "#1d2733", "#5c6975", "#ffffff", "#dfe5ea"
BLUE, ORANGE, GREEN, RED = "#1668b8", "#c2570c", "#2b7a3d", "#b3261e"
_LEFT, _TOP, _BOTTOM, _GAP = 54, 38, 46, 22


class Panel:
    """A rectangle with a view of its own: data coordinates in, SVG elements out.

    Args:
        title, below: words over and under it.
        x, y: the view, (low, high) each; what lies outside is cut off.
        width, height: in pixels.

    ``marks`` are the words at places of x, instead of round numbers.
    """

    def __init__(
        self, title: str, below: str, x: Point, y: Point, width: int = 270, height: int = 200, *, log_y: bool = False
    ) -> None:
        self.title, self.below, self.x, self.log_y = title, below, x, log_y
        self.y = (math.log10(y[0]), math.log10(y[1])) if log_y else y
        self.width, self.height = width, height
        self.inside: list[str] = []
        self.marks: dict[float, str] = {}

    def at(self, point: Sequence[float]) -> Point:
        """Where a place in data coordinates lies, in pixels from the panel's corner."""
        value = math.log10(max(point[1], 1e-300)) if self.log_y else point[1]
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0]) * self.width
        down = (self.y[1] - value) / (self.y[1] - self.y[0]) * self.height
        return round(min(max(across, -9e3), 9e3), 1), round(min(max(down, -9e3), 9e3), 1)

    def line(self, points: Iterable[Sequence[float]], colour: str = INK, width: float = 1.6, dash: str = "") -> None:
        """A line through the points."""
        places = " ".join(f"{a},{b}" for a, b in map(self.at, points))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.inside.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>'
        )

    def dots(self, points: Iterable[Sequence[float]], colour: str = INK, radius: float = 2.6) -> None:
        """A dot at each of the points."""
        for a, b in map(self.at, points):
            self.inside.append(f'<circle cx="{a}" cy="{b}" r="{radius}" fill="{colour}"/>')

    def words(self, point: Sequence[float], text: str, colour: str = INK) -> None:
        """Words that begin at a point."""
        a, b = self.at(point)
        self.inside.append(f'<text x="{a}" y="{b}" fill="{colour}">{escape(text)}</text>')

    def band(self, low: float, high: float, colour: str = FOG) -> None:
        """A band over the whole height between two values of x."""
        (a, _), (b, _) = self.at((low, 0)), self.at((high, 0))
        self.inside.append(f'<rect x="{a}" y="0" width="{b - a:.1f}" height="{self.height}" fill="{colour}"/>')

    def curve(self, function: Callable[[float], float], colour: str = FAINT, width: float = 1.6) -> None:
        """A function over the whole view."""
        low, high = self.x
        places = [low + (high - low) * k / 200 for k in range(201)]
        self.line([(x, function(x)) for x in places], colour, width)

    def ellipses(self, centre: Point, shape: Sequence[Sequence[float]], levels: Iterable[float]) -> None:
        """Contour lines of a quadratic: where (p - centre)' shape (p - centre) is one of the levels."""
        (a, b), (_, c) = shape
        # The factor that makes a circle of the ellipse: shape = factor' factor.
        first = math.sqrt(a)
        second, third = b / first, math.sqrt(c - b * b / a)
        for level in levels:
            ring = []
            for k in range(121):
                angle = 2 * math.pi * k / 120
                y = math.sqrt(level) * math.sin(angle) / third
                ring.append((centre[0] + (math.sqrt(level) * math.cos(angle) - second * y) / first, centre[1] + y))
            self.line(ring, "#b9c4cd", 1)

    def drawn(self, left: int, top: int, number: int) -> str:
        """The panel as SVG, moved to its place."""
        mark = f"panel-{number}"
        ticks = "".join(self._ticks())
        frame = f'<rect width="{self.width}" height="{self.height}" fill="none" stroke="{FAINT}"/>'
        return (
            f'<g transform="translate({left},{top})">'
            f'<clipPath id="{mark}"><rect width="{self.width}" height="{self.height}"/></clipPath>'
            f'<text x="0" y="-14" font-weight="600" fill="{INK}">{escape(self.title)}</text>'
            f'<g clip-path="url(#{mark})">{"".join(self.inside)}</g>{frame}{ticks}'
            f'<text x="{self.width / 2}" y="{self.height + 33}" text-anchor="middle" fill="{FAINT}">'
            f"{escape(self.below)}</text></g>"
        )

    def _ticks(self) -> Iterable[str]:
        for value, text in (self.marks or {value: f"{value:g}" for value in _round_numbers(*self.x)}).items():
            a, _ = self.at((value, 1))
            yield f'<text x="{a}" y="{self.height + 16}" text-anchor="middle" fill="{FAINT}">{escape(text)}</text>'
        for value in _powers(*self.y) if self.log_y else _round_numbers(*self.y):
            _, b = self.at((0, value))
            yield f'<text x="-6" y="{b + 4}" text-anchor="end" fill="{FAINT}">{value:g}</text>'


def save(panels: Sequence[Panel], path: Path, described: str, columns: int = 2) -> Path:
    """Write panels in rows as one SVG; returns its path.

    Args:
        described: what is to be seen, for those who cannot see it.
    """
    wide, high = max(panel.width for panel in panels) + _LEFT, max(panel.height for panel in panels) + _TOP + _BOTTOM
    columns = min(columns, len(panels))
    width, height = columns * wide + _GAP, math.ceil(len(panels) / columns) * high
    places = [(_LEFT + k % columns * wide, _TOP + k // columns * high) for k in range(len(panels))]
    inner = "\n".join(panel.drawn(*places[k], k) for k, panel in enumerate(panels))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img">\n<title>{escape(described)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="{PAPER}" rx="8"/>\n{inner}\n</svg>\n',
        encoding="utf-8",
    )
    return path


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to six round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= max(factor for factor in (1, 2, 5) if (high - low) / (factor * step) >= 3)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    every = max(1, math.ceil((high - low) / 5))
    return [10.0**k for k in range(math.ceil(low), math.floor(high) + 1, every)]
