"""What the documentation says of each cause: its entry in ``docs/troubleshooting.md``, which the wheel carries.

Reports and the dashboard work without a network, so a finding carries its entry instead of a link to a site.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from fogline.errors import unknown

PAGE = "docs/troubleshooting.md"
"""Where the entries stand, from the root of the repository; the anchor of each is the name of its cause."""

_BEGINNING = f"All examples begin with the same lines: those under “The beginning of every example” in {PAGE}."
_CHECKOUT = Path(__file__).resolve().parents[2] / PAGE


def address(cause: Any) -> str:
    """Where the entry of a cause stands.

    >>> address("double_softmax")
    'docs/troubleshooting.md#double_softmax'
    """
    return f"{PAGE}#{cause}"


def names() -> tuple[str, ...]:
    """The causes that have an entry, in the order of the page.

    >>> "lr_too_high" in names()
    True
    """
    return tuple(_entries())


def entry(cause: str) -> str:
    """The entry of a cause in Markdown: symptom, mechanism, how to see it, the fix, a program.

    Raises:
        ValueError: no cause has this name.

    >>> entry("lr_too_high").splitlines()[0]
    '### lr_too_high'
    >>> entry("lr_to_high")
    Traceback (most recent call last):
    ValueError: unknown cause 'lr_to_high': did you mean 'lr_too_high'?
    """
    if cause not in _entries():
        raise unknown("cause", cause, _entries())
    return f"### {cause}\n\n{_entries()[cause]}\n\n{_BEGINNING}"


def folded(cause: Any) -> str:
    """The entry as HTML that opens on a click; nothing for a cause without one."""
    text = _entries().get(cause) if isinstance(cause, str) else None
    if text is None:
        return ""
    # A link between pages leads nowhere from a file that stands alone.
    alone = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
    alone = alone.replace("```python", "```")
    inner = MarkdownIt("commonmark", {"html": False}).render(f"{alone}\n\n{_BEGINNING}")
    return f'<details class="entry"><summary>More about {escape(str(cause))}</summary>{inner}</details>'


@lru_cache(maxsize=1)
def _entries() -> dict[str, str]:
    found = re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", _text(), re.DOTALL | re.MULTILINE)
    return {name: text.strip() for name, text in found}


def _text() -> str:
    """The page that came with the package; in a checkout, the one that is edited."""
    carried = files("fogline").joinpath("troubleshooting.md")
    return (carried if carried.is_file() else _CHECKOUT).read_text(encoding="utf-8")
