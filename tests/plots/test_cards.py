"""Findings as cards, also of run folders whose rows are malformed or hostile."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fogline.dashboard
import fogline.plots
from fogline.plots.cards import finding_card, finding_cards
from run_folders import finding

NASTY = "\"'></td></article><script>alert(1)</script><img src=x onerror=alert(1)>"
TAGS = {"div", "article", "header", "h4", "h5", "span", "p", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
TAGS |= {"details", "summary", "strong", "em"}  # the entry of the documentation
SHEETS = (
    Path(fogline.plots.__file__).parent / "report.css",
    Path(fogline.dashboard.__file__).parent / "static" / "style.css",
)


class Outline(HTMLParser):
    """The tags, attributes and text of a card, each tag closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, set[str]] = {}
        self.open: list[str] = []
        self.words = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).update((value or "").split())

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def row(found: Any, **columns: Any) -> dict[str, Any]:
    """A row of the table ``findings``."""
    kept = {"id": 1, "step": 7, "cause": "dead_units", "severity": "serious", "confidence": 0.9}
    return kept | {"data": found if isinstance(found, str | bytes | None) else json.dumps(found)} | columns


def read(html: str) -> Outline:
    outline = Outline(html)
    assert set(outline.tags) <= TAGS
    assert set(outline.attributes) <= {"class", "role", "tabindex", "aria-label", "scope"}  # no style, no handler
    return outline


def spoilt(value: Any, by: Any) -> Any:
    """The same tree with every leaf replaced."""
    if isinstance(value, dict):
        return {name: spoilt(inner, by) for name, inner in value.items()}
    return [spoilt(inner, by) for inner in value] if isinstance(value, list) else by


LEAVES = [NASTY, None, True, 7, -1e308, float("nan"), float("inf"), 10**400, [], {}, [NASTY], {NASTY: NASTY}, ""]


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: str(leaf)[:12])
def test_whatever_stands_in_a_finding_is_text(leaf: Any) -> None:
    spoilt_row = row(spoilt(finding(), leaf), step=leaf, cause=leaf, severity=leaf, confidence=leaf)
    outline = read(finding_cards([spoilt_row]))
    assert outline.tags.count("article") == 1
    if leaf == NASTY:
        assert outline.words.count(NASTY) >= 10


@pytest.mark.parametrize("name", finding())
@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: str(leaf)[:12])
def test_a_part_of_another_form_does_not_hide_the_others(name: str, leaf: Any) -> None:
    outline = read(finding_card(finding() | {name: leaf}, step=3))
    parts = {"explanation": "second softmax", "evidence": "last operation", "remedy": "del model[4]", "trial": "0.91"}
    for other, said in parts.items():
        assert said in outline.words or other == name


@pytest.mark.parametrize(
    "data",
    [
        None,
        "",
        "{",
        "null",
        "[1, 2]",
        "7",
        '"words"',
        b"\xff\xfe",
        "[" * 100_000,
        '{"evidence": ' + "[" * 90 + "]" * 90 + "}",
    ],
    ids=lambda data: str(data)[:8],
)
def test_a_row_that_cannot_be_read_says_what_its_columns_say(data: str | bytes | None) -> None:
    words = read(finding_cards([row(data)])).words
    assert "dead_units" in words
    assert "90% sure" in words
    assert "step 7" in words


@pytest.mark.parametrize("name", ["step", "cause", "severity", "confidence", "data"])
def test_a_row_that_lacks_a_column_is_a_card(name: str) -> None:
    kept = {key: value for key, value in row(finding()).items() if key != name}
    outline = read(finding_cards([kept]))
    assert outline.attributes["class"] >= {"finding", "serious"}
    assert "90% sure" in outline.words


def test_another_reading_says_of_what() -> None:
    assert "another reading of lr_too_low" in read(finding_card(finding() | {"instead_of": "lr_too_low"})).words
    assert "another reading" not in read(finding_card(finding())).words


def test_the_gravest_come_first_and_the_surest_of_them() -> None:
    rows = [
        row(None, cause="c", severity="minor", confidence=1.0),
        row(None, cause="b", severity="fatal", confidence=float("nan")),
        row(None, cause="a", severity="fatal", confidence=0.5),
        row(None, cause="d", severity="unheard of", confidence=0.9),
    ]
    assert re.findall(r"<h4>(\w)</h4>", finding_cards(rows)) == ["a", "b", "c", "d"]
    assert finding_cards([]) == ""


def test_evidence_without_an_expectation_leaves_its_cell_empty() -> None:
    card = finding_card(finding(evidence=[{"signal": "share", "value": 0.25, "expected": ""}]))
    assert '<th scope="row">share</th><td>0.25</td><td></td>' in card


def test_what_was_not_tried_is_told_by_where_it_was_seen() -> None:
    untried = finding(trial=None)
    assert "fogline doctor" in finding_card(untried, step=3)
    assert "fogline doctor" not in finding_card(untried)
    assert "Not tried" in finding_card(untried)


def test_only_a_remedy_that_was_accepted_is_proven() -> None:
    for accepted, heading in ((True, "Proof"), (False, "Tried, without gain"), (None, "Tried, without gain")):
        card = finding_card(finding(trial={**finding()["trial"], "accepted": accepted}))
        assert f"<h5>{heading}</h5>" in card


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.name)
def test_both_stylesheets_know_every_class_of_a_card(sheet: Path) -> None:
    cards = finding_cards([row(finding(trial=None), severity=name) for name in ("fatal", "serious", "minor")])
    unmarked = {"minor"}  # the grey of what has no severity
    styled = set(re.findall(r"\.([a-z]+)\b", sheet.read_text(encoding="utf-8")))
    assert Outline(cards).attributes["class"] - unmarked <= styled
