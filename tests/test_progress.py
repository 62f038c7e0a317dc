from __future__ import annotations

import io
import time

import pytest

from fogline.progress import ProgressReport, bar, describe, make_progress, speed


def test_off_draws_nothing_and_imports_no_drawing(capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress(False, "title") as progress:
        progress(ProgressReport(step=1, steps=2, loss=0.5))
    assert capsys.readouterr() == ("", "")


def test_nobody_looking_on_means_off(capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress(None, "title") as progress:
        progress(ProgressReport(step=1))
    assert capsys.readouterr() == ("", "")


def test_a_function_is_called_with_every_report() -> None:
    seen: list[int] = []
    with make_progress(lambda report: seen.append(report.step)) as progress:
        for step in range(5):
            progress(ProgressReport(step=step))
    assert seen == [0, 1, 2, 3, 4]


def test_the_bar_shows_the_last_report_and_the_title_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with bar("[bold]digits") as progress:
        progress(ProgressReport(step=10, steps=100, loss=2.0, lr=0.01, examples_per_second=12_345))
        progress(ProgressReport(step=50, steps=100, loss=1.0, lr=0.01, examples_per_second=12_345, note="validating"))
    shown = screen.getvalue()
    for words in ("[bold]digits", "step 50/100", "loss 1.000", "12.3k ex/s", "validating", "50%"):
        assert words in shown


def test_a_thousand_reports_are_drawn_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings: list[ProgressReport] = []
    monkeypatch.setattr("fogline.progress._Painter._draw", lambda painter, report: drawings.append(report))
    monkeypatch.setattr("sys.stderr", io.StringIO())
    begin = time.perf_counter()
    with bar("x") as progress:
        for step in range(1000):
            progress(ProgressReport(step=step))
        seconds = time.perf_counter() - begin
    assert len(drawings) <= 2 + 10 * seconds
    assert drawings[-1].step == 999


def test_a_run_of_unknown_length_has_no_percentage() -> None:
    assert ProgressReport(step=3).percent is None
    assert describe(ProgressReport(step=3)) == "step 3"
    assert ProgressReport(step=3, steps=6).percent == 50
    assert ProgressReport(step=3, fraction=0.25).percent == 25


@pytest.mark.parametrize(("value", "text"), [(2.5e6, "2.5M ex/s"), (999.4, "999 ex/s"), (float("inf"), "")])
def test_speeds(value: float, text: str) -> None:
    assert speed(value) == text
