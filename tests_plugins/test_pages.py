"""The programs of the documentation that need trainers and loggers run, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_docs import execute, others, pages, programs

PROGRAMS = [
    pytest.param(page, line, code, id=f"{page}:{line}")
    for page in pages()
    if not page.startswith("docs/ko/")
    for line, code in programs(page)
    if others(code) - {"ultralytics"}
]


def test_there_are_programs() -> None:
    assert {param.values[0] for param in PROGRAMS} >= {"docs/trainers.md", "docs/loggers.md"}


@pytest.mark.parametrize(("page", "line", "code"), PROGRAMS)
def test_the_code_runs(
    page: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    execute(page, line, code, {"__name__": "__main__"})
    assert capsys.readouterr().out
