"""The page of examples: what is chosen, decided and asked on it is what the run holds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from dashboard.conftest import Served
from dashboard.test_pages import NASTY, TAGS, Outline, read
from fogline._examples.edits import Edits
from fogline._examples.retrain import FILE
from fogline.dashboard import example_table
from fogline.dashboard.example_cards import spark
from fogline.dashboard.example_table import LISTS, SelectionError, Tables, inside, selected
from fogline.dashboard.examples_page import wait
from fogline.dashboard.runs import Folder, NoRunError
from fogline.record.previews import Previews, write_previews
from run_folders import add_examples, make_run, write_epoch

COUNT, WRONG = 60, [3, 14, 27]
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)


def made(dashboard: Served, name: str) -> Path:
    folder = add_examples(make_run(dashboard.runs / name), COUNT, wrong=WRONG)
    write_previews(folder, Previews("images", np.arange(50), PIXELS[:50]))
    return folder


def post(dashboard: Served, name: str, path: str, **body: Any) -> Any:
    answer = dashboard.ask(f"/runs/{name}/examples/{path}", "POST", json.dumps(body))
    assert answer.status == 200, answer.text
    return answer.json()


def refused(dashboard: Served, name: str, path: str, **body: Any) -> str:
    answer = dashboard.ask(f"/runs/{name}/examples/{path}", "POST", json.dumps(body))
    assert answer.status == 400, answer.text
    return str(answer.json()["error"])


# -- seeing ------------------------------------------------------------------------------------------------------------


def test_the_page_says_what_there_is(dashboard: Served) -> None:
    made(dashboard, "ex-page")
    outline = read(dashboard, "/runs/ex-page/examples")
    for said in (
        "labels likely wrong",
        "Likely wrong labels",
        "Hardest",
        "fogline examples ex-page --retrain",
        "By epoch",
    ):
        assert said in outline.words
    assert "50 of 60 examples" in outline.words
    labels = [attributes.get("value") for tag, attributes in outline.tags if tag == "option"]
    assert {"label_error", "correct", "target", "edit", "errors", "all"} <= set(labels)


def test_every_colour_that_is_offered_is_drawn(dashboard: Served) -> None:
    made(dashboard, "ex-map")
    page = dashboard.ask("/runs/ex-map/examples").text.split('id="colour"')[1].split("</select>")[0]
    offered = [part.split('"')[0] for part in page.split('value="')[1:]]
    assert len(offered) > 8
    for colour in offered:
        for look in ("light", "dark"):
            answer = dashboard.ask(f"/runs/ex-map/examples/map?colour={colour}&look={look}")
            assert answer.json()["data"], colour
    assert dashboard.ask("/runs/ex-map/examples/map?colour=none").status == 404
    assert dashboard.ask("/runs/ex-map/examples/map").status == 404


def test_likely_errors_come_first_with_the_likely_label(dashboard: Served) -> None:
    made(dashboard, "ex-errors")
    found = post(dashboard, "ex-errors", "list", list="errors")
    assert sorted(found["ids"]) == WRONG
    card = found["html"].split('data-example="3"')[1].split("</article>")[0]
    assert "<b>bird</b>" in card
    assert "→ cat" in card
    assert 'data-edit="relabel" data-label="1"' in card
    assert "example 3, bird, likely cat" in card


def test_a_list_comes_in_pages_and_of_one_label_where_wanted(dashboard: Served) -> None:
    made(dashboard, "ex-pages")
    first = post(dashboard, "ex-pages", "list", list="all")
    assert (first["count"], first["ids"]) == (COUNT, list(range(first["page"])))
    later = post(dashboard, "ex-pages", "list", list="all", start=48)
    assert later["ids"] == list(range(48, 60))
    cats = post(dashboard, "ex-pages", "list", list="all", target=1)
    assert cats["ids"][:3] == [1, 4, 7]
    assert cats["count"] == 20
    assert post(dashboard, "ex-pages", "list", list="all", start=99)["html"] == ""


def test_thumbnails_are_the_pixels_that_were_kept(dashboard: Served) -> None:
    made(dashboard, "ex-thumb")
    connection = dashboard.ask("/runs/ex-thumb/examples/list", "POST", '{"list": "all"}').json()
    assert connection["html"].count('<img src="/runs/ex-thumb/examples/') == 24
    seen = Tables().of(dashboard.runs / "ex-thumb")
    from fogline.dashboard.example_cards import thumbnail

    written = thumbnail(seen, 7)
    assert written is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(written))), PIXELS[7])
    assert thumbnail(seen, 55) is None
    assert dashboard.ask("/runs/ex-thumb/examples/55/thumbnail").status == 404
    assert dashboard.ask("/runs/ex-thumb/examples/-1/thumbnail").status == 404
    later = post(dashboard, "ex-thumb", "list", list="all", start=48)
    assert "no preview" in later["html"]


def test_one_example_in_full(dashboard: Served) -> None:
    made(dashboard, "ex-more")
    found = dashboard.ask("/runs/ex-more/examples/3/more").json()
    for said in ("probability of a wrong label", "predicted", "cat", "times wrong"):
        assert said in found["rows"]
    right, wrong = found["figure"]["data"][1:]
    assert right["name"] == "answered right"
    assert wrong["name"] == "answered wrong"
    assert dashboard.ask(f"/runs/ex-more/examples/{COUNT}/more").status == 404


def test_without_a_record_it_says_how_to_get_one(dashboard: Served) -> None:
    make_run(dashboard.runs / "ex-none")
    words = read(dashboard, "/runs/ex-none/examples").words
    assert "This run recorded no examples." in words
    assert "run.log(loss, examples=ids)" in words
    for path in ("map?colour=loss", "parts", "0/more", "0/thumbnail"):
        assert dashboard.ask(f"/runs/ex-none/examples/{path}").status == 404
    for path in ("list", "edit", "undo", "sql"):
        assert dashboard.ask(f"/runs/ex-none/examples/{path}", "POST", '{"ids": [1], "action": "drop"}').status == 404


def test_without_previews_it_says_how_to_get_them(dashboard: Served) -> None:
    add_examples(make_run(dashboard.runs / "ex-bare"))
    assert "fogline.examples(run, task)" in read(dashboard, "/runs/ex-bare/examples").words
    assert "no preview" not in post(dashboard, "ex-bare", "list", list="all")["html"]


def test_rows_are_a_table_and_texts_are_cards(dashboard: Served) -> None:
    for kind, words in (("rows", [json.dumps([str(k), NASTY]) for k in range(COUNT)]), ("texts", [NASTY] * COUNT)):
        folder = add_examples(make_run(dashboard.runs / f"ex-{kind}"))
        columns = ("age", NASTY) if kind == "rows" else ()
        write_previews(folder, Previews(kind, np.arange(COUNT), None, words, columns))  # type: ignore[arg-type]
        html = post(dashboard, f"ex-{kind}", "list", list="all")["html"]
        outline = Outline(html)
        assert {tag for tag, _ in outline.tags} <= TAGS | {"img", "b"}
        assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
        assert NASTY in outline.words
        assert ("table" in {tag for tag, _ in outline.tags}) == (kind == "rows")
        more = dashboard.ask(f"/runs/ex-{kind}/examples/0/more").json()
        assert NASTY in Outline(more["head"] + more["rows"]).words


def test_no_name_of_a_class_is_markup(dashboard: Served) -> None:
    folder = add_examples(make_run(dashboard.runs / "ex-nasty"), classes=[NASTY, "'\"><b>", "&lt;"])
    Edits(folder).relabel([5], NASTY)
    page = read(dashboard, "/runs/ex-nasty/examples")
    answers = [post(dashboard, "ex-nasty", "list", list=name)["html"] for name in ("errors", "edited")]
    answers.append(dashboard.ask("/runs/ex-nasty/examples/5/more").json()["head"])
    assert {tag for tag, _ in page.tags} <= TAGS | {"fieldset", "legend", "dialog", "b"}
    for html in answers:
        outline = Outline(html)
        assert {tag for tag, _ in outline.tags} <= TAGS | {"b"}
        assert NASTY in outline.words
    figure = dashboard.ask("/runs/ex-nasty/examples/map?colour=target").json()
    assert not [trace["name"] for trace in figure["data"] if "<" in trace["name"]]


def test_regression_and_plain_losses_have_a_page_too(dashboard: Served) -> None:
    for kind, name in (("regression", "residual"), ("loss", "loss")):
        folder = make_run(dashboard.runs / f"ex-{kind}", examples={"kind": kind, "count": 4, "classes": None})
        for epoch in range(3):
            columns = {name: np.array([0.5, -2.0, 0.1, np.nan]), "gradient_norm": np.array([1.0, 2.0, 0.5, np.nan])}
            columns["loss"] = np.abs(columns[name])
            write_epoch(folder, epoch, epoch, {key: value.astype(np.float32) for key, value in columns.items()})
        assert "Highest loss" in read(dashboard, f"/runs/ex-{kind}/examples").words
        assert dashboard.ask(f"/runs/ex-{kind}/examples/map?colour=loss").json()["data"]
        assert post(dashboard, f"ex-{kind}", "list", list="loss")["ids"] == [1, 0, 2]
        assert "0.5" in dashboard.ask(f"/runs/ex-{kind}/examples/0/more").json()["rows"]
    post(dashboard, "ex-regression", "edit", ids=[1], action="relabel", labels=0.25)
    assert Edits(dashboard.runs / "ex-regression").relabelled == {1: 0.25}


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_points_in_a_polygon_are_those_that_it_winds_around() -> None:
    """By the angle that the corners sweep as seen from the point: a full turn inside, none outside."""
    random = np.random.default_rng(0)
    angles = np.sort(random.uniform(0, 2 * np.pi, 25))
    reach = random.uniform(0.2, 1.0, 25)
    polygon = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)  # a star, far from convex
    points = random.uniform(-1, 1, (2000, 2))
    turns = np.zeros(len(points))
    for one, other in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        a, b = one - points, other - points
        turns += np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(1))
    wanted = np.abs(turns) > np.pi
    np.testing.assert_array_equal(inside(polygon, points[:, 0], points[:, 1]), wanted)
    assert 100 < wanted.sum() < 1900


def test_a_region_of_the_map_is_looked_at(dashboard: Served) -> None:
    folder = made(dashboard, "ex-region")
    table = Tables().of(folder).table
    found = post(dashboard, "ex-region", "list", region=[[0, 0], [1, 0], [1, 0.5], [0, 0.5]])
    wanted = set(np.flatnonzero((table["confidence"] <= 0.5) & (table["variability"] > 0)).tolist())
    assert set(found["ids"]) <= wanted
    assert found["count"] == len(wanted)
    assert found["count"] > 0
    assert sorted(found["ids"][:3]) == WRONG  # the likeliest errors of it come first


@pytest.mark.parametrize(
    "asked",
    [
        {"list": "none"},
        {"list": 7},
        {"region": [[0, 0], [1, 1]]},
        {"region": "all"},
        {"region": [[0, 0], [1, "x"], [1, 1]]},
        {"region": [[0, 0], [1, None], [1, 1]]},
        {"region": [[0, 0, 0], [1, 1, 1], [2, 2, 2]]},
        {"ids": [60]},
        {"ids": [-1]},
        {"ids": [1.5]},
        {"ids": "1"},
        {"ids": [True]},
        {"list": "all", "target": "cat"},
        {"list": "all", "start": -1},
        {"list": "all", "start": "x"},
    ],
)
def test_what_is_no_selection_is_refused(dashboard: Served, asked: dict[str, Any]) -> None:
    if not (dashboard.runs / "ex-refused" / "examples").exists():
        made(dashboard, "ex-refused")
    assert "expected" in refused(dashboard, "ex-refused", "list", **asked)


def test_every_list_is_in_its_order(dashboard: Served) -> None:
    seen = Tables().of(made(dashboard, "ex-lists"))
    for name in seen.lists():
        ids, (_, column, falling) = selected(seen, {"list": name}), LISTS[name]
        if column:
            values = seen.table[column][ids].astype(float)
            steps = np.diff(-values if falling else values)
            assert (steps >= 0).all() or name == "errors"
    with pytest.raises(SelectionError):
        selected(seen, {"list": "nothing"})


# -- deciding ----------------------------------------------------------------------------------------------------------


def test_what_is_decided_is_kept_shown_and_taken_back(dashboard: Served) -> None:
    folder = made(dashboard, "ex-decide")
    before = {path: path.read_bytes() for path in (folder / "examples").iterdir()}
    answer = post(dashboard, "ex-decide", "edit", ids=[3], action="relabel", labels=1)
    assert set(answer["parts"]) == {"facts", "retrain"}
    post(dashboard, "ex-decide", "edit", ids=[5, 6], action="drop")
    post(dashboard, "ex-decide", "edit", ids=[7], action="keep")
    assert Edits(folder).counts() == {"relabel": 1, "drop": 2, "keep": 1}
    html = post(dashboard, "ex-decide", "list", list="edited")["html"]
    assert 'class="example relabel" data-example="3"' in html
    assert "relabelled cat" in html
    assert html.index('data-example="7"') < html.index('data-example="3"')  # the latest first
    assert 'data-edit="drop" aria-pressed="true"' in html
    groups = dashboard.ask("/runs/ex-decide/examples/map?colour=edit").json()["data"]
    assert {trace["name"] for trace in groups} == {"none", "relabel", "drop", "keep"}
    assert post(dashboard, "ex-decide", "undo", ids=[5])["taken"] == 1
    assert post(dashboard, "ex-decide", "undo")["taken"] == 1
    assert Edits(folder).counts() == {"relabel": 1, "drop": 1, "keep": 0}
    assert {path: path.read_bytes() for path in (folder / "examples").iterdir()} == before


def test_what_cannot_be_decided_is_refused_in_words(dashboard: Served) -> None:
    folder = made(dashboard, "ex-undecided")
    assert "unknown action" in refused(dashboard, "ex-undecided", "edit", ids=[1], action="burn")
    assert "examples 0 to 59" in refused(dashboard, "ex-undecided", "edit", ids=[99], action="drop")
    assert "pass labels=" in refused(dashboard, "ex-undecided", "edit", ids=[1], action="relabel")
    assert "0 to 2" in refused(dashboard, "ex-undecided", "edit", ids=[1], action="relabel", labels=3)
    assert "'ids'" in refused(dashboard, "ex-undecided", "edit", action="drop")
    assert "list of examples" in refused(dashboard, "ex-undecided", "edit", ids=3, action="drop")
    for body in ("", "[]", "null", "no json", '{"ids": [[1]], "action": "drop"}'):
        assert dashboard.ask("/runs/ex-undecided/examples/edit", "POST", body).status == 400
    long = json.dumps({"ids": [1] * 600_000, "action": "drop"})
    assert dashboard.ask("/runs/ex-undecided/examples/edit", "POST", long).status == 413
    assert len(Edits(folder)) == 0


def test_retraining_is_a_command_and_then_its_result(dashboard: Served) -> None:
    folder = made(dashboard, "ex-retrain")
    edits = Edits(folder)
    edits.drop([3])
    words = read(dashboard, "/runs/ex-retrain/examples").words
    assert "fogline examples ex-retrain --retrain --task TASK.py" in words
    stamp = float(edits.table["seconds"].max())
    result = {"words": f"held-out accuracy 0.8 without the edits, 0.9 with them {NASTY}", "stamp": stamp}
    (folder / "examples" / FILE).write_text(json.dumps(result))
    words = read(dashboard, "/runs/ex-retrain/examples").words
    assert "0.8 without the edits, 0.9 with them" in words
    assert NASTY in words
    assert "run it again" not in words
    edits.keep([4])
    assert "run it again" in read(dashboard, "/runs/ex-retrain/examples").words


def test_a_run_of_a_task_file_needs_no_task_to_be_named(dashboard: Served) -> None:
    folder = add_examples(make_run(dashboard.runs / "ex-source", source={"kind": "task", "path": "/x/task.py"}))
    Edits(folder).drop([3])
    words = read(dashboard, "/runs/ex-source/examples").words
    assert "fogline examples ex-source --retrain  trains" in words


# -- asking ------------------------------------------------------------------------------------------------------------


def asked(dashboard: Served, sql: str, **body: Any) -> Any:
    if not (dashboard.runs / "ex-sql" / "examples").exists():
        folder = made(dashboard, "ex-sql")
        Edits(folder).drop([5])
        Edits(folder).relabel([3], "cat")
    return post(dashboard, "ex-sql", "sql", sql=sql, **body)["rows"]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select count(*), min(example), max(example) from examples", [[60, 0, 59]]),
        (
            "select example, edit, edit_label from examples where edit <> '' order by 1",
            [[3, "relabel", 1.0], [5, "drop", None]],
        ),
        ("select target_class from examples where example < 3 order by example", [["bird"], ["cat"], ["dog"]]),
        (
            "select name, count(*) from examples join classes using (target) group by 1 order by 1",
            [["bird", 20], ["cat", 20], ["dog", 20]],
        ),
        ("select sum(example) from (select example from examples order by label_error desc limit 3)", [[44]]),
        ("select count(*) from selected", [[60]]),
        ("select count(*) from steps", [[200]]),
    ],
)
def test_answers(dashboard: Served, sql: str, rows: list[list[object]]) -> None:
    assert asked(dashboard, sql) == rows


def test_what_is_chosen_can_be_asked_about(dashboard: Served) -> None:
    assert asked(dashboard, "select example from selected order by 1", selection={"ids": [4, 2]}) == [[2], [4]]
    region = [[0, 0], [1, 0], [1, 0.5], [0, 0.5]]
    found = asked(dashboard, "select count(*) from selected", selection={"region": region})
    assert found == [[post(dashboard, "ex-sql", "list", region=region)["count"]]]


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('/etc/hostname')",
        "select * from glob('/*')",
        "copy examples to 'written.csv'",
        "attach 'x.duckdb'",
        "drop view examples",
        "create table t as select 1",
        "select 1; select 2",
        "set enable_external_access = true",
    ],
)
def test_no_query_reads_or_changes_anything_else(dashboard: Served, sql: str) -> None:
    asked(dashboard, "select 1")
    assert refused(dashboard, "ex-sql", "sql", sql=sql)


def test_every_query_that_is_offered_has_an_answer(dashboard: Served) -> None:
    asked(dashboard, "select 1")
    page = read(dashboard, "/runs/ex-sql/examples")
    offered = [attributes["data-query"] for _, attributes in page.tags if "data-query" in attributes]
    assert len(offered) == 6
    for query in offered:
        assert isinstance(asked(dashboard, str(query)), list), query


def test_a_column_of_any_name_is_only_a_name(tmp_path: Path) -> None:
    from dataclasses import replace

    from fogline.dashboard import query
    from fogline.record.store import Table

    folder = add_examples(make_run(tmp_path / "run"))
    seen = Tables().of(folder)
    odd = {"a\" from read_text('/etc/passwd') --": np.arange(COUNT), "words": np.array(["w"] * COUNT, dtype=object)}
    seen = replace(seen, table=Table({**seen.table.columns, **odd}))
    examples = {"file": str(seen.columns_file), "edits": [], "chosen": []}
    answer = query.ask(folder, "select * from examples where example = 7", examples)
    place = seen.columns_file
    del seen
    assert not place.exists()
    assert answer["columns"][-4:-2] == list(odd)
    assert answer["rows"][0][-4:-2] == [7, "w"]


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_the_table_is_read_anew_when_an_epoch_comes(tmp_path: Path) -> None:
    folder = add_examples(make_run(tmp_path / "run"), epochs=4)
    tables = Tables()
    seen = tables.of(folder)
    assert tables.of(folder) is seen
    add_examples(folder, epochs=5)
    assert (seen.epochs, tables.of(folder).epochs) == (4, 5)


def test_only_a_few_tables_are_kept(tmp_path: Path) -> None:
    tables = Tables()
    folders = [add_examples(make_run(tmp_path / f"run-{k}")) for k in range(3)]
    first = tables.of(folders[0])
    for folder in folders[1:]:
        tables.of(folder)
    assert tables.of(folders[0]) is not first


def test_many_examples_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = add_examples(make_run(tmp_path / "run"))
    tables = Tables()
    assert tables.at_once(folder)
    monkeypatch.setattr(example_table, "_LARGE", 0)
    assert not tables.at_once(folder)
    tables.of(folder)
    assert tables.at_once(folder)
    html = wait(Folder(tmp_path).view("run"))
    assert 'data-wait="/runs/run/examples/parts"' in html
    assert "60 examples" in html


def test_links_are_not_followed(tmp_path: Path) -> None:
    real = add_examples(make_run(tmp_path / "real"))
    linked = make_run(tmp_path / "linked")
    (linked / "examples").symlink_to(real / "examples")
    with pytest.raises(NoRunError):
        Tables().of(linked)
    other = add_examples(make_run(tmp_path / "other"))
    secret = tmp_path / "secret.safetensors"
    save_file({"example": np.arange(2), "pixels": np.zeros((2, 8, 8, 1), dtype=np.uint8)}, secret)
    (other / "examples" / "previews.safetensors").symlink_to(secret)
    assert Tables().of(other).previews is None


def test_a_line_over_the_epochs() -> None:
    assert spark(np.array([0.5])) == ""
    assert spark(np.array([np.nan, np.nan])) == ""
    assert "2.0,22.0 50.0,12.0 98.0,2.0" in spark(np.array([0.0, 0.5, 1.0]))
    assert "2.0,22.0 98.0,2.0" in spark(np.array([0.0, np.nan, 1.0]))


def test_curves_of_a_few_examples(tmp_path: Path) -> None:
    folder = add_examples(make_run(tmp_path / "run"), epochs=4)
    (folder / "examples" / "epoch-0002.safetensors").write_bytes(b"cut")
    seen = Tables().of(folder)
    epochs, curves = seen.curves([5, 3])
    assert epochs.tolist() == [0, 1, 3]
    assert curves["confidence"].shape == (3, 2)
    assert "residual" not in curves
