"""A landscape as a value: the surface, the paths on it, and how it came about."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fogline._landscape.path import COLUMNS, PlanePath
from fogline._landscape.surface import Surface
from fogline.record.store import write_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

FILE = "landscape.json"


@dataclass(frozen=True, repr=False)
class Landscape:
    """The error landscape around a path.

    Attributes:
        span: ``"path"``, ``"filter"`` or ``"hessian"``; ``"function"`` where the two axes are a function's own.
        surface: losses over a grid of the plane; ``surface.x``, ``surface.y``, ``surface.loss``, ``surface.evaluated``.
        paths: those that are shown; ``path`` is the first of them, or None.
        explained: shares of the path's variance along the two axes, for ``span="path"``; else None.
        fog: how little is known at each place of the grid, from 0 to 1, shape of ``surface.loss``.
        labels: what the axes show.
        facts: how it came about: seed, examples, evaluations, versions, the way it was evaluated.

    Example::

        seen = fogline.landscape(run)
        seen.explained
        seen.plot().show()
        seen.plot(kind="3d", dark=True).write_html("landscape.html")
    """

    span: str
    surface: Surface
    paths: tuple[PlanePath, ...]
    explained: tuple[float, float] | None
    fog: Any
    labels: tuple[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> PlanePath | None:
        """The first path, or None where there is none."""
        return self.paths[0] if self.paths else None

    def plot(self, kind: str = "contour", *, dark: bool = False) -> go.Figure:
        """A figure, ``plotly.graph_objects.Figure``.

        Args:
            kind: ``"contour"``, seen from above, or ``"3d"``.
            dark: the dark palette.

        Raises:
            ValueError: for another kind.
        """
        from fogline.plots.landscape import draw, draw_3d

        if kind not in ("contour", "3d"):
            raise ValueError(f"expected kind='contour' or kind='3d', received {kind!r}")
        return (draw if kind == "contour" else draw_3d)(self.to_dict(), dark=dark)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a loss that is not finite is None."""
        surface = self.surface
        return {
            "format": 1,
            "span": self.span,
            "labels": list(self.labels),
            "explained": None if self.explained is None else list(self.explained),
            "x": surface.x.tolist(),
            "y": surface.y.tolist(),
            "loss": [_plain(row) for row in surface.loss],
            "evaluated": surface.evaluated.astype(int).tolist(),
            "fog": np.round(self.fog, 4).tolist(),
            "paths": [
                {
                    "name": path.name,
                    "step": [int(step) for step in path.step],
                    **{name: _plain(getattr(path, name)) for name in COLUMNS[1:]},
                    "kept": path.kept,
                }
                for path in self.paths
            ],
            **self.facts,
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as text; :meth:`from_json` reads it."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Landscape:
        """What :meth:`to_json` wrote, or the ``landscape.json`` of a run folder holds.

        Raises:
            ValueError: the text is no landscape.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("format") != 1 or "loss" not in values:
            raise ValueError("expected the JSON of a landscape with format 1, received other text")
        x, y, loss = (np.array(values.pop(name), dtype=np.float64) for name in ("x", "y", "loss"))
        surface = Surface(x, y, loss, np.array(values.pop("evaluated"), dtype=bool))
        paths = tuple(PlanePath.of(path["name"], path, kept=path["kept"]) for path in values.pop("paths"))
        explained, labels, span = values.pop("explained"), values.pop("labels"), values.pop("span")
        fog = np.array(values.pop("fog"), dtype=np.float64)
        del values["format"]
        shares = None if explained is None else (explained[0], explained[1])
        return cls(span, surface, paths, shares, fog, (labels[0], labels[1]), values)

    def save(self, folder: str | Path) -> Path:
        """Write ``landscape.json`` into a folder, beside and renamed; returns its path."""
        place = Path(folder) / FILE
        write_json(place, self.to_dict())
        return place

    def __str__(self) -> str:
        surface = self.surface
        finite = surface.loss[np.isfinite(surface.loss)]
        words = [f"{len(surface.y)} x {len(surface.x)} places, {surface.evaluations} of them evaluated"]
        if len(finite):
            words.append(f"losses from {finite.min():.4g} to {finite.max():.4g}")
        if self.explained is not None:
            words.append(f"the plane holds {100 * sum(self.explained):.1f} % of the path's variance")
        for path in self.paths[:1]:
            off = float(np.nanmax(path.distance)) if len(path) else 0.0
            words.append(f"a path of {len(path)} places, up to {off:.3g} from the plane")
        return f"{self.span}: " + "; ".join(words)

    def __repr__(self) -> str:
        return f"Landscape({self})"


def _plain(values: Any) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
