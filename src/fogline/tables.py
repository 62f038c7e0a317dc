"""The HTML table of the reports and the dashboard. Without NumPy and Plotly, so that the first page comes at once."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def rows_table(label: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A table of plain texts, which scrolls in its own box on a narrow screen; the first column heads each row.

    Args:
        label: what it is a table of, for those who hear the page.
        columns: their names.
        rows: a text for each column.
        numbers: all columns but the first are numbers, and end at the right.

    >>> rows_table("Scores", ["score", "last"], [["a < b", "0.5"]]).count("&lt;")
    1
    """
    kind = ' class="number"' if numbers else ""
    head = "".join(f'<th scope="col"{kind if at else ""}>{escape(name)}</th>' for at, name in enumerate(columns))
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
