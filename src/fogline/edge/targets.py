"""What differs between targets: the integers, the file, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fogline.edge.capture import Captured, Graph
from fogline.edge.kernels import Kernels, float_twin, float_weights, kernels_of
from fogline.edge.needs import TARGETS, require
from fogline.edge.onnx_file import open_session, run_session, write
from fogline.edge.quantize import SIGNED, UNSIGNED, Grid
from fogline.errors import unknown

Array = NDArray[Any]
Call = Callable[[Array], Sequence[Array]]


@dataclass(frozen=True)
class Target:
    """A runtime that a file is made for.

    Attributes:
        name: of the target.
        suffix: of its files.
        grid: its integers.
        bits: of weights that it has kernels for.
        write: the file of a graph: ``write(graph, captured, path, metadata)``.
        opened: a file as a function of a batch: ``opened(path, threads)``.
        twin: the same file without its integers, as a function of a batch, and its size: ``twin(path, threads)``; None
            where it cannot be made from the file.
        looked: which kernels the file becomes, and the constants it still holds as floats.
    """

    name: str
    suffix: str
    grid: Grid
    bits: tuple[int, ...]
    write: Callable[[Graph, Captured, Path, Mapping[str, Any]], Path]
    opened: Callable[[Path, int], Call]
    twin: Callable[[Path, int], tuple[Call, int] | None]
    looked: Callable[[Path], tuple[Kernels | None, list[tuple[str, int]]]]


def target_of(name: str) -> Target:
    """A target by name; its packages are there.

    Raises:
        ValueError: for an unknown target.
        ModuleNotFoundError: its packages are not installed.
    """
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    require(name)
    if name == "onnx":
        return Target(name, ".onnx", UNSIGNED, (32, 8), write, onnx_call, _onnx_twin, _looked)
    if name == "openvino":
        from fogline.edge import openvino_file as vino

        return Target(name, ".xml", UNSIGNED, (32, 8), vino.write, vino.opened, vino.twin, _untold)
    from fogline.edge import executorch_file as torch_file

    written, opened = torch_file.write, torch_file.opened
    return Target(name, ".pte", SIGNED, (32, 8, 4), written, opened, lambda *_: None, _untold)


def onnx_call(path: Path | bytes, threads: int) -> Call:
    """An ONNX file, or its contents, in ONNX Runtime."""
    session = open_session(path, threads=threads)
    return lambda inputs: run_session(session, inputs)


def _onnx_twin(path: Path, threads: int) -> tuple[Call, int] | None:
    contents = float_twin(path)
    return None if contents is None else (onnx_call(contents, threads), len(contents))


def _looked(path: Path) -> tuple[Kernels | None, list[tuple[str, int]]]:
    return kernels_of(path), float_weights(path)


def _untold(_: Path) -> tuple[Kernels | None, list[tuple[str, int]]]:
    """Of a runtime that does not say which kernels it takes."""
    return None, []
