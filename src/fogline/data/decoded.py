"""Encoded rows of a table in words again, for people to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.data.tables import Column, TableEncoder


def decoded(
    encoder: TableEncoder,
    inputs: NDArray[np.float64],  # (rows, len(encoder.names))
) -> tuple[list[str], list[list[str]]]:
    """The columns as they were before :meth:`TableEncoder.encode`, and the rows as texts; dropped columns are lost.

    >>> columns = Column("age", "number", 40.0, 10.0), Column("city", "one_hot", categories=("Bern", "Rome"))
    >>> decoded(TableEncoder(columns), np.array([[-1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]))
    (['age', 'city'], [['30', 'Rome'], ['45', 'Bern']])
    """
    names, columns, at = [], [], 0
    for column in encoder.columns:
        width = len(column.names)
        if width:
            names.append(column.name)
            columns.append(_texts(column, inputs[:, at : at + width]))
        at += width
    return names, [list(row) for row in zip(*columns, strict=True)]


def _texts(column: Column, values: NDArray[np.float64]) -> list[str]:
    if column.form == "one_hot":
        return [_category(column, row) for row in values]
    numbers = values[:, 0] * column.scale + column.mean
    if column.form == "boolean":
        return ["yes" if number > 0.5 else "no" for number in numbers]
    if column.form == "date":
        return [str(np.datetime64(round(number * 86_400), "s")).removesuffix("T00:00:00") for number in numbers]
    if column.form == "ordinal":
        ranks = numbers.round().astype(int)
        return [column.categories[rank] if rank < len(column.categories) else "?" for rank in ranks]
    texts = [f"{number:.6g}" for number in numbers.tolist()]
    if column.form == "mixed":
        return [_category(column, row) if row.any() else text for row, text in zip(values[:, 1:], texts, strict=True)]
    return texts


def _category(column: Column, row: NDArray[Any]) -> str:
    return column.categories[int(row.argmax())] if row.any() else "?"
