"""Examples as people look at them: a picture, a text or a row, its label, the likely one, and what to do with it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.dashboard.example_table import Seen
from fogline.dashboard.markup import address, small_line
from fogline.record.store import Table
from fogline.words import number

_SHOWN_SIDE = 96  # pixels that a thumbnail is drawn at, at least; small ones are enlarged without smoothing
_MARKS = {"relabel": "relabelled", "drop": "left out", "keep": "kept"}


def cards(seen: Seen, table: Table, ids: Sequence[int], name: str) -> str:
    """The examples as HTML: a table for rows, else a card each.

    Args:
        seen: the examples of a run.
        table: its table with edits.
        ids: those to be shown, in order.
        name: of the run.
    """
    _, curves = seen.curves(ids, ("confidence", "loss"))
    lines = curves.get("confidence", curves.get("loss"))
    sparks = [spark(lines[:, at]) if lines is not None else "" for at in range(len(ids))]
    if seen.previews is not None and seen.previews.kind == "rows":
        return _rows(seen, table, ids, sparks)
    made = [_card(seen, table, example, name, line) for example, line in zip(ids, sparks, strict=True)]
    kind = "texts" if seen.previews is not None and seen.previews.kind == "texts" else "images"
    return f'<div class="gallery {kind}" data-gallery>{"".join(made)}</div>'


def _card(seen: Seen, table: Table, example: int, name: str, line: str) -> str:
    edit, heard = str(table["edit"][example]), _heard(seen, table, example)
    return (
        f'<article class="example {edit}" data-example="{example}" tabindex="-1" aria-label="{heard}">'
        f"{_picture(seen, example, name)}{_said(seen, table, example)}{line}{_buttons(seen, table, example)}</article>"
    )


def _rows(seen: Seen, table: Table, ids: Sequence[int], sparks: Sequence[str]) -> str:
    assert seen.previews is not None
    columns = ("example", "label", *seen.previews.columns, "over the epochs", "decide")
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = []
    for example, line in zip(ids, sparks, strict=True):
        cells = seen.previews.cells(example) or [""] * len(seen.previews.columns)
        inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(
            f'<tr class="example {table["edit"][example]}" data-example="{example}" tabindex="-1" '
            f'aria-label="{_heard(seen, table, example)}"><th scope="row">{example}</th>'
            f"<td>{_said(seen, table, example, numbered=False)}</td>{inner}<td>{line}</td>"
            f"<td>{_buttons(seen, table, example)}</td></tr>"
        )
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Examples"><table class="rows" data-gallery>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _picture(seen: Seen, example: int, name: str) -> str:
    """The thumbnail, or the text, where one is kept."""
    previews = seen.previews
    place = None if previews is None else previews.place(example)
    if previews is None or place is None:
        return '<p class="none faint">no preview</p>' if previews is not None else ""
    if previews.kind == "images":
        source = escape(address(name, "examples", str(example), "thumbnail"))
        return f'<img src="{source}" alt="" loading="lazy" width="{_SHOWN_SIDE}" height="{_SHOWN_SIDE}">'
    return f'<p class="text">{escape(previews.words[place])}</p>'


def _said(seen: Seen, table: Table, example: int, *, numbered: bool = True) -> str:
    """Its number, its label, and the likely label where another one is likelier."""
    head = f'<span class="id">{example}</span> ' if numbered else ""
    label = label_words(seen, _at(table, "target", example))
    words = f"{head}<b>{escape(label)}</b>" if label else head
    likely, error = _likely(table, example), _at(table, "label_error", example)
    edit = str(table["edit"][example])
    if edit:
        new = label_words(seen, _at(table, "edit_label", example))
        words += f' <span class="mark">{_MARKS.get(edit, edit)}{f" {escape(new)}" if new else ""}</span>'
    elif likely is not None:
        words += f' <span class="likely">→ {escape(label_words(seen, likely))}</span>'
    if error is not None and error >= 0.01:
        words += f' <span class="share" title="probability of a wrong label">{error:.0%}</span>'
    return f'<p class="says">{words}</p>'


def _buttons(seen: Seen, table: Table, example: int) -> str:
    """What can be decided; what was decided is pressed, and pressing it again takes it back."""
    edit, likely = str(table["edit"][example]), _likely(table, example)
    pressed = {action: f' aria-pressed="{"true" if edit == action else "false"}"' for action in _MARKS}
    relabel = ""
    if likely is not None or edit == "relabel":
        new = likely if likely is not None else _at(table, "edit_label", example)
        label = escape(label_words(seen, new))
        relabel = (
            f'<button type="button" data-edit="relabel" data-label="{number_text(new)}"{pressed["relabel"]} '
            f'title="relabel as {label}">{label}</button>'
        )
    return (
        f'<div class="decide">{relabel}<button type="button" data-edit="drop"{pressed["drop"]}>drop</button>'
        f'<button type="button" data-edit="keep"{pressed["keep"]}>keep</button>'
        f'<button type="button" data-open="{example}" aria-label="more of example {example}">…</button></div>'
    )


def _heard(seen: Seen, table: Table, example: int) -> str:
    words = [f"example {example}", label_words(seen, _at(table, "target", example))]
    likely, edit = _likely(table, example), str(table["edit"][example])
    if likely is not None:
        words.append(f"likely {label_words(seen, likely)}")
    words.append(_MARKS.get(edit, ""))
    return escape(", ".join(filter(None, words)))


def _likely(table: Table, example: int) -> float | None:
    """The likely label, where it is another one than it has."""
    likely, target = _at(table, "likely", example), _at(table, "target", example)
    return None if likely is None or likely < 0 or likely == target else likely


def _at(table: Table, column: str, example: int) -> float | None:
    """A number of the table; None where it has none."""
    if column not in table.columns:
        return None
    value = float(table[column][example])
    return value if math.isfinite(value) else None


def label_words(seen: Seen, value: float | None) -> str:
    """A label by the name of its class, or as a number."""
    if value is None:
        return ""
    if seen.classes and value.is_integer() and 0 <= value < len(seen.classes):
        return seen.classes[int(value)]
    return number(int(value)) if value.is_integer() else number(value)


def number_text(value: float | None) -> str:
    """A number that Python and JavaScript read alike."""
    return "" if value is None else str(int(value)) if value.is_integer() else repr(value)


def spark(values: NDArray[np.float64]) -> str:
    """A small line over the epochs, between 0 and 1 where the values are; nothing where there are fewer than two."""
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) < 2:
        return ""
    known = values[finite]
    return small_line(values.tolist(), min(0.0, float(known.min())), max(1.0, float(known.max())))


def thumbnail(seen: Seen, example: int) -> bytes | None:
    """The picture of an example as PNG; None where it has none."""
    previews = seen.previews
    place = None if previews is None or previews.kind != "images" else previews.place(example)
    if previews is None or place is None or previews.pixels is None:
        return None
    from PIL import Image

    pixels = previews.pixels[place]
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def details(seen: Seen, table: Table, example: int, name: str) -> dict[str, Any]:
    """Everything that is known of an example, for its dialog, as HTML: what is seen first, and all its numbers."""
    from fogline.plots.example_map import words_of
    from fogline.tables import rows_table

    rows = []
    for column, values in table.columns.items():
        if column in ("example", "edit", "edit_label") or seen.names_classes(column):
            continue
        value = values[example]
        of_class = column in ("target", "predicted", "likely")
        text = label_words(seen, float(value)) if of_class and float(value) == float(value) else _plain(value)
        rows.append([words_of(column), text])
    cells = None if seen.previews is None else seen.previews.cells(example)
    if cells is not None and seen.previews is not None and seen.previews.kind == "rows":
        rows += [[f"column {column}", cell] for column, cell in zip(seen.previews.columns, cells, strict=True)]
    picture = _picture(seen, example, name) if seen.previews is None or seen.previews.kind != "rows" else ""
    head = f'<div class="example-head">{picture}{_said(seen, table, example)}</div>'
    return {"head": head, "rows": rows_table(f"Example {example}", ["what", "value"], rows)}


def _plain(value: Any) -> str:
    item = value.item() if isinstance(value, np.generic) else value
    return number(item) if isinstance(item, int | float) else str(item)
