"""Trainers that are not installed here: modules of their names with as much in them as the plug-ins ask for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn


class FakeLightningModule(nn.Module):
    """As Lightning's: its forward is there to be overridden."""

    automatic_optimization = True

    def forward(self, *given: Any) -> Any:
        raise NotImplementedError


def module(name: str, **names: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(names)
    return made


FAKES = {
    "lightning": {"lightning": {}, "lightning.pytorch": {"Callback": object, "LightningModule": FakeLightningModule}},
    "transformers": {"transformers": {"TrainerCallback": object}},
    "keras": {
        "keras": {
            "callbacks": module("keras.callbacks", Callback=object),
            "backend": module("keras.backend", backend=lambda: "torch"),
        }
    },
}


@pytest.fixture
def plugin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The plug-in named by the parameter, made with a fake trainer."""
    name = request.param
    for fake, names in FAKES[name].items():
        monkeypatch.setitem(sys.modules, fake, module(fake, **names))
    monkeypatch.delitem(sys.modules, f"fogline.plugins.{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    yield import_module(f"fogline.plugins.{name}")
    sys.modules.pop(f"fogline.plugins.{name}", None)
