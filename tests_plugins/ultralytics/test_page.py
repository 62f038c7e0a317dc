"""The programs of docs/ultralytics.md run, on drawn shapes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from test_docs import execute, programs

PAGE = "docs/ultralytics.md"


@pytest.mark.parametrize(("line", "code"), programs(PAGE), ids=lambda value: str(value)[:20])
def test_the_code_runs(
    shapes: Path,
    line: int,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shapes / "boxes", tmp_path / "shapes" / "boxes")
    text = (shapes / "boxes.yaml").read_text().replace(str(shapes), str(tmp_path / "shapes"))
    (tmp_path / "shapes" / "boxes.yaml").write_text(text)
    execute(PAGE, line, code, {"__name__": "__main__"})
    assert capsys.readouterr().out
