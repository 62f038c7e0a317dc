"""The table in the formats of others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fogline._examples.query import load
from fogline.errors import unknown
from fogline.record.store import Table

if TYPE_CHECKING:
    from torch import Tensor

_FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv, delimiter '\t'", ".json": "json"}


def write_table(table: Table, path: Path) -> Path:
    """Write a table as Parquet, CSV, TSV or JSON (a row a line), by the end of its name.

    Raises:
        ValueError: another ending.
        OSError: it cannot be written.
    """
    if path.suffix.lower() not in _FORMATS:
        raise unknown("ending", path.suffix, _FORMATS)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    quoted = str(beside).replace("'", "''")
    with duckdb.connect(":memory:") as connection:
        load(connection, table.columns)
        connection.execute(f"copy examples to '{quoted}' (format {_FORMATS[path.suffix.lower()]})")
    beside.replace(path)
    return path


def cleanlab_table(targets: NDArray[np.int64], likely: NDArray[np.int64], probability: NDArray[Any]) -> Table:
    """The columns of cleanlab's ``get_label_issues``: one row an example, in the order of the data."""
    return Table(
        {
            "is_label_issue": probability > 0.5,
            "label_quality": 1.0 - probability.astype(np.float64),
            "given_label": targets,
            "predicted_label": np.where(likely >= 0, likely, targets),
        }
    )


def write_fiftyone(
    folder: Path, pictures: Tensor, table: Table, classes: Sequence[str], ids: NDArray[np.int64]
) -> Path:
    """Write a folder in FiftyOne's ``FiftyOneImageClassificationDataset`` format: ``data/`` and ``labels.json``.

    Args:
        folder: where; it must not exist or be empty.
        pictures: (N, channels, height, width) with 1 or 3 channels.
        table: of the examples; the numbers of each become attributes of its label.
        classes: names.
        ids: the examples to write.

    Raises:
        FileExistsError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"expected a new or empty folder, found files in {folder}; take another name")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    low, high = float(pictures.min()), float(pictures.max())
    names = [name for name, values in table.columns.items() if values.dtype.kind in "iufb"]
    labels: dict[str, Any] = {}
    for example in ids.tolist():
        pixels = ((pictures[example].float() - low) / max(high - low, 1e-12) * 255).round().byte().cpu()
        array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / "data" / f"{example}.png")
        attributes = {name: _number(table[name][example]) for name in names}
        labels[str(example)] = {"label": classes[int(table["target"][example])], "attributes": attributes}
    text = json.dumps({"classes": list(classes), "labels": labels}, indent=1)
    (folder / "labels.json").write_text(text, encoding="utf-8")
    return folder


def _number(value: Any) -> Any:
    plain = value.item()
    return None if isinstance(plain, float) and plain != plain else plain
