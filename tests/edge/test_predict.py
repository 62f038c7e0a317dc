"""What the program beside a file answers, for every kind of output; the network gives back its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra 'edge' is not installed: pip install 'fogline[edge]'")
pytest.importorskip("onnxruntime", reason="the extra 'edge' is not installed: pip install 'fogline[edge]'")

from fogline.edge.onnx_file import describe  # noqa: E402
from fogline.edge.predict import Model, table_rows  # noqa: E402


def model(path: Path, shape: tuple[int, ...], **about: Any) -> Model:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, ["n", *shape]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "same", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    describe(made, about)
    onnx.save(made, str(path))
    return Model(path)


@pytest.mark.parametrize(
    ("outputs", "about", "answer"),
    [
        ([0.0, np.log(3.0)], {"classes": ["a", "b"]}, {"class": "b", "probability": 0.75}),
        ([0.25, 0.75], {}, {"class": "1", "probability": 0.75}),  # of a network that ends in a softmax
        ([0.1], {"classes": ["no", "yes"]}, {"class": "yes"}),
        ([0.1], {"threshold": 0.5}, {"class": "0"}),
        ([1.0, -1.0, 2.0], {"multilabel": True, "classes": ["x", "y", "z"]}, {"classes": ["x", "z"]}),
        ([-1.0, -1.0], {"multilabel": True}, {"classes": []}),
        ([[[0.0, 2.0]], [[1.0, 1.0]]], {}, {"class": [[1, 0]]}),  # two classes, a picture of 1 x 2
        ([[[-1.0, 2.0]]], {}, {"class": [[[0, 1]]]}),  # yes or no at every place
    ],
)
def test_a_decision_is_told_by_what_the_outputs_mean(
    tmp_path: Path, outputs: Any, about: dict[str, Any], answer: dict[str, Any]
) -> None:
    given = np.array([outputs], np.float32)
    found = model(tmp_path / "same.onnx", given.shape[1:], kind="classification", **about)
    assert found.predict(given) == [answer]


def test_numbers_come_with_their_names_and_units(tmp_path: Path) -> None:
    found = model(tmp_path / "same.onnx", (2,), kind="regression", target="size", units=["mm", "kg"])
    assert found.predict(np.array([[1.5, 2.0]], np.float32)) == [{"size_0 [mm]": 1.5, "size_1 [kg]": 2.0}]


@pytest.mark.parametrize("text", [",x,y\n0,1.5,2\n1,-3,4\n", "\ufeff;x;y\r\n0;1,5;2\r\n\r\n1;-3;4\r\n"])
def test_rows_are_read_as_training_reads_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(text.encode())
    assert table_rows(tmp_path / "rows.csv") == [
        {"column0": "0", "x": "1.5", "y": "2"},
        {"column0": "1", "x": "-3", "y": "4"},
    ]


def test_a_row_of_another_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"expected 2 cells in every row .* received 1"):
        table_rows(tmp_path / "rows.csv")
