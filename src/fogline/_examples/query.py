"""SQL over one row an example, in a DuckDB that lives in memory and can reach nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from fogline.record.store import Table
from fogline.sql import close, without_nan


class QueryError(ValueError):
    """The query cannot be answered; the text says why."""


def query(columns: Mapping[str, NDArray[Any]], text: str) -> Table:
    """Answer one ``select`` over the table ``examples``.

    Files, other databases, extensions and the variables of the calling program cannot be reached, and nothing can be
    changed.

    Args:
        columns: of the table, equally long; NaN becomes NULL.
        text: the query.

    Returns:
        The columns of the answer; NULL among numbers is NaN.

    Raises:
        QueryError: it is no select, or names what is not there.

    >>> query({"example": np.arange(3), "loss": np.array([0.5, 2.0, 1.0])}, "select max(loss) as most from examples")
    Table(columns={'most': array([2.])})
    """
    with duckdb.connect(":memory:", config={"temp_directory": ""}) as connection:
        load(connection, columns)
        close(connection)
        try:
            statements = connection.extract_statements(text)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise QueryError(
                    "expected one select over the table examples, received something else; the record of a run can be "
                    "read here and not changed"
                )
            cursor = connection.execute(statements[0])
            found = cursor.fetchnumpy()
        except duckdb.Error as error:
            raise QueryError(_explained(str(error), columns)) from None
    return Table({name: _plain(values) for name, values in found.items()})


def load(connection: Any, columns: Mapping[str, NDArray[Any]]) -> None:
    """Make the table ``examples`` of a connection."""
    shown = {name: without_nan(values) for name, values in columns.items()}
    connection.register("columns_of_examples", shown)
    connection.execute("create table examples as select * from columns_of_examples")
    connection.unregister("columns_of_examples")


def _plain(values: Any) -> NDArray[Any]:
    if not isinstance(values, np.ma.MaskedArray):
        return np.asarray(values)
    if not values.mask.any():
        return np.asarray(values.data)
    if values.dtype.kind in "iufb":
        return np.ma.filled(values.astype(np.float64), np.nan)
    found = np.array(values.data, dtype=object)
    found[values.mask] = None
    return found


def _explained(message: str, columns: Mapping[str, NDArray[Any]]) -> str:
    """DuckDB's words, and what there is to ask for."""
    words = message.strip()
    if "disabled by configuration" in words or "external access" in words.lower():
        return f"expected a query over the table examples alone; files and other databases are out of reach ({words})"
    if "Catalog Error" in words or "Binder Error" in words:
        return f"{words}\nThere is one table, examples, with the columns {', '.join(columns)}"
    return words
