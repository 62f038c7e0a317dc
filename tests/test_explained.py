"""Entries of the documentation, carried by findings."""

from __future__ import annotations

from fogline.doctor.finding import Evidence, Finding
from fogline.doctor.report import Report
from fogline.explained import entry, folded, names
from fogline.plots.cards import finding_card


def finding(cause: str) -> Finding:
    return Finding(cause, "serious", 0.9, (Evidence("seen", 1),), "Something is wrong.")


def test_a_finding_knows_its_entry() -> None:
    for cause in names():
        found = finding(cause)
        assert found.page == f"docs/troubleshooting.md#{cause}"
        assert found.to_dict()["page"] == found.page
        assert found.page in str(Report("faulty", (found,)))
        assert f"<summary>More about {cause}</summary>" in finding_card(found.to_dict())


def test_an_entry_ends_where_the_next_begins() -> None:
    assert "### " not in entry("lr_too_high").removeprefix("### lr_too_high")
    assert "## " not in entry("saddle").removeprefix("### saddle")


def test_a_folded_entry_stands_alone() -> None:
    for cause in names():
        inner = folded(cause)
        assert "<a " not in inner
        assert "<pre><code" in inner


def test_a_cause_that_nobody_knows_has_none() -> None:
    for cause in ("<b>", "", None, 3, ["lr_too_high"]):
        assert folded(cause) == ""
