"""The colours are those of the figures and of the report, and every text can be read on its ground (WCAG 2.2, AA)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fogline.dashboard
import fogline.plots
from fogline.plots.theme import DARK, LIGHT, Palette

STYLE = (Path(fogline.dashboard.__file__).parent / "static" / "style.css").read_text(encoding="utf-8")
REPORT = (Path(fogline.plots.__file__).parent / "report.css").read_text(encoding="utf-8")
TEXTS = ("ink", "faint", "mark", "good", "warn", "bad")
GROUNDS = ("page", "card")


def tokens(css: str, opening: str) -> dict[str, str]:
    """The colours that are declared in the block that begins so."""
    block = css.split(opening, 1)[1].split("}", 1)[0]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))


LOOKS = {
    "light": tokens(STYLE, ":root {"),
    "dark": tokens(STYLE, ':root[data-theme="dark"] {'),
    "system": tokens(STYLE, ':root[data-theme="system"] {'),
}


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_can_be_read(look: str, ground: str, text: str) -> None:
    assert contrast(LOOKS[look][text], LOOKS[look][ground]) >= 4.5


@pytest.mark.parametrize("look", LOOKS)
def test_the_words_of_a_button_can_be_read(look: str) -> None:
    assert contrast(LOOKS[look]["page"], LOOKS[look]["mark"]) >= 4.5
    assert contrast(LOOKS[look]["page"], LOOKS[look]["ink"]) >= 4.5  # the line that says that the dashboard is gone


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("line", ["first", "second", "third", "middle"])
def test_lines_stand_out(palette: Palette, line: str) -> None:
    assert contrast(getattr(palette, line), palette.page) >= 3


@pytest.mark.parametrize(("look", "palette"), [("light", LIGHT), ("dark", DARK), ("system", DARK)])
def test_pages_and_figures_have_the_same_colours(look: str, palette: Palette) -> None:
    colours = LOOKS[look]
    assert (colours["ink"], colours["faint"], colours["page"]) == (palette.ink, palette.faint, palette.page)
    assert (colours["line"], colours["mark"]) == (palette.grid, palette.first)


def test_pages_and_the_report_have_the_same_colours() -> None:
    report = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in REPORT.split(":root {")[1:3]]
    assert [report[0], report[1]] == [LOOKS["light"], LOOKS["dark"]]


def test_no_colour_is_written_out_but_the_tokens() -> None:
    rules = re.sub(r"--\w+: #[0-9a-f]{6};", "", STYLE)
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;\s,)])", rules)
    assert "http" not in STYLE
    assert "@import" not in STYLE
