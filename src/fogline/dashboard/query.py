"""SQL over one run, in a process of its own that can read that run and nothing else, and may take only so long.

``python -m fogline.dashboard.query`` reads ``{"folder": ..., "sql": ...}`` and writes the answer, both as JSON. With
``examples``, a file of columns, there are also the tables ``examples``, ``classes`` and ``selected``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

SECONDS = 15.0
MOST_ROWS = 500
_MOST_SQL = 20_000
_MOST_CELL = 2000
_MEMORY = 256  # MiB for DuckDB
_AT_ONCE = 50_000
_TABLES = ("steps", "layers", "scores", "events", "findings", "confusion", "edits")
_TYPES = {"integer": "bigint", "real": "double", "text": "varchar"}


class QueryError(ValueError):
    """The query cannot be answered; the text says why."""


def ask(folder: Path, sql: str, examples: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The answer to a query over the tables of a run.

    Args:
        folder: of the run.
        sql: one ``select`` over steps, layers, scores, events and findings.
        examples: with them there are three more tables. ``file`` has one row per example, ``edits`` the last decision
            about each as (example, action, label), ``chosen`` the examples of the table ``selected``.

    Returns:
        ``columns``, ``rows`` (at most :data:`MOST_ROWS`) and whether there are ``more``.

    Raises:
        QueryError: it is no such query, or takes too long.
    """
    if len(sql) > _MOST_SQL:
        raise QueryError(f"expected a query of at most {_MOST_SQL} characters, received {len(sql)}")
    command = [sys.executable, "-m", "fogline.dashboard.query"]
    asked = json.dumps({"folder": str(folder), "sql": sql, "examples": examples})
    try:
        ended = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise QueryError(f"the query took longer than {SECONDS:.0f} s and was ended; ask for less") from None
    if ended.returncode:
        raise QueryError("the query took more memory than it may and was ended; ask for less")
    answer: dict[str, Any] = json.loads(ended.stdout)
    if "error" in answer:
        raise QueryError(answer["error"])
    return answer


def main() -> None:
    """Answer the one query that comes by standard input."""
    asked = json.load(sys.stdin)
    try:
        answer = _answer(Path(asked["folder"]), asked["sql"], asked["examples"])
    except QueryError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


def _answer(folder: Path, sql: str, examples: Mapping[str, Any] | None) -> dict[str, Any]:
    import duckdb

    from fogline.sql import close

    with duckdb.connect(":memory:", config={"threads": 1, "memory_limit": f"{_MEMORY}MB"}) as connection:
        connection.execute("set temp_directory = ''")
        _load(connection, folder, sql)
        if examples is not None:
            _load_examples(connection, examples)
        close(connection)
        _limit()
        try:
            statements = connection.extract_statements(sql)
            kinds = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
            if len(statements) != 1 or statements[0].type not in kinds:
                raise QueryError("expected one select, received something else; a run can be read here and not changed")
            cursor = connection.execute(statements[0])
            rows = cursor.fetchmany(MOST_ROWS + 1)
        except duckdb.Error as error:
            raise QueryError(str(error)) from None
        columns = [column[0] for column in cursor.description or ()]
    shown = [[_cell(value) for value in row] for row in rows[:MOST_ROWS]]
    return {"columns": columns, "rows": shown, "more": len(rows) > MOST_ROWS}


def _load(connection: Any, folder: Path, sql: str) -> None:
    """Copy the tables that the query names."""
    from fogline.dashboard.reading import reading

    with reading(folder, "steps", "layers", "scores", "events", "findings") as source:
        for table in _TABLES:
            columns = [
                (row[1], _TYPES.get(row[2].lower(), "varchar")) for row in source.execute(f"pragma table_info({table})")
            ]
            if not columns:
                continue
            declared = ", ".join(f'"{name.replace(chr(34), chr(34) * 2)}" {kind}' for name, kind in columns)
            connection.execute(f"create table {table} ({declared})")
            if re.search(rf"\b{table}\b", sql, re.IGNORECASE):
                _copy(connection, source.execute(f"select * from {table}"), table, [kind for _, kind in columns])


def _load_examples(connection: Any, asked: Mapping[str, Any]) -> None:
    """The table of examples with the last decision about each, the names of classes, and what is chosen."""
    import numpy as np
    from safetensors import safe_open

    from fogline.sql import without_nan

    with safe_open(asked["file"], framework="numpy") as opened:
        about = json.loads(opened.metadata()["fogline"])
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    found |= {name: np.array(values, dtype=object) for name, values in about["words"].items()}
    connection.execute("create table classes (target bigint, name varchar)")
    if about["classes"]:
        connection.executemany("insert into classes values (?, ?)", list(enumerate(about["classes"])))
    order = {name: f"c{at}" for at, name in enumerate(about["order"])}
    connection.register("columns", {order[name]: without_nan(values) for name, values in found.items()})
    shown, joined = [], ""
    for name, column in order.items():
        called = f'"{name.replace(chr(34), chr(34) * 2)}"'
        if name in found:
            shown.append(f"{column} as {called}")
        else:  # the names of the classes that another column has by number
            joined += f" left join classes as of_{column} on of_{column}.target = {order[name.removesuffix('_class')]}"
            shown.append(f"of_{column}.name as {called}")
    decided = list(zip(*asked["edits"], strict=True)) or [(), (), ()]
    columns = {"example": np.array(decided[0], dtype=np.int64), "edit": np.array(decided[1], dtype=object)}
    columns["edit_label"] = without_nan(np.array(decided[2], dtype=np.float64))
    connection.register("block", columns)
    connection.execute("create table decided as select example, edit::varchar as edit, edit_label from block")
    connection.unregister("block")
    connection.execute(
        "create view examples as select all_of.*, coalesce(edit, '') as edit, edit_label "
        f"from (select {', '.join(shown)} from columns{joined}) all_of left join decided using (example)"
    )
    connection.register("chosen", {"example": np.array(asked["chosen"], dtype=np.int64)})
    connection.execute("create table selected as select * from chosen")
    connection.unregister("chosen")


def _copy(connection: Any, cursor: Any, table: str, kinds: list[str]) -> None:
    """In blocks, as NumPy columns: a long run has more rows than fit into memory as Python values."""
    import numpy as np

    while rows := cursor.fetchmany(_AT_ONCE):
        block = {}
        for at, (kind, values) in enumerate(zip(kinds, zip(*rows, strict=True), strict=True)):
            if kind == "varchar":
                block[f"c{at}"] = np.array([None if value is None else str(value) for value in values], dtype=object)
            else:
                block[f"c{at}"] = (
                    np.ma.masked_invalid(np.array(values, dtype=np.float64)) if None in values else np.array(values)
                )
        connection.register("block", block)
        connection.execute(f"insert into {table} select * from block")
        connection.unregister("block")


def _limit() -> None:
    """From here on the process may write no file; where the system knows such limits."""
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (round(SECONDS), round(SECONDS)))


def _cell(value: Any) -> Any:
    """A value that fits in JSON."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | Decimal):
        value = float(value)
        return value if value - value == 0 else str(value)
    text = str(value)
    return text if len(text) <= _MOST_CELL else text[: _MOST_CELL - 1] + "…"


if __name__ == "__main__":
    main()
