"""``fogline train --processes N``: the same command in N processes, by the launcher behind ``torchrun``."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fogline.cli.sources import Program, existing


def check(program: Program) -> None:
    """Complain once about what every process would complain about, as far as that is seen without the data.

    Raises:
        ValueError, TypeError, FileNotFoundError: for bad input.
    """
    existing(program.what, "a task file, a table or a folder of images")
    program.recipe(None)


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> int:
    """Run ``python -m fogline`` with these arguments in processes of this machine; returns the exit code.

    It is that of the process which ended first where one failed; 128 and the number of the signal where one came.

    Args:
        processes: how many.
        restarts: how often all are started again where one ends; a run then goes on from its last checkpoint.
        arguments: those of the command line.
    """
    # torchrun gives one thread to each process; what the machine has is shared instead.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fogline", *arguments)
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0
