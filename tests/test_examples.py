"""The example programs say what their pages say, in closed form where there is one."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import a_function
import driving
import healthcare
import linear_regression
import numpy as np
import pytest
import road_scenes
import torch
from pictures import Panel


def test_one_step_of_the_hiker() -> None:
    step = a_function.one_step()
    assert step.grad.item() == 6
    assert step.x.item() == pytest.approx(4.4)


def test_every_rate_ends_where_the_formula_says() -> None:
    for name, result in a_function.down_the_valley().items():
        factor = 1 - 2 * a_function.VALLEY_RATES[name]
        steps = torch.arange(len(result.path), dtype=torch.float64)
        torch.testing.assert_close(result.path.x[:, 0], 2 + 3 * factor**steps)
    for name, result in a_function.down_the_ravine().items():
        lr, steps = a_function.RAVINE_RATES[name], result.nit
        expected = torch.tensor([4 * (1 - 2 * lr) ** steps, (1 - 20 * lr) ** steps]).double()
        torch.testing.assert_close(result.x, expected, rtol=1e-5, atol=1e-9)


def test_the_two_that_are_too_long_diverge() -> None:
    for results in (a_function.down_the_valley(), a_function.down_the_ravine()):
        assert [name for name, result in results.items() if result.verdict.name == "DIVERGED"] == ["runs away"]


def test_descent_arrives_at_the_normal_equations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = linear_regression.line_data()
    path, _ = linear_regression.descended(data, "full", 300, 0.3)
    torch.testing.assert_close(torch.tensor(path[-1]).double(), linear_regression.closed_form(data), atol=1e-6, rtol=0)


def test_a_full_batch_takes_the_steps_of_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = linear_regression.line_data()
    path, _ = linear_regression.descended((x, y), "full", 5, 0.15)
    slope, offset = path[0]
    for seen in path[1:]:
        error = slope * x + offset - y
        slope, offset = slope - 0.3 * (error * x).mean().item(), offset - 0.3 * error.mean().item()
        assert seen == pytest.approx((slope, offset))


def test_noise_leaves_the_poor_minimum_and_exact_descent_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = linear_regression.two_lines()
    poor, good = linear_regression.bottom(rows, -1.0), linear_regression.bottom(rows, 1.0)
    assert linear_regression.loss_of(good, rows) < linear_regression.loss_of(poor, rows)
    assert linear_regression.left_it(rows, poor, "full", [0]) == pytest.approx([poor], abs=1e-6)
    assert all(end > 0 for end in linear_regression.left_it(rows, poor, 1, [0, 1]))


def test_a_contour_line_has_one_height() -> None:
    panel = Panel("", "", (-5, 5), (-5, 5), width=1000, height=1000)
    shape = ((2.0, 0.5), (0.5, 1.0))
    panel.ellipses((1, -1), shape, [3.0])
    (line,) = panel.inside
    points = ElementTree.fromstring(line).attrib["points"].split()
    for point in points:
        across, down = map(float, point.split(","))
        a, b = across / 100 - 5 - 1, 5 - down / 100 + 1
        assert 2 * a * a + 2 * 0.5 * a * b + b * b == pytest.approx(3, abs=0.02)


# -- healthcare ----------------------------------------------------------------------------------------------------


def test_rows_of_a_split_are_all_there_once_and_as_malignant_as_all() -> None:
    X, y = healthcare.measurements()
    test, folds = healthcare.split(y, seed=3)
    assert sorted(torch.cat([test, *folds]).tolist()) == list(range(len(X)))
    shares = [y[rows].mean().item() for rows in (test, *folds)]
    assert shares == pytest.approx([y.mean().item()] * len(shares), abs=0.02)


def test_calibration_undoes_a_known_distortion() -> None:
    """Labels are drawn with the probabilities of log-odds that are then distorted."""
    draws = torch.Generator().manual_seed(0)
    true = 2 * torch.randn(20_000, 1, generator=draws)
    y = (torch.rand(20_000, 1, generator=draws) < torch.sigmoid(true)).float()
    found = healthcare.Calibration.fitted(5 * true + 1, y)
    assert found.slope == pytest.approx(0.2, rel=0.05)
    assert found.offset == pytest.approx(-0.2, abs=0.06)
    labels, raw = y.numpy()[:, 0], torch.sigmoid(5 * true + 1).double().numpy()[:, 0]
    stated = found(5 * true + 1)
    assert healthcare.calibration_error(stated, labels) < 0.02 < healthcare.calibration_error(raw, labels)
    assert healthcare.log_loss(stated, labels) < healthcare.log_loss(raw, labels)


def test_the_threshold_is_the_highest_with_the_recall() -> None:
    probability, y = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.05]), np.array([1, 1, 1, 1, 1, 0])
    assert healthcare.threshold_for(1.0, probability, y) == 0.1
    assert healthcare.threshold_for(0.8, probability, y) == 0.2


@pytest.mark.parametrize("rows", [10, 42, 170])
def test_what_hits_prove_is_the_exact_bound(rows: int) -> None:
    from scipy.stats import beta

    for hits in (1, rows // 2, rows - 1):
        assert healthcare.sure_of(hits, rows) == pytest.approx(beta.ppf(0.05, hits, rows - hits + 1), abs=1e-6)
    assert healthcare.sure_of(rows, rows) == pytest.approx(0.05 ** (1 / rows), abs=1e-6)
    assert healthcare.sure_of(0, rows) == 0


def test_one_split_says_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    X, y = healthcare.measurements()
    judged = healthcare.one_split(X, y, 0, healthcare.DECAYED)
    assert judged.hits / judged.rows >= healthcare.RECALL
    assert judged.recall > 0.9
    assert judged.precision > 0.8
    assert 0.5 < judged.calibration.slope < 2
    assert healthcare.log_loss(judged.averaged, judged.y) < 0.15
    drawn = [
        healthcare.draw_reliability([judged], [judged], tmp_path),
        healthcare.draw_threshold([judged], tmp_path),
    ]
    assert all(ElementTree.parse(path).getroot().attrib["viewBox"] for path in drawn)


def test_most_planted_labels_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = healthcare.label_check(*healthcare.measurements())
    assert found["among the first"] >= 0.7 * found["planted"]
    assert found["expected"] == pytest.approx(found["planted"], rel=0.5)
    assert found["expected as it is"] < found["planted"] / 2
    assert ElementTree.parse(healthcare.draw_labels(found, tmp_path)).getroot().attrib["viewBox"]


def test_pictures_are_well_formed(tmp_path: Path) -> None:
    drawn = [
        a_function.draw_hiker(a_function.one_step(), tmp_path),
        a_function.draw_valley(a_function.down_the_valley(), tmp_path),
        a_function.draw_ravine(a_function.down_the_ravine(), tmp_path),
        linear_regression.draw_minima(linear_regression.two_lines(), {1: [1.0, -1.0]}, -0.8, 1.0, tmp_path),
    ]
    for path in drawn:
        root = ElementTree.parse(path).getroot()
        assert root.attrib["viewBox"].startswith("0 0 ")
        assert root.find("{http://www.w3.org/2000/svg}title") is not None


def test_frames_of_a_drive_are_near_copies_and_their_boxes_lie_inside() -> None:
    held = road_scenes.drawn(drives=6, frames=4, seed=0)
    assert held.frames.shape == (24, road_scenes.SIDE, road_scenes.SIDE, 3)
    for kind, x, y, wide, high in (box for own in held.boxes for box in own):
        assert 0 <= kind < len(held.names)
        assert 0 <= x - wide / 2 < x + wide / 2 <= 1
        assert 0 <= y - high / 2 < y + high / 2 <= 1
    apart = np.abs(held.frames[:, None].astype(int) - held.frames[None]).mean((2, 3, 4))
    nearest = (apart + 1e9 * np.eye(24)).argmin(1)
    assert (held.drive[nearest] == held.drive).all()


def test_scenes_are_written_as_ultralytics_reads_them(tmp_path: Path) -> None:
    held = road_scenes.drawn(drives=2, frames=2, seed=0)
    place = road_scenes.write(held, np.array([True, False, True, True]), tmp_path)
    assert f"path: {tmp_path}" in place.read_text()
    assert len(list((tmp_path / "images" / "train").iterdir())) == 3
    lines = (tmp_path / "labels" / "val" / "00001.txt").read_text().split("\n")[:-1]
    assert [tuple(map(float, line.split())) for line in lines] == [
        pytest.approx(box, abs=1e-6) for box in held.boxes[1]
    ]


def test_the_leak_is_found_and_a_split_by_groups_has_none(tmp_path: Path) -> None:
    held = road_scenes.drawn(drives=24, frames=5, seed=0)
    train = driving.at_random(len(held))
    found = driving.leak(held, train, *driving.looked_at(held, train, tmp_path))
    assert found.copied > 0.8
    assert found.right > 0.9
    honest = driving.in_groups(found.group)
    assert not set(found.group[honest]) & set(found.group[~honest])
