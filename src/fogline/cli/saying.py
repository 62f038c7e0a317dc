"""Text for terminals that know only some characters: a name or a message must not end the command."""

from __future__ import annotations

import sys

import typer

_PLAIN = str.maketrans(
    {
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{RIGHTWARDS ARROW}": "->",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{EN DASH}": "-",
        "\N{MINUS SIGN}": "-",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LESS-THAN OR EQUAL TO}": "<=",
        "\N{GREATER-THAN OR EQUAL TO}": ">=",
    }
)


def say(text: str, *, err: bool = False) -> None:
    """Print a line; characters that the terminal does not know are written by others, or as a question mark."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(encodable(text, stream.encoding or "ascii"), err=err)


def encodable(text: str, encoding: str) -> str:
    """The text in characters that the encoding has.

    >>> encodable("0.1 → 0.3 at “naïve”", "ascii")
    '0.1 -> 0.3 at "na?ve"'
    >>> encodable("0.1 → 0.3", "utf-8")
    '0.1 → 0.3'
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return text
