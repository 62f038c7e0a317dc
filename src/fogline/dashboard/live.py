"""Server-sent events: a line whenever a run has written something."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from fogline.dashboard.runs import Folder, Watch

PERIOD = 1.0  # seconds between two looks
_STILL_THERE = 15  # looks without news after which a line says that we are still there


def live(folder: Folder, only: str | None, since: str) -> StreamingResponse:
    """The stream of changes of all runs of a folder, or of one.

    Args:
        folder: of the runs.
        only: the name of the one.
        since: when the page was asked for, in seconds since 1970: what was written after it is told at once.
    """
    moment = float(since) if re.fullmatch(r"\d{1,12}(\.\d+)?", since) else math.inf
    return StreamingResponse(_lines(folder, only, moment), media_type="text/event-stream")


async def _lines(folder: Folder, only: str | None, since: float) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    watch = await run_in_threadpool(Watch, folder, only, since)
    quiet = 0
    while True:
        changed, gone = await run_in_threadpool(watch.changes)
        if changed or gone:
            yield f"event: changed\ndata: {json.dumps({'changed': changed, 'gone': gone})}\n\n"
            quiet = 0
        elif (quiet := quiet + 1) % _STILL_THERE == 0:
            yield ": still there\n\n"
        await anyio.sleep(PERIOD)
