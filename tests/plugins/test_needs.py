"""What is said where a package of a plug-in is not installed."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from fogline.errors import needed


@pytest.mark.parametrize("name", ["lightning", "transformers", "keras"])
def test_a_missing_trainer_names_the_command_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"fogline.plugins.{name}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"{name}.*pip install 'fogline\[{name}\]'"):
        import_module(f"fogline.plugins.{name}")


def test_what_is_there_is_given() -> None:
    assert needed("json.decoder", "json") is sys.modules["json.decoder"]


def test_what_a_package_that_is_there_lacks_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfthere.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'surely_not_installed'"):
        needed("halfthere", "halfthere")
