"""In a real browser: a lasso, keys, the dialog, SQL; what people do on the page of examples is what the run keeps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dashboard.conftest import Served
from dashboard.test_browser import WIDTH
from fogline._examples.edits import Edits
from fogline.dashboard.example_table import Tables
from fogline.record.previews import Previews, write_previews
from fogline.record.store import read_info, write_json
from run_folders import add_examples, make_run, write_epoch

Visit = Callable[..., Any]
COUNT, WRONG = 60, [3, 14, 27]
PLOT = """() => {
  const plot = document.querySelector("#map .plot");
  const { xaxis, yaxis } = plot._fullLayout;
  const at = plot.getBoundingClientRect();
  return [at.x + xaxis._offset, at.y + yaxis._offset, xaxis._length, yaxis._length];
}"""
"""Where the plot begins, how wide and how high it is."""


@pytest.fixture
def folder(dashboard: Served, request: pytest.FixtureRequest) -> Path:
    """A run of its own for each test, with pictures."""
    name = f"br-{abs(hash(request.node.name)) % 10**8}"
    made = add_examples(make_run(dashboard.runs / name), COUNT, wrong=WRONG)
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1)).astype(np.uint8)
    write_previews(made, Previews("images", np.arange(COUNT), pixels))
    return made


def opened(visit: Visit, folder: Path, **how: Any) -> Any:
    """The page when the map is drawn and the first list is there."""
    page = visit(f"/runs/{folder.name}/examples", **how)
    page.locator("#map .plot.drawn").wait_for(timeout=30_000)
    page.locator("#shown [data-example]").first.wait_for(timeout=30_000)
    return page


def shown(page: Any) -> list[int]:
    return [int(card.get_attribute("data-example")) for card in page.locator("#shown [data-example]").all()]


def said(page: Any, words: str) -> None:
    page.locator("#count", has_text=words).wait_for(timeout=30_000)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_draws_without_a_complaint_at_every_width(visit: Visit, folder: Path, width: int, scheme: str) -> None:
    page = opened(visit, folder, width=width, scheme=scheme)
    wide, window = page.evaluate(WIDTH)
    assert wide <= window
    assert sorted(shown(page)) == WRONG
    broken = "() => [...document.querySelectorAll('#shown img')].filter((i) => i.complete && !i.naturalWidth).length"
    assert page.evaluate(broken) == 0


def test_a_lasso_chooses_on_the_server_what_lies_in_it(visit: Visit, folder: Path) -> None:
    page = opened(visit, folder)
    table = Tables().of(folder).table
    left, top, wide, high = page.evaluate(PLOT)
    page.mouse.move(left + 2, top + high / 2)
    page.mouse.down()
    for x, y in ((wide - 2, high / 2), (wide - 2, high - 2), (2, high - 2), (2, high / 2)):
        page.mouse.move(left + x, top + y, steps=4)
    page.mouse.up()
    said(page, "in the region")
    found = shown(page)
    assert sorted(found[:3]) == WRONG
    assert all(table["confidence"][example] < 0.56 for example in found)
    page.get_by_label("box").check()
    page.get_by_label("Show").select_option("all")
    said(page, "1 to 24 of 60")


def test_a_region_by_numbers_is_the_same_without_a_mouse(visit: Visit, folder: Path) -> None:
    page = opened(visit, folder)
    page.get_by_text("Choose a region by numbers").click()
    page.locator("[data-to='1']").fill("0.5")
    page.locator("[data-to='1']").press("Enter")
    confidence = Tables().of(folder).table["confidence"]
    said(page, f"of {int((confidence < 0.5).sum())} in the region")
    assert set(shown(page)) == set(np.flatnonzero(confidence < 0.5)[:24].tolist())


def test_keys_alone_move_decide_and_undo(visit: Visit, folder: Path) -> None:
    page = opened(visit, folder)
    edits = Edits(folder)
    first, second, third = shown(page)
    page.locator("#list").focus()
    while page.evaluate("() => document.activeElement.dataset.example ?? ''") == "":
        page.keyboard.press("Tab")
    page.keyboard.press("d")
    page.locator(f"[data-example='{first}'].drop").wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    page.locator(f"[data-example='{second}'].relabel").wait_for()
    page.keyboard.press("End")
    page.keyboard.press("k")
    page.locator(f"[data-example='{third}'].keep").wait_for()
    assert (edits.dropped, edits.relabelled) == ([first], {second: float((second + 1) % 3)})
    page.keyboard.press("u")
    page.locator(f"[data-example='{third}']:not(.keep)").wait_for()
    assert edits.counts() == {"relabel": 1, "drop": 1, "keep": 0}
    page.keyboard.press("Home")
    page.keyboard.press("d")  # once more takes it back
    page.locator(f"[data-example='{first}']:not(.drop)").wait_for()
    assert edits.dropped == []
    # The counts come with the page's own answer, a moment after the mark of the example.
    page.wait_for_function(
        "() => document.querySelector('#facts').innerText.replace(/[^a-z0-9]+/g, ' ')"
        ".endsWith('relabelled 1 left out 0 kept 0')"
    )
    assert "--retrain" in page.locator("#retrain").inner_text()


def test_the_dialog_shows_one_example_and_gives_it_any_label(visit: Visit, folder: Path) -> None:
    page = opened(visit, folder)
    page.locator("[data-example]").first.focus()
    example = shown(page)[0]
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    page.locator("#curve.drawn").wait_for()
    assert f"{example}" in dialog.inner_text()
    assert "probability of a wrong label" in dialog.inner_text()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.locator("[data-example] img").first.click()
    dialog.wait_for()
    page.locator("#new-label").select_option("2")
    dialog.get_by_role("button", name="relabel").click()
    dialog.wait_for(state="hidden")
    page.locator(f"[data-example='{example}'].relabel").wait_for()
    assert Edits(folder).relabelled == {example: 2.0}


def test_all_on_a_page_are_decided_and_undone_at_once(visit: Visit, folder: Path) -> None:
    page = opened(visit, folder)
    page.get_by_role("button", name="relabel as likely").click()
    page.locator("#shown .relabel").nth(2).wait_for()
    assert Edits(folder).relabelled == {example: float((example + 1) % 3) for example in WRONG}
    page.get_by_label("Show").select_option("all")
    said(page, "of 60")
    page.get_by_role("button", name="leave out").first.click()
    page.locator("#shown .drop").nth(23).wait_for()
    assert len(Edits(folder).dropped) == 24
    page.get_by_role("button", name="undo the last").click()
    page.locator("#shown .drop").first.wait_for(state="detached")
    assert len(Edits(folder)) == 3
    page.get_by_role("button", name="after").click()
    said(page, "25 to 48 of 60")


def test_the_answer_to_a_query_is_looked_at_and_a_query_is_saved(visit: Visit, folder: Path) -> None:
    page = opened(visit, folder)
    query = "select example from examples where target_class = 'dog' order by example limit 5"
    page.get_by_label("SQL", exact=True).fill(query)
    page.keyboard.press("Control+Enter")
    said(page, "1 to 5 of 5 of the answer")
    assert shown(page) == [2, 5, 8, 11, 14]
    page.get_by_role("button", name="save this query").click()
    page.reload()
    page.locator("#shown [data-example]").first.wait_for()
    page.locator("#saved button").first.click()
    said(page, "of the answer")
    page.get_by_role("button", name="forget").click()
    assert page.locator("#saved button").count() == 0


def test_the_colour_is_chosen_and_what_is_decided_is_seen_on_the_map(visit: Visit, folder: Path) -> None:
    page = opened(visit, folder)
    groups = "() => document.querySelector('#map .plot').data.map((trace) => trace.name)"
    page.get_by_label("Colour").select_option("target")
    page.wait_for_function("() => document.querySelector('#map .plot').data.length === 3")
    assert page.evaluate(groups) == ["bird", "cat", "dog"]
    page.get_by_label("Colour").select_option("edit")
    page.wait_for_function("() => document.querySelector('#map .plot').data[0].name !== 'bird'")
    page.locator("#shown [data-edit='drop']").first.click()
    page.wait_for_function("() => document.querySelector('#map .plot').data.length === 2")
    assert page.evaluate(groups) == ["none", "drop"]


def test_an_epoch_that_comes_is_shown(visit: Visit, folder: Path) -> None:
    write_json(folder / "run.json", read_info(folder) | {"verdict": None})
    page = opened(visit, folder)
    columns = {name: np.full(COUNT, 0.5, np.float16) for name in ("loss", "margin", "confidence", "correct")}
    columns |= {"gradient_norm": columns["loss"], "predicted": np.zeros(COUNT, np.int16)}
    write_epoch(folder, 8, 90, columns)
    page.locator("#facts", has_text=re.compile(r"epochs recorded\s*9")).wait_for(timeout=30_000)


def test_a_page_of_a_run_that_has_none_yet_comes_again(visit: Visit, dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "br-later", verdict=None)
    page = visit("/runs/br-later/examples")
    page.get_by_text("This run recorded no examples.").wait_for()
    add_examples(folder)
    page.locator("#map").wait_for(timeout=30_000)
    page.locator("#shown [data-example]").first.wait_for(timeout=30_000)
