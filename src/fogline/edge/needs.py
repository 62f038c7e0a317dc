"""The packages that only an export needs: asked for when they are used, and quiet when they are."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

TARGETS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "executorch": ("executorch", "torchao"),
}
"""The packages a target needs, by their import names."""
_EXTRAS = {"onnx": "edge", "openvino": "openvino", "executorch": "executorch"}
_TALKATIVE = ("torch.onnx", "torch.export", "torch.utils._pytree", "torchao", "onnxscript", "onnx_ir", "executorch")


def require(target: str) -> None:
    """Raise where a package of a target is missing.

    Raises:
        ModuleNotFoundError: names the packages and the command that brings them.
    """
    missing = [name for name in TARGETS[target] if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"expected {', '.join(TARGETS[target])} for the target {target!r}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed; do: pip install 'fogline[{_EXTRAS[target]}]'"
        )


def module(name: str) -> Any:
    """A package of the extras, imported without its remarks."""
    with quiet():
        return importlib.import_module(name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and remarks of exporters from the user, who can do nothing about them."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
