"""Docstrings are written to be read in a terminal; what Markdown and its parser do not know is rewritten for the site.

Roles such as :class:`Name` become code, ``one, other: words`` under ``Args`` becomes a line for each name, examples get
a fence, and ``::`` before what is indented is a colon.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(~?)(?:[^`<]*<)?([^`>]+)>?`")
_LITERAL = re.compile(r"::$", re.MULTILINE)
_GROUP = re.compile(r"^( {4})(\**\w+(?:, \**\w+)+): (.*)$")


class Rewritten(griffe.Extension):
    """Rewrites every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object that was read."""
        if obj.docstring:
            text = _LITERAL.sub(":", _ROLE.sub(_as_code, obj.docstring.value))
            obj.docstring.value = "\n".join(_fenced(_one_by_one(text.splitlines())))


def _as_code(found: re.Match[str]) -> str:
    tilde, name = found.groups()
    return f"`{name.rpartition('.')[2] if tilde else name}`"


def _one_by_one(lines: list[str]) -> Iterator[str]:
    """Lines in which each name has its own, with the same words."""
    at = 0
    while at < len(lines):
        found = _GROUP.match(lines[at])
        more = at + 1
        while found and more < len(lines) and lines[more].startswith(" " * 8):
            more += 1
        if not found:
            yield lines[at]
        for name in found[2].split(", ") if found else ():
            yield f"{found[1]}{name}: {found[3]}"
            yield from lines[at + 1 : more]
        at = more


def _fenced(lines: Iterable[str]) -> Iterator[str]:
    """Examples, from their first prompt to the next empty line, as code."""
    inside = ""
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        if not inside and line.lstrip().startswith(">>> "):
            inside = f"{indent}```"
            yield f"{inside}pycon"
        if inside and not line.strip():
            yield inside
            inside = ""
        yield line
    if inside:
        yield inside
