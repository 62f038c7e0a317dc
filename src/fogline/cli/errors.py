"""What a person sees when something is wrong: one message for bad input, their own frames for their own errors."""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import typer

from fogline.errors import LostError

DONE, BAD_RUN, BAD_INPUT, DISK, LOST = 0, 1, 2, 74, 75

_PACKAGE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})
_MISPLACED = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn the library's complaints about bad input into one message and exit code 2, a full disk into 74.

    An error that is raised by user code, or by something user code called, passes through with its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        if not _is_ours(error.__traceback__):
            raise
        fail(f"{error}{_where(error.__traceback__)}")
    except LostError as error:
        fail(str(error), LOST)
    except _MISPLACED as error:
        if _user_frames(error.__traceback__):
            raise
        fail(str(error))
    except BrokenPipeError as error:
        if _user_frames(error.__traceback__):
            raise
        # Whoever read has seen enough, as in `fogline show RUN | head`. Python would complain once more as it leaves.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(DONE) from None
    except OSError as error:
        if _user_frames(error.__traceback__) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail(f"{error}; free some space, then `fogline resume` goes on from the last checkpoint", DISK)


def fail(message: str, code: int = BAD_INPUT) -> None:
    """Print a message to standard error and leave with an exit code."""
    typer.echo(f"fogline: {message}", err=True)
    raise typer.Exit(code)


def show_own_frames(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An exception hook that begins the traceback where the user's own code begins."""
    if isinstance(error, SyntaxError) and _is_users(error.filename or ""):
        trace = None  # it names the line itself, and no frame of the user's was reached
    begin = trace
    while begin is not None and not _is_users(begin.tb_frame.f_code.co_filename):
        begin = begin.tb_next
    traceback.print_exception(kind, error, begin or trace, file=sys.stderr)


def _frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(trace))


def _is_ours(trace: TracebackType | None) -> bool:
    frames = _frames(trace)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGE)


def _user_frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    return [frame for frame in _frames(trace) if _is_users(frame.filename)]


def _is_users(filename: str) -> bool:
    return not filename.startswith((_PACKAGE, "<", *_LIBRARIES)) and Path(filename).suffix == ".py"


def _where(trace: TracebackType | None) -> str:
    frames = _user_frames(trace)
    return f"\n  in {frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
