"""Processes that train, to be killed: imports once, then forks a process for each job (importing torch takes seconds).

Reads one JSON object a line, ``{"job": name, "arguments": {...}, "kill_after": seconds or null}``; answers each with
``{"code": exit code, negative for a signal, "errors": what it wrote to stderr, "writing": ...}`` where ``writing`` says
whether a checkpoint was being written when it was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from programs import jobs

torch.set_num_threads(1)  # before the first fork: threads do not survive one


def serve() -> None:
    with tempfile.TemporaryDirectory() as folder:  # PyTorch imports half of itself in the first step
        jobs.train(f"{folder}/run", duration="2st", lr="auto")
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        with tempfile.TemporaryFile() as errors:
            child = os.fork()
            if not child:
                os.dup2(errors.fileno(), 2)
                os.dup2(errors.fileno(), 1)
                getattr(jobs, order["job"])(**order["arguments"])
                return  # the child ends as any program does: its exit code is the interpreter's
            answer = waited(child, order.get("kill_after"), Path(order["arguments"]["folder"]))
            errors.seek(0)
            answers.write(json.dumps(answer | {"errors": errors.read().decode()}) + "\n")
            answers.flush()


def waited(child: int, kill_after: float | None, folder: Path) -> dict[str, Any]:
    """Wait for the end, or kill it before; it is stopped first, so that what it was at can be seen."""
    writing = False
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGSTOP)
        writing = any((folder / "checkpoints").glob(".step-*.tmp"))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "writing": writing}


if __name__ == "__main__":
    serve()
