"""The files that pages load: our own, and Plotly's JavaScript out of its wheel. Nothing comes from elsewhere."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

_KINDS = MappingProxyType({".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"})
_OWN = files("fogline.dashboard").joinpath("static")


def _places() -> dict[str, Path]:
    own = {entry.name: Path(str(entry)) for entry in _OWN.iterdir() if Path(entry.name).suffix in _KINDS}
    plotly = importlib.util.find_spec("plotly")  # not imported: it takes longer than the first page
    assert plotly is not None
    assert plotly.origin is not None
    return own | {"plotly.min.js": Path(plotly.origin).parent / "package_data" / "plotly.min.js"}


def _version() -> str:
    digest = hashlib.sha256(importlib.metadata.version("plotly").encode())
    for name in sorted(set(FILES) - {"plotly.min.js"}):
        digest.update(FILES[name].read_bytes())
    return digest.hexdigest()[:12]


FILES = MappingProxyType(_places())
"""The file behind each name; a request chooses among these names and never says a path."""

VERSION = _version()
"""Stands in the address of each file, so that a browser may keep it for good."""


@cache
def unwanted_styles() -> tuple[str, ...]:
    """The identifiers of style sheets that Plotly puts into a page where no element has them: of maps, never drawn."""
    code = FILES["plotly.min.js"].read_text(encoding="utf-8")
    return tuple(re.findall(r'if\(!document\.getElementById\("([0-9a-f]{64})"\)\)', code))


def kind(name: str) -> str:
    """The media type of a file."""
    return _KINDS[Path(name).suffix]
