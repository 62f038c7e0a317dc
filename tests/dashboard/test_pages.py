"""What the pages say, and that no text of a run is ever markup."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from safetensors.numpy import save_file

from dashboard.conftest import Served
from fogline.plots.cards import finding_cards
from fogline.record.store import Store, read_info
from fogline.run import Run
from fogline.verdict import Verdict
from run_folders import make_run, measured_rate, noisy_losses

NASTY = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\"'><svg/onload=alert(2)>&amp;{{7*7}}"
NAME = "a <b onclick=alert(1)>'\" & run"
VOID = ("meta", "img", "br", "link", "input", "path", "polyline")
TAGS = {
    "html", "head", "meta", "title", "link", "script", "body", "a", "header", "svg", "path", "polyline", "span", "nav",
    "label", "select", "option", "main", "p", "h1", "h2", "h3", "h4", "section", "div", "dl", "dt", "dd", "time",
    "article", "ul", "li", "strong", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption",
    "details", "summary", "form", "textarea", "button", "input",
}  # fmt: skip


class Outline(HTMLParser):
    """The tags, attributes and text of a page; every tag must be closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words += data + " "


def read(served: Served, path: str) -> Outline:
    answer = served.ask(path)
    assert answer.status == 200, answer.text
    return Outline(answer.text)


def finding(text: str = "nan_in_data", **more: object) -> dict[str, object]:
    evidence = [
        {"signal": text, "value": text, "expected": text, "step": 3, "layer": text},
        {"signal": "share", "value": 0.25},
    ]
    return {
        "cause": text, "severity": "serious", "confidence": 0.97, "explanation": text, "evidence": evidence,
        "remedy": {"title": text, "patch": text}, "trial": None, "advice": text, **more,
    }  # fmt: skip


def put_finding(folder: Path, found: dict[str, object]) -> None:
    store = Store(folder)
    store.finding(3, found, str(found["cause"]))
    store.close()


@pytest.fixture(scope="session")
def nasty(dashboard: Served) -> str:
    """The address of a run all of whose texts try to be markup."""
    folder = make_run(
        dashboard.runs / NAME,
        events=[(1, NASTY, NASTY)],
        task={"model": NASTY, NASTY: NASTY},
        notes=[NASTY],
        asked={NASTY: NASTY},
        recipe={NASTY: NASTY, "lr": NASTY, "optimizer": NASTY},
        resolved={
            NASTY: {"value": NASTY, "why": NASTY},
            "lr": measured_rate()["lr"] | {"why": NASTY, "warnings": [NASTY]},
        },
        scores={NASTY: 1.0},
        versions={NASTY: NASTY},
        started=NASTY,
    )
    info = read_info(folder)
    info["verdict"] = {"name": NASTY, "message": NASTY, "evidence": {NASTY: NASTY}}
    (folder / "run.json").write_text(json.dumps(info))
    trial = {
        "intervention": NASTY,
        "metric": NASTY,
        "effect": NASTY,
        "interval": [NASTY, NASTY],
        "seeds": [0],
        "steps": NASTY,
    }
    put_finding(folder, finding(NASTY, severity=NASTY, trial=trial))
    store = Store(folder)
    store.scores(199, NASTY, {NASTY: 1.0})
    store.close()
    (folder / "examples").mkdir()
    save_file({NASTY: np.zeros(3, dtype=np.float16)}, folder / "examples" / "epoch-0000.safetensors")
    return "/runs/" + quote(NAME, safe="")


@pytest.mark.parametrize("place", ["", "/rate", "/landscape", "/examples", "runs", "compare", "chosen"])
def test_no_text_of_a_run_is_markup(dashboard: Served, nasty: str, place: str) -> None:
    make_run(dashboard.runs / "other")
    whole = {"runs": "/", "compare": "/compare", "chosen": f"/compare?run={quote(NAME)}&run=other"}
    outline = read(dashboard, whole.get(place, nasty + place))
    assert {tag for tag, _ in outline.tags} <= TAGS
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    scripts = [attributes.get("src") or "" for tag, attributes in outline.tags if tag == "script"]
    assert scripts
    assert all(source.startswith("/static/") for source in scripts)
    assert NAME in outline.words
    if place in ("", "/rate", "/examples"):
        assert NASTY in outline.words


def test_parts_and_rows_are_escaped_too(dashboard: Served, nasty: str) -> None:
    parts = dashboard.ask(f"{nasty}/parts").json()["parts"]
    rows = dashboard.ask(f"/rows?run={quote(NAME)}").json()
    for html in (*parts.values(), *rows.values()):
        outline = Outline(f"<html>{html}</html>")
        assert {tag for tag, _ in outline.tags} <= TAGS
        assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]


def test_a_figure_says_nothing_as_html(dashboard: Served, nasty: str) -> None:
    answer = dashboard.ask(f"{nasty}/figures/loss")
    assert answer.headers["content-type"] == "application/json"
    assert answer.status in (200, 422)


def test_a_run_says_what_happened_what_was_found_and_what_to_do(dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "told", events=[(7, "skipped", "the step was refused")])
    put_finding(folder, finding("double_softmax", explanation="The softmax is applied twice."))
    words = read(dashboard, "/runs/told").words
    for said in (
        str(Verdict.NOISE_FLOOR),
        "double_softmax",
        "97% sure",
        "The softmax is applied twice.",
        "0.25",
        "not tried",
        "the step was refused",
        "measured by a sweep",
        "valid accuracy",
        "held-out accuracy",
        "the labels are numbers from 0 to 9",
    ):
        assert said in words


def test_a_proof_is_told_with_its_control(dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "proven")
    trial = {
        "intervention": "drop the rows",
        "metric": "held-out accuracy",
        "effect": 0.125,
        "interval": [0.1, 0.15],
        "without": [0.5, 0.75, 0.625],
        "with_it": [0.75, 0.75, 0.75],
        "seeds": [0, 1, 2],
        "steps": 400,
        "accepted": True,
    }
    put_finding(folder, finding(trial=trial))
    words = read(dashboard, "/runs/proven").words
    assert "held-out accuracy 0.625 as it is, 0.75 with the remedy: effect +0.12 (between +0.1 and +0.15)" in words
    assert "over 3 seeds of 400 steps" in words


def test_a_finding_is_the_same_card_as_in_the_report(dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "carded")
    for cause, severity in (("dead_units", "minor"), ("nan_in_data", "fatal"), (NASTY, NASTY)):
        put_finding(folder, finding(cause, severity=severity))
    cards = finding_cards(Run.open(folder).findings, level=3)
    assert cards.count("<article") == 3
    assert cards in dashboard.ask("/runs/carded").text


def test_every_figure_of_the_run_has_its_place_and_its_data(dashboard: Served) -> None:
    make_run(dashboard.runs / "figures", resolved=measured_rate())
    overview = read(dashboard, "/runs/figures")
    sources = [attributes["data-figure"] for _, attributes in overview.tags if "data-figure" in attributes]
    assert {"/runs/figures/figures/loss", "/runs/figures/figures/lr", "/runs/figures/figures/gradient"} <= set(sources)
    rate = read(dashboard, "/runs/figures/rate")
    sources += [attributes["data-figure"] for _, attributes in rate.tags if "data-figure" in attributes]
    assert "/runs/figures/figures/rate" in sources
    for source in sources:
        for look in ("light", "dark"):
            figure = dashboard.ask(f"{source}?look={look}").json()
            assert figure["data"]
            assert figure["layout"]["title"]["text"]


def test_many_who_ask_at_once_get_the_same(dashboard: Served) -> None:
    make_run(dashboard.runs / "asked-at-once", losses=noisy_losses(6000))
    sources = [
        f"/runs/asked-at-once/figures/{name}?look={look}" for name in ("loss", "lr") for look in ("light", "dark")
    ]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(dashboard.ask, sources * 8))
    assert {answer.status for answer in answers} == {200}
    for at, source in enumerate(sources):
        assert {answer.text for answer in answers[at :: len(sources)]} == {dashboard.ask(source).text}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("given", {"resolved": {}}, "The learning rate was given: 0.01235."),
        ("open", {"resolved": {}, "recipe": {"lr": "auto"}}, "has not been measured yet"),
        ("own", {"resolved": {}, "recipe": {}}, "is its own"),
    ],
)
def test_an_empty_learning_rate_says_what_to_do(dashboard: Served, name: str, changes: dict, said: str) -> None:
    make_run(dashboard.runs / f"rate-{name}", **changes)
    words = read(dashboard, f"/runs/rate-{name}/rate").words
    assert said in words
    assert "fogline lr TASK.py" in words


def test_an_empty_landscape_names_the_command(dashboard: Served) -> None:
    make_run(dashboard.runs / "flat")
    assert "fogline landscape flat" in read(dashboard, "/runs/flat/landscape").words


def test_examples_are_those_of_the_folder(dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "with-examples")
    assert "This run recorded no examples." in read(dashboard, "/runs/with-examples/examples").words
    (folder / "examples").mkdir()
    for epoch in range(2):
        columns = {
            "loss": np.array([1.0, 3.0], dtype=np.float16) / (epoch + 1),
            "correct": np.array([1, 0], dtype=np.uint8),
        }
        save_file(columns, folder / "examples" / f"epoch-{epoch:04}.safetensors")
    (folder / "examples" / "epoch-0002.safetensors").write_bytes(b"cut")
    words = read(dashboard, "/runs/with-examples/examples").words
    for said in ("epoch-0000", "epoch-0001", "loss", "correct", " 2 ", " 1 ", "0.5"):
        assert said in words


def test_no_runs_says_how_to_get_some(dashboard: Served, tmp_path: Path) -> None:
    from fogline.dashboard.runs import Folder
    from fogline.dashboard.runs_page import compare_page, runs_page

    assert "fogline demo" in runs_page(Folder(tmp_path))
    assert "no such folder" in runs_page(Folder(tmp_path / "none"))
    assert "takes two runs" in compare_page(Folder(tmp_path), [])


def test_two_recipes_are_compared_field_by_field(dashboard: Served) -> None:
    make_run(dashboard.runs / "compared-a", recipe={"optimizer": "sgd", "lr": 0.5, "seed": 0, "ema": 0.9})
    make_run(dashboard.runs / "compared-b", recipe={"optimizer": "sgd", "lr": 0.25, "seed": 0})
    words = read(dashboard, "/compare?run=compared-a&run=compared-b").words
    for said in ("optimizer", "lr", "0.5", "0.25", "ema", "0.9", "held-out accuracy", "last training loss"):
        assert said in words
    assert " seed " not in words


def test_a_run_that_trains_can_be_stopped_and_one_that_ended_cannot(dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "going-on", verdict=None)
    assert "Stop gently" in read(dashboard, "/runs/going-on").words
    assert dashboard.ask("/runs/going-on/stop", "POST").status == 202
    assert (folder / "stop").exists()
    assert "Asked to stop" in read(dashboard, "/runs/going-on").words
    (folder / "stop").unlink()
    make_run(dashboard.runs / "ended")
    assert "Stop gently" not in read(dashboard, "/runs/ended").words
    refused = dashboard.ask("/runs/ended/stop", "POST")
    assert refused.status == 409
    assert not (dashboard.runs / "ended" / "stop").exists()


def test_a_run_that_was_killed_is_not_taken_for_training(dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "killed", verdict=None)
    for file in folder.iterdir():
        os.utime(file, (time.time() - 3600,) * 2)
    words = read(dashboard, "/runs/killed").words
    assert "fogline resume killed" in words
    assert "1 h ago" in words
    assert "Stop gently" not in words
    assert dashboard.ask("/runs/killed/stop", "POST").status == 409


def test_every_query_that_is_offered_has_an_answer(dashboard: Served) -> None:
    make_run(dashboard.runs / "queried", events=[(3, "note", "a word")])
    overview = read(dashboard, "/runs/queried")
    offered = [attributes["data-query"] for _, attributes in overview.tags if "data-query" in attributes]
    assert len(offered) > 3
    for query in offered:
        assert dashboard.sql("queried", str(query)).status == 200


def test_a_run_that_has_hardly_begun_has_a_page(dashboard: Served) -> None:
    folder = dashboard.runs / "begun"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"name": "begun", "verdict": None, "recipe": {"lr": "auto"}}))
    assert "Preparing" in read(dashboard, "/runs/begun").words
    assert dashboard.ask("/runs/begun/figures/loss").status == 200
    assert not (folder / "run.sqlite").exists()
