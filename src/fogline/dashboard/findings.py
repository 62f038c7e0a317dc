"""What is wrong with a run: the part of its page with a card for each finding."""

from __future__ import annotations

from fogline.dashboard.markup import section
from fogline.dashboard.thinned import View
from fogline.plots.cards import finding_cards


def findings_section(view: View) -> str:
    """The findings of a run, the gravest first; an empty part where there are none."""
    return section("findings", "Findings", finding_cards(view.findings, level=3))
