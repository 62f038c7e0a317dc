"""Server-sent events: a line whenever a run has written something."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from fogline.dashboard.runs import Folder, NoRunError, Watch

PERIOD = 1.0  # seconds between two looks
_STILL_THERE = 15  # looks without news after which a line says that we are still there


def live(folder: Folder, only: str | None = None) -> StreamingResponse:
    """The stream of changes of all runs of a folder, or of one."""
    return StreamingResponse(_lines(Watch(folder, only)), media_type="text/event-stream")


async def _lines(watch: Watch) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    quiet = 0
    while True:
        try:
            changed, gone = await run_in_threadpool(watch.changes)
        except NoRunError:
            changed, gone = [], [watch.only or ""]
        if changed or gone:
            yield f"event: changed\ndata: {json.dumps({'changed': changed, 'gone': gone})}\n\n"
            quiet = 0
        elif (quiet := quiet + 1) % _STILL_THERE == 0:
            yield ": still there\n\n"
        await anyio.sleep(PERIOD)
