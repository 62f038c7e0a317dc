"""The figures of a landscape, drawn from its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from fogline.plots import FIGURES, figures_of
from fogline.plots.landscape import Scale, draw, draw_3d
from fogline.plots.report import write_report
from fogline.plots.theme import DARK, LIGHT
from fogline.run import Run
from run_folders import make_run

LINE = np.linspace(-1, 1, 9)


def values(**changes: Any) -> dict[str, Any]:
    loss = LINE[None, :] ** 2 + 10 * LINE[:, None] ** 2 + 0.01
    path = {"name": "<run>", "step": [0, 4, 8], "x": [0.8, 0.4, 0.0], "y": [0.5, -0.2, 0.0], "kept": True}
    path |= {"distance": [0.3, 0.1, 0.0], "loss": [4.0, 0.7, 0.01], "plane_loss": [3.15, 0.57, 0.01]}
    made = {"format": 1, "span": "path", "labels": ["one: 80.0 %", "two: 15.0 %"], "explained": [0.8, 0.15]}
    made |= {"x": LINE.tolist(), "y": LINE.tolist(), "loss": loss.tolist(), "fog": np.full((9, 9), 0.3).tolist()}
    return made | {"evaluated": np.ones((9, 9), int).tolist(), "paths": [path]} | changes


def traces(figure: go.Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


@pytest.mark.parametrize(("dark", "colours"), [(False, LIGHT), (True, DARK)])
def test_surface_fog_path_and_both_losses_are_drawn(dark: bool, colours: Any) -> None:
    figure = draw(values(), dark=dark)
    found = traces(figure)
    assert "95 %" in figure.layout.title.text
    assert list(found["&lt;run&gt;"].x) == [0.8, 0.4, 0.0]
    assert "step 4, loss 0.7; on the plane 0.57, 0.1 away" in found["&lt;run&gt;"].customdata
    assert list(found["where the path was"].y) == [4.0, 0.7]  # what was kept is no step further
    assert list(found["on the plane"].y) == [3.15, 0.57]
    assert found["kept"].x == (0.0,)
    assert found["start"].x == (0.8,)
    assert np.array(found["fog"].z).shape == (9, 9)
    assert figure.layout.font.color == colours.ink
    assert figure.layout.xaxis.title.text == "one: 80.0 %"


def test_the_side_view_fades_into_the_page_and_shows_the_path_at_its_own_losses() -> None:
    clear, thick = (draw_3d(values(fog=np.full((9, 9), mist).tolist())) for mist in (0.0, 1.0))
    mesh = traces(clear)["loss"]
    assert len(mesh.vertexcolor) == 81
    assert len(mesh.i) == 2 * 64
    assert mesh.vertexcolor != traces(thick)["loss"].vertexcolor
    scale = Scale.of(np.array(values()["loss"]))
    assert list(traces(clear)["&lt;run&gt;"].z) == pytest.approx(scale.heights([4.0, 0.7, 0.01]).tolist())


@pytest.mark.parametrize("make", [draw, draw_3d])
@pytest.mark.parametrize(
    "changes",
    [
        {"loss": [[None] * 9] * 9},
        {"loss": [[1.0] * 9] * 9},
        {"loss": [[None] * 4 + [1e300] * 5] * 9},
        {"loss": [[-3.0] * 8 + [1e12]] * 9},
        {"paths": []},
        {"span": "function", "explained": None, "labels": ["a", "b"]},
    ],
)
def test_odd_landscapes_can_be_drawn(make: Any, changes: dict[str, Any]) -> None:
    text = make(values(**changes)).to_json()
    assert "NaN" not in text
    json.loads(text)


def test_ticks_tell_losses_on_both_scales() -> None:
    linear, steep = Scale.of(np.array([0.0, 1.0, 2.0])), Scale.of(np.array([0.0, 0.1, 999.0]))
    assert linear.ticks(3)["ticktext"] == ["0", "1", "2"]
    assert steep.unit == pytest.approx(0.999)
    ticks = steep.ticks(4)
    assert [float(text) for text in ticks["ticktext"]] == pytest.approx([0, 9, 99, 999], rel=0.02)
    assert steep.heights([0.0, 999.0]).tolist() == pytest.approx([ticks["tickvals"][0], ticks["tickvals"][-1]])


def test_a_run_shows_its_landscape_where_one_was_computed(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "run"))
    assert not {"landscape", "landscape_3d"} & set(figures_of(run))
    assert not FIGURES["landscape"](run).data
    assert not FIGURES["landscape_3d"](run).data
    (run.folder / "landscape.json").write_text(json.dumps(values()))
    assert {"landscape", "landscape_3d"} < set(figures_of(run))
    assert run.plot("landscape").data
    page = write_report(run, tmp_path / "run.html").read_text(encoding="utf-8")
    assert "figure-0-landscape_3d" in page
