"""A run is found by its name: no name leads out of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dashboard.conftest import Served
from fogline.dashboard.runs import Folder, NoRunError
from run_folders import make_run

SECRET = "a secret that lies outside"
LINKED = {
    "linked-info": "run.json",
    "linked-steps": "run.sqlite",
    "linked-stop": "stop",
    "linked-landscape": "landscape.json",
    "linked-examples": "examples",
}
ESCAPES = [
    "..", "%2e%2e", ".", "%2e", "..%2foutside", "%2e%2e%2foutside", "..%5coutside", "%2e%2e%5coutside",
    "....%2f%2foutside", "%252e%252e%252foutside", "..%c0%afoutside", "%00", "inside%00", "inside%2f..%2f..%2foutside",
    "%2fetc", "~root", ".hidden", "..%2foutside%00inside", "inside%2f", "link", "file", "empty", *LINKED,
]  # fmt: skip
PLACES = ["", "/parts", "/live", "/rate", "/landscape", "/examples", "/figures/loss"]


@pytest.fixture(scope="session")
def outside(dashboard: Served) -> Path:
    """Runs that lie elsewhere, and every kind of link to them."""
    folder = make_run(dashboard.runs.parent / "outside", notes=[SECRET])
    runs = dashboard.runs
    make_run(runs / "inside")
    make_run(runs / ".hidden", notes=[SECRET])
    (runs / "link").symlink_to(folder)
    (folder / "examples").mkdir()
    for name, file in LINKED.items():
        make_run(runs / name, verdict=None)
        (runs / name / file).unlink(missing_ok=True)
        (runs / name / file).symlink_to(folder / file)
    (runs / "file").write_text(SECRET)
    (runs / "empty").mkdir()
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_leads_out(dashboard: Served, outside: Path, name: str, place: str) -> None:
    answer = dashboard.ask(f"/runs/{name}{place}")
    assert 400 <= answer.status < 500
    assert SECRET not in answer.text
    assert str(outside) not in answer.text


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_of_a_run_to_compare_or_list_leads_out(dashboard: Served, outside: Path, name: str) -> None:
    for path in (f"/compare?run={name}&run=inside", f"/compare/figure?run={name}&run=inside"):
        answer = dashboard.ask(path)
        assert 400 <= answer.status < 500
        assert SECRET not in answer.text
    assert dashboard.ask(f"/rows?run={name}").json() == {}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_stops_or_asks_elsewhere(dashboard: Served, outside: Path, name: str) -> None:
    assert 400 <= dashboard.ask(f"/runs/{name}/stop", "POST").status < 500
    assert 400 <= dashboard.sql(name, "select * from events").status < 500
    assert not (outside / "stop").exists()
    assert not (dashboard.runs / "inside" / "stop").exists()


@pytest.mark.parametrize("figure", ["..", "%2e%2e", "..%2frun.json", "__class__", "loss%2f..", "%00"])
def test_no_figure_is_a_path(dashboard: Served, outside: Path, figure: str) -> None:
    assert dashboard.ask(f"/runs/inside/figures/{figure}").status == 404


@pytest.mark.parametrize(
    "file",
    [
        "..",
        "..%2fapp.py",
        "%2e%2e%2fapp.py",
        "app.py",
        "..%2f..%2f__init__.py",
        "%2fetc%2fpasswd",
        "style.css%00.js",
        "",
    ],
)
def test_no_file_but_ours_is_served(dashboard: Served, file: str) -> None:
    version = dashboard.ask("/").text.split("/static/")[1].split("/")[0]
    for path in (f"/static/{version}/{file}", f"/static/{file}/style.css", f"/static/..%2f{version}/style.css"):
        assert dashboard.ask(path).status == 404
    assert dashboard.ask(f"/static/{version}/style.css").status == 200


def test_a_plain_name_of_any_letters_is_found(tmp_path: Path) -> None:
    names = ["a b", "ä", "100%", "a?b#c", "run;1", "a'b\"c", "x" * 120]
    for name in names:
        make_run(tmp_path / name)
    folder = Folder(tmp_path)
    assert folder.names() == sorted(names)
    for name in names:
        assert len(folder.view(name).steps) == 200
        assert folder.summary(name).steps == 200


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2]",
        '"text"',
        "{",
        "null",
        "[" * 100_000,
        json.dumps({"verdict": 7, "recipe": [], "scores": 3, "steps": "x", "task": None}),
    ],
)
def test_a_damaged_run_is_a_row_and_no_more(dashboard: Served, content: str) -> None:
    folder = make_run(dashboard.runs / "damaged")
    (folder / "run.json").write_text(content)
    assert dashboard.ask("/").status == 200
    assert "damaged" in dashboard.ask("/").text
    assert dashboard.ask("/runs/damaged").status in (200, 422)  # it is there
    for place in PLACES:
        if place != "/live":
            assert dashboard.ask(f"/runs/damaged{place}").status in (200, 404, 422)


def test_a_database_that_is_none_is_said(dashboard: Served) -> None:
    folder = make_run(dashboard.runs / "no-database")
    (folder / "run.sqlite").write_text("no database" * 100)
    assert "unreadable" in dashboard.ask("/").text
    for path in ("/runs/no-database", "/runs/no-database/figures/loss"):
        assert dashboard.ask(path).status == 422
    assert dashboard.sql("no-database", "select 1").status == 400


def test_a_name_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoRunError, match="expected the name of a run"):
        Folder(tmp_path).view("..")
    assert Folder(tmp_path / "none").names() == []
