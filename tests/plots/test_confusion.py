from __future__ import annotations

from pathlib import Path

import numpy as np

from fogline.plots.confusion import confusion_figure
from fogline.run import Run
from run_folders import add_confusion, make_run


def test_shares_are_those_of_a_class_and_counts_are_in_the_cells(tmp_path: Path) -> None:
    task = {"model": "Linear", "classes": ["cat", "dog", "<cow>"]}
    run = Run.open(add_confusion(make_run(tmp_path / "run", task=task), [[6, 2, 0], [0, 5, 0], [1, 0, 3]]))
    figure = confusion_figure(run)
    (map_,) = figure.data
    np.testing.assert_allclose(map_.z, [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    assert map_.text[0][1] == "2"
    assert map_.x[1] == "dog"
    assert "<cow>" not in map_.y
    assert "82.4% of 17" in figure.layout.title.text


def test_a_class_that_is_only_predicted_has_its_column(tmp_path: Path) -> None:
    (map_,) = confusion_figure(Run.open(add_confusion(make_run(tmp_path / "run"), [[3, 0, 1], [0, 2, 0]]))).data
    assert map_.z.shape == (3, 3)
    assert map_.z[2].tolist() == [0, 0, 0]


def test_of_many_classes_the_most_frequent_confusions_are_shown(tmp_path: Path) -> None:
    counts = np.diag(np.full(40, 9))
    counts[7, 31], counts[12, 3] = 5, 8
    task = {"model": "Linear", "classes": [f"a name that is rather long {k}" for k in range(40)]}
    figure = confusion_figure(Run.open(add_confusion(make_run(tmp_path / "run", task=task), counts.tolist())))
    bars, words = figure.data
    assert bars.x.tolist() == [8, 5]
    assert len(words.text) == 2
    assert "8 of 17" in bars.customdata[0]


def test_nothing_confused_says_so(tmp_path: Path) -> None:
    run = Run.open(add_confusion(make_run(tmp_path / "run"), np.diag(np.full(31, 2)).tolist()))
    assert "Nothing was confused." in confusion_figure(run).layout.annotations[0].text
