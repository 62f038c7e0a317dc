"""Run an exported model: ``python predict.py ROWS.csv`` or ``python predict.py INPUTS.npy``.

Needs ONNX Runtime and NumPy. The model itself says how its inputs are made and what its outputs mean: columns of a
table are encoded as in training, images (n, height, width, channels) of bytes are scaled, other arrays are standardised
where the model has a scaler. A detector takes images of any one size and gives boxes in their pixels.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

MODEL = "model.onnx"


class Model:
    """An ONNX file with what it knows of its inputs and outputs.

    Attributes:
        about: the file's metadata.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3  # errors; what it optimizes is no news
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        stored = self.session.get_modelmeta().custom_metadata_map.get("fogline", "{}")
        self.about: dict[str, Any] = json.loads(stored)
        self.input = self.session.get_inputs()[0]

    def outputs(self, inputs: Any) -> list[Any]:
        """The raw outputs for inputs as the network takes them, (n, ...)."""
        wanted = np.int64 if "int64" in self.input.type else np.float32
        inputs = np.ascontiguousarray(inputs, dtype=wanted)
        fixed = self.input.shape[0] if isinstance(self.input.shape[0], int) else None
        most = fixed or self.about.get("largest_batch") or max(1, len(inputs))
        parts = [self.session.run(None, {self.input.name: inputs[k : k + most]}) for k in range(0, len(inputs), most)]
        return [np.concatenate(items) for items in zip(*parts, strict=True)]

    def encode(self, rows: list[dict[str, str]]) -> Any:
        """Rows of a table, as text by column, as inputs (n, columns)."""
        encoder = self.about.get("encoder")
        if encoder is None:
            numbers = np.array([[float(cell) for cell in row.values()] for row in rows])
            return self.scale(numbers)
        if encoder["kind"] != "table":
            raise ValueError("expected images as an .npy file for this model, received a table")
        columns = [column for column in encoder["columns"] if column["form"] != "dropped"]
        missing = [column["name"] for column in columns if column["name"] not in rows[0]]
        if missing:
            raise ValueError(f"expected the columns of the training data, but {', '.join(missing)} is missing")
        return np.concatenate([_encoded(column, [row[column["name"]] for row in rows]) for column in columns], axis=1)

    def scale(self, values: Any) -> Any:
        """An array as it was measured as inputs: images of bytes scaled, numbers standardised if there is a scaler."""
        encoder = self.about.get("encoder") or {}
        if encoder.get("kind") == "letterbox":
            return _letterboxed(values, _Frame.of(values.shape, encoder), encoder["fill"])
        if encoder.get("kind") == "image":
            pixels = np.moveaxis(values.astype(np.float32) / 255, -1, 1)  # (n, channels, height, width)
            mean, scale = (np.array(encoder[name], np.float32)[:, None, None] for name in ("mean", "scale"))
            return (pixels - mean) / scale
        scaler = self.about.get("scaler")
        if scaler is None:
            return values
        mean, scale = np.array(scaler["mean"]), np.array(scaler["scale"])
        shape = (-1, *[1] * (values.ndim - 2)) if values.ndim > 2 else (-1,)  # per channel, or per column
        return (values - mean.reshape(shape)) / scale.reshape(shape)

    def answers(self, values: Any) -> list[dict[str, Any]]:
        """One answer for each row of an array as it was measured; boxes are in pixels of the images as they came."""
        found = self.predict(self.scale(values))
        if self.about.get("kind") == "detection":
            frame = _Frame.of(values.shape, self.about["encoder"])
            for box in (box for answer in found for box in answer["boxes"]):
                box["corners"] = frame.back(box["corners"])
        return found

    def predict(self, inputs: Any) -> list[dict[str, Any]]:
        """One answer for each input: its class and the probability, all that apply, the numbers with units, or boxes.

        Where the network has more outputs, their numbers follow under the names they have in the file.
        """
        outputs, *others = self.outputs(inputs)
        answers = self._answers(outputs)
        names = [item.name for item in self.session.get_outputs()][1:]
        for name, values in zip(names, others, strict=True):
            for answer, row in zip(answers, values, strict=True):
                answer[name] = row.tolist()
        return answers

    def _answers(self, outputs: Any) -> list[dict[str, Any]]:
        if self.about.get("kind") == "detection":
            return [{"boxes": self._boxes(rows)} for rows in outputs]
        if self.about.get("kind") != "classification":
            return [self._numbers(row) for row in outputs.reshape(len(outputs), -1)]
        if outputs.ndim < 2 or outputs.shape[1] == 1 or self.about.get("multilabel"):
            return [self._yes(row) for row in outputs > self.about.get("threshold", 0.0)]
        return [self._class(row) for row in outputs]

    def _yes(self, flags: Any) -> dict[str, Any]:
        classes = self.about.get("classes")
        if self.about.get("multilabel"):
            return {"classes": [_name(classes, int(place)) for place in np.flatnonzero(flags)]}
        return {"class": _name(classes, int(flags.item())) if flags.size == 1 else flags.astype(int).tolist()}

    def _class(self, row: Any) -> dict[str, Any]:
        """The class and its probability; of a picture in which every place has a class, the numbers of these."""
        if row.ndim > 1:
            return {"class": row.argmax(0).tolist()}
        best, known = int(row.argmax()), bool((row >= 0).all()) and abs(float(row.sum()) - 1) < 1e-3
        raised = row if known else np.exp(row - row.max())  # the network may end in a softmax of its own
        probability = round(float(raised[best] / raised.sum()), 4)
        return {"class": _name(self.about.get("classes"), best), "probability": probability}

    def _boxes(self, rows: Any) -> list[dict[str, Any]]:
        """Of rows (corners, confidence, class) those that are confident enough."""
        classes, least = self.about.get("classes"), self.about["confidence"]
        return [
            {"class": _name(classes, int(kind)), "confidence": round(sure, 4), "corners": corners}
            for *corners, sure, kind in rows.tolist()
            if sure > least
        ]

    def _numbers(self, row: Any) -> dict[str, Any]:
        units = self.about.get("units") or []
        named = self.about.get("target") or "output"
        answer: dict[str, Any] = {}
        for place, value in enumerate(row.tolist()):
            name = named if len(row) == 1 else f"{named}_{place}"
            unit = units[place] if place < len(units) else units[0] if len(units) == 1 else ""
            answer[f"{name} [{unit}]" if unit else name] = value
        return answer


class _Frame:
    """How an image lies in the square that the network sees: made smaller or larger, in the middle."""

    def __init__(self, height: int, width: int, high: int, wide: int) -> None:
        self.size = height, width
        ratio = min(high / height, wide / width)
        self.high, self.wide = max(1, round(height * ratio)), max(1, round(width * ratio))
        self.top, self.left = (high - self.high) // 2, (wide - self.wide) // 2
        self.square = high, wide

    @classmethod
    def of(cls, shape: tuple[int, ...], encoder: dict[str, Any]) -> _Frame:
        """Of images (n, height, width, channels)."""
        return cls(shape[1], shape[2], encoder["height"], encoder["width"])

    def back(self, corners: list[float]) -> list[float]:
        """Corners x, y, x, y in pixels of the image."""
        height, width = self.size
        scale, start, most = (width / self.wide, height / self.high), (self.left, self.top), (width, height)
        return [
            round(min(max((value - start[k % 2]) * scale[k % 2], 0.0), most[k % 2]), 2)
            for k, value in enumerate(corners)
        ]


def _letterboxed(images: Any, frame: _Frame, fill: int) -> Any:
    """Images (n, height, width, 3) of bytes as inputs (n, 3, high, wide) from 0 to 1."""
    high, wide = frame.square
    inputs = np.full((len(images), high, wide, images.shape[3]), float(fill), np.float32)
    inside = inputs[:, frame.top : frame.top + frame.high, frame.left : frame.left + frame.wide]
    inside[...] = _resized(_resized(images.astype(np.float32), frame.high, 1), frame.wide, 2)
    return np.moveaxis(inputs, -1, 1) / 255


def _resized(images: Any, size: int, axis: int) -> Any:
    """The images with another number of rows or columns, each between the two it lies between."""
    count = images.shape[axis]
    places = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    low = places.astype(np.int64)
    share = (places - low).reshape([-1 if k == axis else 1 for k in range(images.ndim)]).astype(np.float32)
    return images.take(low, axis) * (1 - share) + images.take(np.minimum(low + 1, count - 1), axis) * share


def _name(classes: list[str] | None, place: int) -> str:
    return classes[place] if classes else str(place)


def _encoded(column: dict[str, Any], cells: list[str]) -> Any:
    """The columns that one column of text becomes, (n, width)."""
    form, categories = column["form"], column["categories"]
    texts = [cell.strip() for cell in cells]
    if form == "date":
        return _standard(column, np.array(texts, dtype="datetime64[s]").astype(np.float64) / 86400)
    if form == "boolean":
        yes = np.array([text.lower() in ("true", "1", "1.0", "yes", "t") for text in texts], dtype=np.float64)
        return _standard(column, yes)
    places = np.array([categories.index(text) if text in categories else len(categories) for text in texts])
    if form == "ordinal":
        return _standard(column, places.astype(np.float64))
    hot = (places[:, None] == np.arange(len(categories))).astype(np.float64)
    if form == "one_hot":
        return hot
    numbers = np.array([_number(text) for text in texts])
    if form == "mixed":
        filled = np.where(np.isnan(numbers), column["mean"], numbers)
        return np.concatenate([_standard(column, filled), hot], axis=1)
    if np.isnan(numbers).any():
        raise ValueError(
            f"expected numbers in column {column['name']!r}, received {texts[int(np.isnan(numbers).argmax())]!r}"
        )
    return _standard(column, numbers)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _standard(column: dict[str, Any], numbers: Any) -> Any:
    return ((numbers - column["mean"]) / column["scale"])[:, None]


def answered(model: Model, path: Path) -> list[dict[str, Any]]:
    """The answers for the rows of a .csv or .npy file."""
    if path.suffix == ".npy":
        return model.answers(np.load(path))
    rows = table_rows(path)
    if not rows:
        raise ValueError(f"expected rows in {path}, found none")
    return model.predict(model.encode(rows))


def table_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a .csv file as text by column, with the separator of its header, as training read its own."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = re.sub(r'"[^"]*"', "", file.readline())
        separator = max(",;\t|", key=header.count)
        file.seek(0)
        rows = [row for row in csv.reader(file, delimiter=separator) if row]
    names = [name.strip() or f"column{place}" for place, name in enumerate(rows[0])] if rows else []
    odd = next((row for row in rows if len(row) != len(names)), None)
    if odd is not None:
        raise ValueError(f"expected {len(names)} cells in every row of {path}, received {len(odd)}: {odd}")
    if separator != ",":  # a comma in a number is its decimal point then
        rows = [[re.sub(r"^(\s*[+-]?\d+),(\d+)", r"\1.\2", cell) for cell in row] for row in rows]
    return [dict(zip(names, row, strict=True)) for row in rows[1:]]


def main() -> None:
    """Print one JSON object a row."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python predict.py ROWS.csv|INPUTS.npy")
    model = Model(Path(__file__).with_name(MODEL))
    for answer in answered(model, Path(sys.argv[1])):
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
