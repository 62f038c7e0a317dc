"""The pages of searches, from a summary as a search writes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fogline.dashboard.runs import NoRunError
from fogline.dashboard.tuning_page import FIGURES, search_folder, search_names, search_page, searches_page

SPREAD = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.1, "high": 10.0, "log": true}}'
CHOICES = '{"name": "CategoricalDistribution", "attributes": {"choices": ["adamw", "<b>"]}}'


def trial(number: int, state: str = "complete") -> dict[str, Any]:
    loss = None if state == "diverged" else 1.0 / (1 + number % 5)
    return {
        "number": number, "state": state, "loss": loss, "why": "diverged: <i>no</i>" if state == "diverged" else "",
        "lr": 0.1, "values": {"lr": 0.1, "optimizer": "<b>"}, "steps": 100, "seconds": 1.0, "run": None, "together": 4,
        "curve": [[0, 2.0], [100, loss]], "findings": [], "params": {"lr / measured": 0.2 + number, "optimizer": "<b>"},
        "compared": {"1": 1.5, "3": 1.2},
        "began": f"2026-11-26T10:00:{number:02d}", "over": f"2026-11-26T10:01:{number:02d}",
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [trial(number, "pruned" if number % 3 == 1 else "complete") for number in range(9)] + [trial(9, "diverged")]
    summary = {
        "format": 1, "name": "line", "space": {"lr": "auto"}, "method": "tpe", "pruning": "asha", "over": False,
        "spent": {"trials": 3.5, "steps": 350, "seconds": 9.0}, "best": 0, "trials": rows,
        "distributions": {"lr / measured": SPREAD, "optimizer": CHOICES},
    }  # fmt: skip
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "tune.json").write_text(json.dumps(summary))
    return tmp_path


def test_a_search_is_listed_and_shown(root: Path) -> None:
    assert search_names(root) == ["line"]
    assert "3.5 whole trials" in searches_page(root)
    whole = search_page(search_folder(root, "line"))
    assert "1 diverged" not in whole
    assert "diverged trials" in whole
    assert whole.count("data-figure=") == len(FIGURES)


def test_texts_of_a_search_are_shown_as_text(root: Path) -> None:
    whole = search_page(search_folder(root, "line"))
    assert "<i>no" not in whole
    assert "&lt;i&gt;no" in whole
    assert "<b>" not in whole


@pytest.mark.parametrize("name", ["..", "", "line/..", "nothing", ".hidden"])
def test_a_search_is_found_by_its_plain_name(name: str, root: Path) -> None:
    with pytest.raises(NoRunError):
        search_folder(root, name)


def test_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(root / "line")
    with pytest.raises(NoRunError):
        search_folder(root, "link")


@pytest.mark.parametrize("text", ["", "[]", '{"trials": 3}', "{"])
def test_a_damaged_summary_ends_in_words(text: str, root: Path) -> None:
    (root / "line" / "tune.json").write_text(text)
    assert "unreadable" in searches_page(root)
    with pytest.raises(NoRunError, match="cannot be shown"):
        search_page(root / "line")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_from_the_summary(name: str, dark: bool, root: Path) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'fogline[tune]'")
    from fogline._tune.view import Kept, read_summary
    from fogline.plots import tuning

    figure = tuning.FIGURES[name](Kept(read_summary(root / "line")), dark=dark)
    assert len(figure.data) >= 1
    assert figure.layout.width is None  # as wide as the page
    assert "<b>" not in str(figure.layout.xaxis.title.text)


def test_the_pages_do_without_pytorch() -> None:
    program = "import sys, fogline.dashboard.tuning_page, fogline._tune.view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
