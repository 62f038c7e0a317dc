"""Several workers on one machine, each a process of its own."""

from __future__ import annotations

from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess

import torch

from fogline._tune.plan import Plan
from fogline._tune.study import quiet
from fogline._tune.worker import SearchStopped, Worker
from fogline.descent.interrupts import StopRequested, poll, requested_code, watched_signals
from fogline.run import Run

_EVERY = 0.25  # seconds between two looks


def run_all(plan: Plan, workers: int, context: SpawnContext) -> None:
    """Run the search in so many processes and wait for all.

    Raises:
        SearchStopped: a signal came, and was passed on.
        RuntimeError: a process ended with an error, which it printed.
    """
    threads = max(1, torch.get_num_threads() // workers)
    processes: list[BaseProcess] = [context.Process(target=_work, args=(plan, threads)) for _ in range(workers)]
    with watched_signals():
        for process in processes:
            process.start()
        try:
            while any(process.exitcode is None for process in processes):
                poll()
                next((p for p in processes if p.exitcode is None), processes[0]).join(_EVERY)
        except StopRequested:
            for process in processes:
                process.terminate()  # SIGTERM, on which it saves
            for process in processes:
                process.join()
            raise SearchStopped(Run(plan.folder), requested_code()) from None
    codes = [process.exitcode for process in processes if process.exitcode]
    if codes:
        raise RuntimeError(
            f"expected {workers} workers to end well, {len(codes)} ended with code {codes[0]}; its message stands "
            "above, and the same call goes on with the search"
        )


def _work(plan: Plan, threads: int) -> None:
    torch.set_num_threads(threads)
    with quiet():
        Worker(plan, lambda words: None).run()
