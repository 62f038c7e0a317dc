from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fogline.demo import accuracy, breast_cancer, demo, digits


@pytest.mark.parametrize("make", [breast_cancer, digits])
def test_the_three_parts_are_disjoint_and_standardised_by_the_training_part(make) -> None:
    example = make()
    (X, y), (Xv, yv), (Xt, yt) = example.task.train, example.task.valid, example.test
    axis = 0 if X.dim() == 2 else None
    torch.testing.assert_close(X.mean(axis), torch.zeros_like(X.mean(axis)), atol=1e-5, rtol=0)
    torch.testing.assert_close(X.std(axis, correction=0), torch.ones_like(X.mean(axis)), atol=1e-5, rtol=0)
    assert Xt.mean().abs() > 1e-4
    rows = [{tuple(row) for row in part.flatten(1).tolist()} for part in (X, Xv, Xt)]
    assert [len(part) for part in rows] == [len(X), len(Xv), len(Xt)]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]
    shares = [shares_of(labels) for labels in (y, yv, yt)]
    torch.testing.assert_close(shares[0], shares[2], atol=0.01, rtol=0)


def shares_of(labels: Tensor) -> Tensor:
    return torch.bincount(labels) / len(labels)


def test_no_hyper_parameter_is_typed_in_and_the_demo_leaves_what_it_says(tmp_path: Path) -> None:
    said: list[str] = []
    threads = torch.get_num_threads()
    runs = demo(runs=tmp_path / "runs", report=tmp_path / "report.html", say=said.append)
    text = "\n".join(said)
    assert torch.get_num_threads() == threads
    for run in runs:
        assert str(run.verdict) in text
        assert str(run.folder) in text
        assert all(
            value == "auto" for name, value in run.info["asked"].items() if name in ("lr", "optimizer", "duration")
        )
        tests = [row["value"] for row in run.scores if row["split"] == "test"]
        assert len(tests) == 1
        assert tests[0] > 0.94
    assert str(tmp_path / "report.html") in text
    assert (tmp_path / "report.html").stat().st_size > 1e6


def test_accuracy_counts_the_hits() -> None:
    assert float(accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))) == 0.75
