from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fogline.plots.report import write_figure, write_report
from fogline.run import Run
from fogline.verdict import Verdict
from run_folders import make_run, measured_rate, noisy_losses

NASTY = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""


class Outline(HTMLParser):
    """The tags, attributes and text of a page."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(path: Path) -> tuple[str, Outline]:
    page = path.read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.open == []
    return page, outline


def test_the_report_says_what_happened_and_what_to_do(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "digits", losses=noisy_losses(500), events=[(12, "skipped", "the step was refused")])
    _, outline = read(Run.open(folder).report(tmp_path / "new" / "run.html"))
    text = " ".join(outline.text)
    for words in (
        str(Verdict.NOISE_FLOOR),
        "digits",
        "held-out accuracy",
        "measured by a sweep",
        "the labels are numbers from 0 to 9",
        "the step was refused",
        "2.13.0",
        "1 min 0 s",
    ):
        assert words in text
    assert sum(tag == "figure" for tag, _ in outline.tags) == 3


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    page, outline = read(Run.open(make_run(tmp_path / "run")).report(tmp_path / "run.html"))
    assert not [tag for tag, attributes in outline.tags if "src" in attributes or "href" in attributes]
    policy = next(a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert page.count("plotly.js v") == 1


def test_text_of_a_run_is_never_markup(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "a <i>run",
        events=[(1, NASTY, NASTY)],
        task={"model": NASTY},
        notes=[NASTY],
        asked={NASTY: NASTY},
        recipe={NASTY: NASTY},
        resolved={NASTY: {"value": NASTY, "why": NASTY}},
        verdict=None,
        scores={NASTY: 1.0},
    )
    page, outline = read(write_report(Run.open(folder), tmp_path / "run.html"))
    assert not [tag for tag, _ in outline.tags if tag in ("img", "i")]
    assert sum(tag == "script" for tag, _ in outline.tags) == 3
    assert NASTY in " ".join(outline.text)
    figures = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert figures is not None
    assert len(json.loads(figures[1])) == 3


def test_both_looks_share_their_data(tmp_path: Path) -> None:
    page, _ = read(Run.open(make_run(tmp_path / "run")).report(tmp_path / "run.html"))
    figures = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)
    assert figures is not None
    for figure in json.loads(figures[1]):
        assert len(figure["light"]["traces"]) == len(figure["dark"]["traces"]) == len(figure["data"])
        assert figure["light"]["layout"] != figure["dark"]["layout"]


def test_a_measured_rate_is_a_figure_with_its_warnings_in_the_recipe(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "run", resolved=measured_rate()))
    page, outline = read(run.report(tmp_path / "run.html"))
    assert 'id="figure-0-rate"' in page
    assert "between 0.0025 and 1; warning: noise: the winner's gain is uncertain" in " ".join(outline.text)
    unmeasured, _ = read(Run.open(make_run(tmp_path / "other")).report(tmp_path / "other.html"))
    assert 'id="figure-0-rate"' not in unmeasured


def test_one_figure_is_a_page_of_its_own(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "run"))
    path = write_figure(partial(run.plot, "loss"), tmp_path / "new" / "loss.html", title="<Loss>", caption="a & b")
    page, outline = read(path)
    assert {"<Loss>", "a & b"} <= set(outline.text)
    assert "default-src 'none'" in page
    assert sum(tag == "figure" for tag, _ in outline.tags) == 1


def test_several_runs_go_into_one_report(tmp_path: Path) -> None:
    runs = [Run.open(make_run(tmp_path / name)) for name in ("first", "second")]
    _, outline = read(write_report(runs, tmp_path / "both.html", title="Both"))
    assert [a["id"] for tag, a in outline.tags if tag == "h2"] == ["run-0", "run-1"]


def test_a_report_of_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", losses=[], held_out={}, verdict=None, notes=[], resolved={}, scores={})
    _, outline = read(Run.open(folder).report(tmp_path / "run.html"))
    assert "Training: no verdict yet." in " ".join(outline.text)


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one run"):
        write_report([], tmp_path / "run.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_every_figure_without_a_complaint(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", events=[(3, "note", "a word")], resolved=measured_rate())
    path = Run.open(folder).report(tmp_path / "run.html")
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    flags += f" --disable-sync --no-first-run --user-data-dir={tmp_path / 'profile'} --virtual-time-budget=3000"
    command = ["chromium", *flags.split(), "--enable-logging=stderr", "--v=0", "--dump-dom", f"file://{path}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    drawn = re.findall(r'id="figure-0-(\w+)"[^>]*class="[^"]*js-plotly-plot', shown.stdout)
    assert drawn == ["loss", "lr", "gradient", "rate"]
