"""Opens the port, tells the address, and serves until it is told to stop."""

from __future__ import annotations

import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fogline.errors import needed

if TYPE_CHECKING:
    import uvicorn

PORT = 7333
_SETTLED = 0.5  # seconds after which a start has nothing more to do


def serve(
    runs: Path, *, port: int = PORT, browser: bool = True, say: Callable[[str], None] = print, attached: bool = False
) -> None:
    """Show the runs of a folder until Ctrl-C.

    Args:
        runs: the folder of run folders, which need not be there yet; or one of them, which is then shown first.
        port: of 127.0.0.1; a free one is taken if it is in use, or if it is 0.
        browser: open it, where there is a screen.
        say: is given each line of text.
        attached: also stop when standard input ends, as it does when the process that started us is gone.

    Raises:
        ModuleNotFoundError: the extra ``dashboard`` is not installed.
        NotADirectoryError: there is a file where the folder should be.
    """
    check_installed()
    import uvicorn

    from fogline.dashboard.app import make_app, prepare_figures
    from fogline.dashboard.guard import Access
    from fogline.dashboard.markup import address

    if runs.exists() and not runs.is_dir():
        raise NotADirectoryError(f"expected a folder of runs, received the file {runs}")
    one = runs.resolve().name if (runs / "run.json").is_file() else ""
    root = runs.resolve().parent if one else runs
    listening = _listen(port)
    access = Access(listening.getsockname()[1], start=address(one) if one else "/")
    config = uvicorn.Config(
        make_app(root, access),
        log_level="warning",
        access_log=False,
        server_header=False,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    say(f"dashboard of {root}: {access.address}")
    say("only this machine can open it; Ctrl-C stops it")
    _later(_SETTLED, prepare_figures)
    if attached:
        threading.Thread(target=_until_input_ends, args=(server,), daemon=True).start()
    if browser and _has_screen():
        _later(_SETTLED / 2, webbrowser.open, access.address)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        return


def _later(seconds: float, call: Callable[..., object], *given: object) -> None:
    timer = threading.Timer(seconds, call, given)
    timer.daemon = True
    timer.start()


def check_installed() -> None:
    """Raise where the extra is missing.

    Raises:
        ModuleNotFoundError: with the pip command.
    """
    needed("starlette", "dashboard", "starlette")
    needed("uvicorn", "dashboard", "uvicorn")


def _listen(port: int) -> socket.socket:
    """A socket on this machine's own address; a port that is in use is replaced by a free one."""
    listening = socket.socket()
    if sys.platform != "win32":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(128)
    except OSError:
        listening.close()
        if not port:
            raise
        return _listen(0)
    return listening


def _until_input_ends(server: uvicorn.Server) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    server.should_exit = True


def _has_screen() -> bool:
    """Over ssh and in a log nobody wants a browser of the terminal's."""
    if not sys.stdout.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
