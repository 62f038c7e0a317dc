"""The dashboard beside a run that trains: in a process of its own, so that neither slows the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fogline.dashboard.server import check_installed
from fogline.descent.interrupts import Interrupted


@contextmanager
def beside(runs: Path, say: Callable[[str], None] = print) -> Iterator[Callable[[], None]]:
    """Show the runs of a folder while the block trains; gives a function that waits until Ctrl-C.

    It ends with the block, and with this process however that ends. A run that was stopped from the dashboard leaves it
    open, since somebody is looking; one that was stopped by a signal does not.

    Raises:
        ModuleNotFoundError: the extra ``dashboard`` is not installed.
    """
    check_installed()
    command = [sys.executable, "-m", "fogline", "ui", str(runs), "--attached"]
    # In a session of its own: Ctrl-C is for the training.
    shown = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def stay() -> None:
        say("the dashboard stays open; Ctrl-C ends it")
        try:
            shown.wait()
        except KeyboardInterrupt:
            return

    try:
        yield stay
    except Interrupted as stopped:
        if not stopped.by_signal:
            stay()
        raise
    finally:
        assert shown.stdin is not None
        shown.stdin.close()
        shown.wait()
