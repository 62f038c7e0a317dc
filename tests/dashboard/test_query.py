"""SQL over a run reads that run and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dashboard.conftest import Served
from fogline.dashboard import query
from fogline.dashboard.query import QueryError, ask
from run_folders import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    losses = [3.0, 2.0, float("nan"), 1.0]
    return make_run(tmp_path_factory.mktemp("query") / "run", losses=losses, events=[(1, "note", "a 'quoted' word")])


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select count(*), max(loss), min(step) from steps", [[4, 3.0, 0]]),
        ("select step from steps where loss is null", [[2]]),
        ("select kind, message from events", [["note", "a 'quoted' word"]]),
        ("from scores select name, max(value) group by name order by name", [["accuracy", 0.8], ["loss", 0.9]]),
        ("with s as (select loss from steps) select count(loss) from s", [[3]]),
        ("select 1.0 / 0, 'nan'::double, null, true, date '2026-01-01'", [["inf", "nan", None, True, "2026-01-01"]]),
        ("select count(*) from layers", [[0]]),
    ],
)
def test_answers(run: Path, sql: str, rows: list[list[object]]) -> None:
    assert ask(run, sql)["rows"] == rows


def test_a_long_answer_is_cut_and_says_so(run: Path) -> None:
    answer = ask(run, f"select * from range({query.MOST_ROWS + 1})")
    assert (len(answer["rows"]), answer["more"]) == (query.MOST_ROWS, True)
    assert not ask(run, f"select * from range({query.MOST_ROWS})")["more"]


HOSTILE = [
    "select * from read_csv('{file}')",
    "select * from read_text('{file}')",
    "select * from read_blob('{file}')",
    "select * from read_json('{file}')",
    "select * from sniff_csv('{file}')",
    "select * from parquet_scan('{file}')",
    "select * from glob('{folder}/*')",
    "from '{file}'",
    "attach '{folder}/other.duckdb'",
    "attach '{file}' as other (type sqlite)",
    "select * from sqlite_scan('{file}', 'steps')",
    "install httpfs",
    "load httpfs",
    "copy steps to '{folder}/written.csv'",
    "copy (select 1) to '{folder}/written.parquet'",
    "export database '{folder}/written'",
    "set enable_external_access = true",
    "reset enable_external_access",
    "pragma database_list",
    "select 1; copy steps to '{folder}/written.csv'",
    "create table t as select 1",
    "insert into steps values (1)",
    "drop table steps",
    "update steps set loss = 0",
    "call pragma_version()",
    "prepare p as select 1",
    "select * from query('select * from read_text(''{file}'')')",
    "select * from duckdb_secrets()",
    "select getenv('HOME')",
    "select * from block",
    "checkpoint",
    "",
    ";",
    "nonsense",
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_no_query_reads_or_writes_anything_else(run: Path, tmp_path: Path, sql: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nunspeakable\n")
    before = (run / "run.sqlite").read_bytes()
    with pytest.raises(QueryError) as refused:
        ask(run, sql.format(file=secret, folder=tmp_path))
    assert "unspeakable" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert (run / "run.sqlite").read_bytes() == before


def test_the_settings_are_as_they_should_be(run: Path) -> None:
    wanted = {"enable_external_access": "false", "lock_configuration": "true", "autoload_known_extensions": "false"}
    names = ", ".join(f"'{name}'" for name in wanted)
    rows = ask(run, f"select name, value from duckdb_settings() where name in ({names})")["rows"]
    assert dict(rows) == wanted


def test_a_query_without_end_is_ended(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "SECONDS", 3.0)
    with pytest.raises(QueryError, match="longer than 3 s"):
        ask(run, "select count(*) from range(100000000000) a, range(100000) b where a.range + b.range = -1")


def test_a_query_of_more_memory_than_there_is_is_refused(run: Path) -> None:
    with pytest.raises(QueryError):
        ask(run, "select list(range) from range(1000000000)")


def test_a_query_of_a_book_is_refused(run: Path) -> None:
    with pytest.raises(QueryError, match="at most"):
        ask(run, "select 1 " + " " * 30_000)


def test_tables_and_columns_of_odd_names_are_only_names(tmp_path: Path) -> None:
    import sqlite3

    folder = make_run(tmp_path / "run")
    with sqlite3.connect(folder / "run.sqlite") as connection:
        connection.execute("drop table edits")
        connection.execute('create table edits ("a"") as select * from read_text(\'/etc/passwd\') --" text)')
        connection.execute("insert into edits values ('kept')")
    connection.close()
    assert ask(folder, "select * from edits")["rows"] == [["kept"]]


def test_it_is_asked_over_the_page_too(dashboard: Served) -> None:
    make_run(dashboard.runs / "asked")
    assert dashboard.sql("asked", "select count(*) from steps").json()["rows"] == [[200]]
    refused = dashboard.sql("asked", "select * from read_text('/etc/hostname')")
    assert refused.status == 400
    assert "disabled" in refused.json()["error"]
    for body in ("", "[]", '{"sql": {}}', "no json", json.dumps({"query": "select 1"})):
        assert dashboard.ask("/runs/asked/sql", "POST", body).status == 400
    assert dashboard.ask("/runs/asked/sql", "POST", json.dumps({"sql": "x" * 200_000})).status == 413
