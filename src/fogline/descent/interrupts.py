"""SIGTERM and SIGINT set a flag that the loop polls; a second Ctrl-C forces. A file in the run folder asks likewise."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fogline.run import Run

STOP = "stop"
"""The file whose appearance in a run folder asks its run to save and stop; whoever writes the run removes it.

No process is signalled: a number that has gone to another process meanwhile is never touched.
"""

_EVERY = 0.25  # seconds between two looks for the file

_requested: signal.Signals | None = None
_unheeded = False
"""Whether a signal came that nothing has asked about since."""
_depth = 0


class Interrupted(SystemExit):
    """The run was stopped from outside and saved; resume it and it goes on bit for bit.

    Left alone it ends the process with exit code 143 (SIGTERM) or 130 (Ctrl-C).

    Attributes:
        run: the run as it was saved.
        code: 128 plus the number of the signal.
        by_signal: whether a signal asked, and not the stop file.
    """

    def __init__(self, run: Run, code: int) -> None:
        super().__init__(code)
        self.run = run
        self.by_signal = _requested is not None

    def __str__(self) -> str:
        return f"interrupted and saved in {self.run.folder}; resume with: fogline resume {self.run.folder}"


class StopRequested(BaseException):  # not an error, nor for those who catch errors: a request on its way to the loop
    """Raised where the flag is polled; the loop saves and turns it into Interrupted."""


class StopFile:
    """The file by which a run is asked to stop, looked for now and then.

    Args:
        folder: of the run; a file that was left there before asks for nothing and is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STOP
        self._next = 0.0
        self.remove()

    def found(self) -> bool:
        """Whether it is there; most calls only read the clock."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _EVERY
        return self.path.exists()

    def remove(self) -> None:
        """Take it away, so that it does not ask twice."""
        self.path.unlink(missing_ok=True)


@dataclass
class Agreement:
    """What several processes that train together have agreed on: all of them stop, or none does.

    Attributes:
        reached: whether all stop.
        alone: whether this process does something without the others meanwhile, and heeds what itself was asked.
    """

    reached: bool = False
    alone: bool = False


agreement: Agreement | None = None
"""Of the run that goes on in several processes, if there is one."""
polls = 0
"""How often :func:`poll` was called: a process in which it grows gets on."""


class _Watched(threading.local):
    """The stop file of the run of this thread."""

    file: StopFile | None = None


_watched = _Watched()


def poll() -> None:
    """Raise StopRequested if a signal or the run's stop file has come; cheap enough for every step and every probe."""
    global polls
    polls += 1
    if agreement is None or agreement.alone:
        if wanted():
            raise StopRequested
    elif agreement.reached:
        raise StopRequested


def wanted() -> bool:
    """Whether a signal, or the run's stop file, asked this process."""
    return _heeded() or ((file := _watched.file) is not None and file.found())


def _heeded() -> bool:
    global _unheeded
    _unheeded = False
    return _requested is not None


def requested_code() -> int:
    """The exit code of the signal that came; that of SIGTERM where the file asked."""
    _heeded()
    return 128 + int(_requested or signal.SIGTERM)


def request(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the running descent to save and stop, as the signal would."""
    global _requested
    _requested = number


@contextmanager
def watched_stop(folder: Path) -> Iterator[None]:
    """Within it :func:`poll` also looks for the stop file of this run; a run within a run has its own."""
    before, file = _watched.file, StopFile(folder)
    _watched.file = file
    try:
        yield
    finally:
        _watched.file = before
        file.remove()


@contextmanager
def agreeing(on: Agreement | None) -> Iterator[None]:
    """Within it :func:`poll` heeds what the processes have agreed on, and not what this one was asked."""
    global agreement
    before, agreement = agreement, on
    try:
        yield
    finally:
        agreement = before


@contextmanager
def watched_signals() -> Iterator[None]:
    """Within it the two signals only set the flag; outside the main thread nothing changes.

    One that comes too late for anybody to ask about it is sent again once its own handler is back: none is lost.
    """
    global _requested, _unheeded, _depth
    if threading.current_thread() is not threading.main_thread() or _depth:
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _requested, _unheeded = None, False
    _depth = 1
    for number in before:
        signal.signal(number, _remember)
    try:
        yield
    finally:
        late = _late()
        _depth = 0
        _requested = None
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if late is not None:
            signal.raise_signal(late)


def _late() -> signal.Signals | None:
    """The signal that nobody asked about, if there is one."""
    return _requested if _unheeded else None


def _remember(number: int, frame: FrameType | None) -> None:
    global _requested, _unheeded
    if _requested is signal.SIGINT and number == signal.SIGINT:
        raise KeyboardInterrupt
    _requested, _unheeded = signal.Signals(number), True
