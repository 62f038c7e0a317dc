"""Exports to OpenVINO and ExecuTorch, where they are installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import fogline
from fogline.edge.needs import TARGETS, require

SUFFIXES = {"openvino": ".xml", "executorch": ".pte"}


@pytest.mark.parametrize(("target", "bits"), [("openvino", 8), ("executorch", 8), ("executorch", 4)])
def test_the_file_does_what_the_model_did(target: str, bits: int, tmp_path: Path) -> None:
    missing = [name for name in TARGETS[target] if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'fogline[{target}]'")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 32, generator=generator)
    targets = (inputs[:, 0] > inputs[:, 1]).long()
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))
    run = fogline.fit(
        model, (inputs, targets), loss=nn.CrossEntropyLoss(), valid=(inputs, targets), runs=tmp_path, progress=False,
        optimizer="adamw", lr=1e-2, batch_size=32, duration="5ep", step="eager",
    )  # fmt: skip
    report = fogline.export(run, tmp_path / f"model{SUFFIXES[target]}", target, bits, qat=None)
    assert report.scores["runtime"]["accuracy"] == pytest.approx(report.scores["float"]["accuracy"], abs=0.05)
    assert report.differences["converted - runtime"].steps < 3
    assert report.latency is not None


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_missing_is_named_with_the_command(target: str) -> None:
    missing = [name for name in TARGETS[target] if find_spec(name) is None]
    if not missing:
        pytest.skip(f"everything that {target} needs is installed")
    with pytest.raises(ModuleNotFoundError, match=rf"{missing[0]}.*pip install 'fogline\[{target}\]'"):
        require(target)
