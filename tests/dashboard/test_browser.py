"""In a real headless browser: every page draws without a complaint, follows a run, and can be used by keys alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dashboard.conftest import Served
from dashboard.test_pages import NASTY, finding, put_finding
from fogline.record.store import Store, read_info
from fogline.verdict import Verdict
from run_folders import make_run, measured_rate, noisy_losses

Visit = Callable[..., Any]
WIDTH = "() => [document.documentElement.scrollWidth, window.innerWidth]"
PAGES = {
    "runs": "/",
    "overview": "/runs/seen",
    "long": "/runs/seen-long",
    "begun": "/runs/seen-begun",
    "rate": "/runs/seen/rate",
    "no rate": "/runs/seen-long/rate",
    "landscape": "/runs/seen/landscape",
    "examples": "/runs/seen/examples",
    "no examples": "/runs/seen-long/examples",
    "choose": "/compare",
    "compare": "/compare?run=seen&run=seen-long",
}
TRAINING = """
import sys, time
from pathlib import Path
from run_folders import make_run
from fogline.record.store import Store, read_info
folder = make_run(Path(sys.argv[1]), losses=[1.0] * 10, held_out={}, verdict=None, scores={})
print("begun", flush=True)
store, step = Store(folder), 10
for line in sys.stdin:
    store.steps([(k, 0.0, 0, 0.0, 5.0, 0.1, 1.0, *(None,) * 4) for k in range(step, step + 10)])
    store.flush()
    step += 10
store.close()
"""


@pytest.fixture(scope="module")
def seen(dashboard: Served) -> None:
    """Runs with everything that a page can show."""
    folder = make_run(
        dashboard.runs / "seen", losses=noisy_losses(300), resolved=measured_rate(), events=[(3, "note", NASTY)]
    )
    put_finding(folder, finding("double_softmax", explanation="The softmax is applied twice. " * 5))
    (folder / "examples").mkdir()
    save_file({"loss": np.ones(4, dtype=np.float16)}, folder / "examples" / "epoch-0000.safetensors")
    make_run(dashboard.runs / "seen-long", losses=noisy_losses(10_000), resolved={}, verdict=Verdict.DIVERGED)
    (dashboard.runs / "seen-begun").mkdir()
    (dashboard.runs / "seen-begun" / "run.json").write_text(json.dumps({"verdict": None, "recipe": {}}))


def drawn(page: Any) -> int:
    """Wait until every figure is drawn; how many there are."""
    page.locator(".plot:not(.drawn)").first.wait_for(state="detached", timeout=30_000)
    count: int = page.locator(".plot.drawn .main-svg").count()
    return count


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_draws_without_a_complaint_at_every_width(
    visit: Visit, seen: None, name: str, scheme: str, width: int
) -> None:
    page = visit(PAGES[name], width=width, scheme=scheme)
    count = drawn(page)
    assert (count > 0) == (page.locator("[data-figure]").count() > 0)
    shown, wide = page.evaluate(WIDTH)
    assert shown <= wide
    nav = page.locator(".top nav")
    assert nav.evaluate("nav => [nav.scrollWidth > nav.clientWidth, nav.clientHeight > 40]") == [False, False]
    assert page.locator("h1").count() == 1
    for heading in page.locator("main h1").all():
        assert heading.is_visible()


def test_no_text_of_a_run_becomes_an_element(visit: Visit, seen: None) -> None:
    page = visit("/runs/seen")
    drawn(page)
    assert NASTY in page.locator("#events").inner_text()
    assert page.locator("main img, main script").count() == 0


def figure_data(page: Any, name: str) -> list[float]:
    """The heights of the first line of a figure, as they are drawn."""
    found = page.evaluate(f"() => [...document.querySelector('#figure-{name} .plot')._fullData[0].y]")
    return [float(value) for value in found]


def test_the_curve_grows_while_a_run_trains_in_another_process(visit: Visit, dashboard: Served) -> None:
    place = dashboard.runs / "live"
    command = [sys.executable, "-c", TRAINING, str(place)]
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tests)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    page = visit("/runs/live")
    drawn(page)
    assert figure_data(page, "loss") == [1.0] * 10
    assert page.locator("#state .badge").inner_text() == "training"
    page.get_by_text("Details").first.wait_for()
    for total in (20, 30):
        process.stdin.write("more\n")
        process.stdin.flush()
        grown = f"() => document.querySelector('#figure-loss .plot')._fullData[0].x.length === {total}"
        page.wait_for_function(grown, timeout=30_000)
        assert figure_data(page, "loss") == [1.0] * 10 + [5.0] * (total - 10)
    assert page.locator("#state .facts").inner_text().split("\n")[1] == "30"
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    store = Store(place)
    store.write_info(
        read_info(place) | {"verdict": {"name": "STALLED", "message": str(Verdict.STALLED), "evidence": {}}}
    )
    store.close()
    page.locator("#state .badge", has_text="stalled").wait_for(timeout=30_000)
    assert page.locator("[data-post]").count() == 0


def test_new_findings_come_by_themselves(visit: Visit, dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "found-later", verdict=None)
    page = visit("/runs/found-later")
    drawn(page)
    assert page.locator(".finding").count() == 0
    put_finding(folder, finding("dead_units"))
    page.locator(".finding", has_text="dead_units").wait_for(timeout=30_000)


def test_the_table_follows_its_runs(visit: Visit, dashboard: Served) -> None:
    page = visit("/")
    folder = make_run(dashboard.runs / "appears", verdict=None)
    row = page.locator("tr[data-run='appears']")
    row.wait_for(timeout=30_000)
    assert row.locator(".badge").inner_text() == "training"
    row.get_by_role("checkbox").check()
    Store(folder).write_info(read_info(folder) | {"verdict": {"name": "CONVERGED", "message": str(Verdict.CONVERGED)}})
    row.locator(".badge.good").wait_for(timeout=30_000)
    assert row.get_by_role("checkbox").is_checked()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    row.wait_for(state="detached", timeout=30_000)


def test_a_page_that_nobody_sees_rests_and_catches_up(visit: Visit, dashboard: Served) -> None:
    gone = make_run(dashboard.runs / "gone-meanwhile")
    page = visit("/")
    page.locator("tr[data-run='gone-meanwhile']").wait_for()
    page.get_by_label("Search the runs").fill("meanwhile")

    def show(hidden: bool) -> None:
        page.evaluate(
            "(hidden) => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })", hidden
        )
        page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")

    show(hidden=True)
    shutil.rmtree(gone)
    make_run(dashboard.runs / "came-meanwhile")
    page.wait_for_timeout(2500)  # two looks of the server
    assert page.locator("tr[data-run='came-meanwhile']").count() == 0
    show(hidden=False)
    page.locator("tr[data-run='came-meanwhile']").wait_for(timeout=30_000)
    page.locator("tr[data-run='gone-meanwhile']").wait_for(state="detached", timeout=30_000)
    assert page.get_by_label("Search the runs").input_value() == "meanwhile"


def test_a_page_that_is_left_before_its_stream_is_there_catches_up(visit: Visit, dashboard: Served) -> None:
    gone = make_run(dashboard.runs / "gone-at-once")
    page = visit("/")
    page.add_init_script(
        "Object.defineProperty(document, 'hidden', { value: true, configurable: true, writable: true })"
    )
    page.route(re.compile(r"/live\?"), lambda route: None)  # a stream that nobody answers
    page.reload()
    page.locator("tr[data-run='gone-at-once']").wait_for()
    page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
    page.unroute(re.compile(r"/live\?"))
    shutil.rmtree(gone)
    page.wait_for_timeout(2500)
    page.evaluate("() => { document.hidden = false; document.dispatchEvent(new Event('visibilitychange')) }")
    page.locator("tr[data-run='gone-at-once']").wait_for(state="detached", timeout=30_000)


def test_the_button_asks_the_run_to_stop(visit: Visit, dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "to-stop", verdict=None)
    page = visit("/runs/to-stop")
    page.get_by_role("button", name="Stop gently").click()
    page.locator("#state .badge", has_text="stopping").wait_for(timeout=30_000)
    assert (folder / "stop").exists()


@pytest.mark.parametrize(("theme", "ground"), [("dark", "rgb(20, 25, 31)"), ("light", "rgb(255, 255, 255)")])
def test_the_theme_is_remembered_and_figures_follow_it(visit: Visit, seen: None, theme: str, ground: str) -> None:
    page = visit("/runs/seen", scheme="light" if theme == "dark" else "dark")
    drawn(page)

    def ink() -> str:
        colour: str = page.evaluate("() => document.querySelector('#figure-loss .plot').layout.font.color")
        return colour

    before = ink()
    page.get_by_label("Theme").select_option(theme)
    page.wait_for_function(
        "(old) => document.querySelector('#figure-loss .plot').layout.font.color !== old", arg=before
    )
    for path in ("/runs/seen", "/"):
        page.goto(page.url.split("/runs")[0] + path)
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == ground
        assert page.get_by_label("Theme").input_value() == theme
    assert f'data-theme="{theme}"' in page.content()


def test_the_page_is_written_in_its_theme_so_that_nothing_flashes(dashboard: Served) -> None:
    for theme, written in (("dark", "dark"), ("light", "light"), ("<script>", "system")):
        answer = dashboard.ask("/", Cookie=f"{dashboard.cookie}; fogline-theme={theme}")
        assert f'<html lang="en" data-theme="{written}">' in answer.text


def focused(page: Any) -> str:
    words: str = page.evaluate("() => document.activeElement.textContent || document.activeElement.id")
    return words.strip()


def test_keys_alone_lead_from_the_table_to_a_run_and_back(visit: Visit, dashboard: Served) -> None:
    for name in ("keys-a", "keys-b", "keys-c"):
        make_run(dashboard.runs / name)
    page = visit("/")
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
    page.keyboard.press("/")
    page.keyboard.type("keys-")
    visible = "() => [...document.querySelectorAll('#rows tr')].filter((row) => !row.hidden).length"
    assert page.evaluate(visible) == 3
    page.keyboard.press("ArrowDown")
    first = focused(page)
    page.keyboard.press("ArrowDown")
    second = focused(page)
    assert first != second
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("ArrowUp")
    assert focused(page) == first
    page.keyboard.press("End")
    assert focused(page).startswith("keys-")
    page.keyboard.press("Home")
    assert focused(page) == first
    page.keyboard.press("ArrowUp")
    assert focused(page) == "search"
    page.keyboard.press("Escape")
    assert page.evaluate(visible) > 3
    page.keyboard.type("keys-b")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/keys-b")
    assert page.get_by_role("heading", level=1).inner_text() == "keys-b"


def test_columns_are_sorted_by_their_buttons(visit: Visit, dashboard: Served) -> None:
    for name, loss in (("sort-a", 3.0), ("sort-b", 1.0), ("sort-c", 2.0)):
        make_run(dashboard.runs / name, losses=[loss])
    page = visit("/")
    page.get_by_label("Search the runs").fill("sort-")
    names = (
        "() => [...document.querySelectorAll('#rows tr')].filter((row) => !row.hidden).map((row) => row.dataset.run)"
    )
    page.get_by_role("button", name="last loss").click()
    assert page.evaluate(names) == ["sort-b", "sort-c", "sort-a"]
    assert page.locator("th[aria-sort='ascending']").count() == 1
    page.get_by_role("button", name="last loss").click()
    assert page.evaluate(names) == ["sort-a", "sort-c", "sort-b"]
    page.get_by_role("button", name="run", exact=True).click()
    assert page.evaluate(names) == ["sort-a", "sort-b", "sort-c"]


def test_chosen_runs_are_compared(visit: Visit, seen: None) -> None:
    page = visit("/")
    compare = page.get_by_role("button", name="Compare the chosen")
    assert compare.is_disabled()
    for name in ("seen", "seen-long"):
        page.get_by_label(f"compare {name}", exact=True).check()
    compare.click()
    page.wait_for_url("**/compare?run=seen*")
    assert page.get_by_role("heading", name="What differs").is_visible()


def test_sql_is_asked_with_keys_and_its_answer_is_text(visit: Visit, seen: None) -> None:
    page = visit("/runs/seen")
    drawn(page)
    page.get_by_label("SQL", exact=True).fill("select message, 0.1234567891 as x from events where kind = 'note'")
    page.keyboard.press("Control+Enter")
    cells = page.locator("#answer td")
    cells.first.wait_for(timeout=30_000)
    assert cells.all_inner_texts() == [NASTY, "0.123457"]


def test_a_dashboard_that_is_gone_is_missed(chromium: Any, tmp_path: Path) -> None:
    from dashboard.conftest import served, start

    make_run(tmp_path / "run", verdict=None)
    process, line = start("ui", tmp_path, "--no-browser", "--port", 0)
    context = chromium.new_context()
    page = context.new_page()
    page.goto(served(tmp_path, line).entrance)
    page.locator("#compare[disabled]").wait_for()  # the page's scripts run
    assert page.locator("#lost").is_hidden()
    process.terminate()
    process.wait(timeout=30)
    page.locator("#lost").wait_for(state="visible", timeout=30_000)
    context.close()
    assert process.stdout is not None
    process.stdout.close()
