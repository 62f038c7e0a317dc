"""For all tests with real trainers and loggers: no network, nothing written to the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "KERAS_BACKEND": "torch",
    "WANDB_MODE": "offline",
    "GIT_PYTHON_REFRESH": "quiet",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
OTHERS = (
    "lightning|lightning_utilities|lightning_fabric|pytorch_lightning|torchmetrics|transformers|accelerate|keras|"
    "tensorboard|mlflow|wandb|trackio|ultralytics|torch|torchvision|sqlalchemy|alembic|pydantic|google|huggingface_hub|"
    "uvicorn|starlette|websockets|httpx|click|_pytest"
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors in our code and in the tests; what the others warn of among themselves is theirs."""
    config.addinivalue_line("filterwarnings", f"ignore:::({OTHERS})($|\\.)")


def _let_torchvision_be_imported() -> None:
    """Its binary wants CUDA's libraries; without them the two operators that it looks for on import are not there."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
if not torch.cuda.is_available():
    _let_torchvision_be_imported()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
