from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fogline.plots import FIGURES, figures_of
from fogline.plots.report import write_figure, write_report
from fogline.run import Run
from fogline.verdict import Verdict
from run_folders import add_findings, finding, full_run, make_run, measured_rate, noisy_losses

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
    assert sum(tag == "figure" for tag, _ in outline.tags) == 4


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
    assert len(json.loads(figures[1])) == 4


def test_both_looks_share_their_data(tmp_path: Path) -> None:
    page, _ = read(Run.open(full_run(tmp_path / "run")).report(tmp_path / "run.html"))
    figures = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)
    assert figures is not None
    for figure in json.loads(figures[1]):
        assert len(figure["light"]["traces"]) == len(figure["dark"]["traces"]) == len(figure["data"])
        assert figure["light"]["layout"] != figure["dark"]["layout"]
        for name in ("light", "dark"):
            made = FIGURES[figure["id"].removeprefix("figure-0-")](Run.open(tmp_path / "run"), dark=name == "dark")
            together = [one | other for one, other in zip(figure["data"], figure[name]["traces"], strict=True)]
            assert together == json.loads(made.to_json())["data"]
            assert not any({"x", "y", "z"} & set(trace) for trace in figure[name]["traces"])


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
    assert [a["href"] for tag, a in outline.tags if tag == "a"] == ["#run-0", "#run-1"]


def test_several_runs_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    recipes = [{"optimizer": "adamw", "lr": rate, "seed": 0} for rate in (0.1, 0.25)]
    runs = [Run.open(make_run(tmp_path / f"run-{k}", recipe=recipe)) for k, recipe in enumerate(recipes)]
    page, _ = read(write_report(runs, tmp_path / "both.html"))
    together = Outline(page.split("<section")[0] + "</main></body></html>").text
    assert "lr" in together
    assert together[together.index("lr") + 1 :][:2] == ["0.1", "0.25"]
    assert "optimizer" not in together


def test_findings_are_cards_with_evidence_remedy_and_proof(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    unproven = finding("dead_units", "minor", trial=None, remedy=None, advice=NASTY, evidence=[])
    failed = finding("lr_too_low", "minor", trial={**finding()["trial"], "accepted": False})
    add_findings(folder, [(40, unproven), (50, failed), (120, finding())])
    _, outline = read(Run.open(folder).report(tmp_path / "run.html"))
    cards = [a["class"] for tag, a in outline.tags if tag == "article"]
    assert cards == ["finding serious", "finding minor", "finding minor"]  # the gravest first
    text = " ".join(" ".join(outline.text).split())
    for said in ("double_softmax", "90% sure step 120", "last operation of 4 softmax logits", "del model[4]", NASTY):
        assert said in text
    assert "Proof skill 0.225 as it is, 0.91 with the remedy: effect +0.69 (between +0.66 and +0.71) over 2" in text
    assert "Tried, without gain" in text
    assert "not tried. fogline doctor tries the remedy against a control." in text
    assert not [tag for tag, _ in outline.tags if tag == "img"]


def test_a_report_of_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", losses=[], held_out={}, verdict=None, notes=[], resolved={}, scores={})
    _, outline = read(Run.open(folder).report(tmp_path / "run.html"))
    assert "Training: no verdict yet." in " ".join(outline.text)


def test_figures_and_reports_are_made_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from fogline.run import Run; from fogline.plots.report import write_report\n"
        "write_report([Run.open(sys.argv[1])] * 2, sys.argv[2])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code, full_run(tmp_path / "run"), tmp_path / "run.html"], check=True)


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one run"):
        write_report([], tmp_path / "run.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_every_figure_without_a_complaint(tmp_path: Path) -> None:
    runs = [Run.open(full_run(tmp_path / "run")), Run.open(make_run(tmp_path / "other"))]
    path = write_report(runs, tmp_path / "run.html")
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    flags += f" --disable-sync --no-first-run --user-data-dir={tmp_path / 'profile'} --virtual-time-budget=3000"
    command = ["chromium", *flags.split(), "--enable-logging=stderr", "--v=0", "--dump-dom", f"file://{path}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    drawn = re.findall(r'id="figure-0-(\w+)"[^>]*class="[^"]*js-plotly-plot', shown.stdout)
    left_out = {"data_map", "landscape", "landscape_3d"}  # of what these runs did not record
    assert drawn == figures_of(runs[0]) == [name for name in FIGURES if name not in left_out]
    assert re.search(r'id="figure-compare"[^>]*class="[^"]*js-plotly-plot', shown.stdout)
