"""The packages that only a plug-in needs."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, extra: str, package: str | None = None) -> Any:
    """Import a module of an optional package.

    Args:
        module: its name.
        extra: of this library, that brings the package.
        package: its name for pip, by default the extra's.

    Raises:
        ModuleNotFoundError: it is not installed; names the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, and something of its own is missing
        raise ModuleNotFoundError(
            f"expected the package {package or extra!r}, which is not installed; do: pip install 'fogline[{extra}]'",
            name=error.name,
        ) from error
