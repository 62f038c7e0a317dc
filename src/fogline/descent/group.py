"""The processes of one run: what they tell each other, what they agree on, and which of them is late.

They are started by ``torchrun``, or in any other way in which ``torch.distributed`` finds its peers. Everything that a
clock or a measurement decides is decided by process 0 and told to the others, so that all take the same steps.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fogline.descent import interrupts
from fogline.descent.interrupts import Agreement, StopRequested
from fogline.errors import LostError

PATIENCE = "FOGLINE_PATIENCE"
"""The environment variable with the seconds that a process waits for the others before it asks where they are."""
_PATIENCE = 600.0
_ANSWER_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_FRAMES = 12


class World:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        group: of ``torch.distributed``, for tensors of the processor.
        agreement: whether all stop.
    """

    def __init__(self, group: Any, store: Any, patience: float) -> None:
        self.rank, self.size, self.group, self.patience = dist.get_rank(), dist.get_world_size(), group, patience
        self.agreement = Agreement()
        self._store = _below("fogline", store)
        self._started, self._now = time.perf_counter(), 0.0
        self._told = 0
        self._watcher = _Watcher(_below("fogline", store.clone()), self.rank)
        self._watcher.start()
        atexit.register(self._watcher.end)  # a thread that is in PyTorch while Python goes down takes it along

    @property
    def first(self) -> bool:
        """Whether this is process 0, which measures, decides and writes."""
        return self.rank == 0

    # -- time --------------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        """Seconds since process 0 began, as it last told; the same for all."""
        return self._now

    def reading(self) -> float:
        """What process 0 reads from its clock; of the others 0, so that the sum over all is the time."""
        return time.perf_counter() - self._started if self.first else 0.0

    # -- telling -----------------------------------------------------------------------------------------------------

    def start(self, tensor: Tensor) -> Any:
        """Begin to sum a tensor over all processes, in place; :meth:`finish` waits for it."""
        return dist.all_reduce(tensor, group=self.group if tensor.device.type == "cpu" else None, async_op=True)

    def finish(self, work: Any, doing: str) -> None:
        """Wait for what was started.

        Raises:
            LostError: a process did not come, or is gone.
        """
        self._watcher.doing = doing
        try:
            work.wait()
        except RuntimeError as error:
            raise self.lost(error, doing) from error
        self._watcher.meetings += 1

    def sum(self, tensor: Tensor, doing: str) -> None:
        """Sum a tensor over all processes, in place."""
        self.finish(self.start(tensor), doing)

    def agree(self, doing: str) -> None:
        """Tell the time, and whether anybody was asked to stop."""
        told = torch.tensor([float(interrupts.wanted()), self.reading()], dtype=torch.float64)
        self.sum(told, doing)
        self.heed(*told.tolist())

    def heed(self, asked: float, now: float) -> None:
        """Take what was summed over all: how many were asked to stop, and the time."""
        self.agreement.reached = self.agreement.reached or asked > 0
        self._now = now

    def gather(self, value: Any, doing: str) -> list[Any]:
        """A JSON value of each process, in the order of their numbers."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(text)
        self.sum(lengths, doing)
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(text)] = text
        found = [torch.empty_like(padded) for _ in range(self.size)]
        self.finish(dist.all_gather(found, padded, group=self.group, async_op=True), doing)
        pairs = zip(found, lengths.tolist(), strict=True)
        return [json.loads(bytes(item[:length].tolist())) for item, length in pairs]

    def by_first(self, function: Callable[[], Any], doing: str) -> Any:
        """What process 0 makes of a function, a JSON value, for all; it may take long, and the others wait.

        Raises:
            StopRequested: on all, where it was raised there.
            LostError: process 0 gets on no more.
        """
        self._told += 1
        key = f"told/{self._told}"
        if self.first:
            try:
                with self.alone():
                    answer = {"value": function()}
            except StopRequested:
                answer = {"stop": True}
            self._store.set(key, json.dumps(answer))
        else:
            self._await(key, doing)
            answer = json.loads(self._store.get(key))
        if "stop" in answer:
            raise StopRequested
        return answer["value"]

    def together(self, doing: str) -> None:
        """Wait until all have come, however long process 0 takes."""
        self.by_first(lambda: None, doing)
        self.sum(torch.zeros(1), doing)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Write what process 0 has into the tensors of the others, in place."""
        with torch.no_grad():
            for tensor in tensors:
                sent = tensor.detach().cpu().contiguous()
                sent = sent.to(torch.uint8) if sent.dtype == torch.bool else sent
                self.finish(dist.broadcast(sent, 0, group=self.group, async_op=True), "spreading the weights")
                if not self.first:
                    tensor.copy_(sent)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it this process polls for itself: the others do not take part."""
        before, self.agreement.alone = self.agreement.alone, True
        try:
            yield
        finally:
            self.agreement.alone = before

    # -- who is late -------------------------------------------------------------------------------------------------

    def _await(self, key: str, doing: str) -> None:
        before, looked, asked = -1, time.monotonic(), 0.0
        while not self._came(key, doing):
            now = time.monotonic()
            asked = (asked or now) if interrupts.wanted() else 0.0
            if asked and now - asked > _ANSWER_SECONDS:
                raise LostError(f"asked to stop at {doing}, and process 0 neither does nor says so")
            if now - looked > self.patience:
                answer = self._ask([0])[0]
                if answer is None or answer["polls"] == before:
                    raise LostError(_tell_late(doing, self.patience, {0: answer}))
                before, looked = answer["polls"], now

    def _came(self, key: str, doing: str) -> bool:
        """Whether something was told within half a second."""
        try:
            self._store.wait([key], timedelta(seconds=_LOOK_SECONDS))
        except dist.DistNetworkError as error:
            raise self.lost(error, doing) from error
        except dist.DistStoreError:
            return False
        return True

    def lost(self, error: RuntimeError, doing: str) -> LostError:
        """What an error of a message between processes means."""
        if "timed out" not in str(error).lower():
            return LostError(
                f"lost the other processes at {doing}: {_first_line(error)}\nOne of them has ended; torchrun says "
                "which. With `torchrun --max-restarts` a run goes on from its last checkpoint"
            )
        mine = self._watcher.meetings
        answers = self._ask([rank for rank in range(self.size) if rank != self.rank])
        late = {rank: found for rank, found in answers.items() if found is None or found["meetings"] < mine}
        return LostError(_tell_late(doing, self.patience, late or answers))

    def _ask(self, ranks: Sequence[int]) -> dict[int, dict[str, Any] | None]:
        """Where other processes are; None of one that does not answer."""
        keys = {rank: f"answer/{rank}/{self._store.add(f'asked/{rank}', 1)}" for rank in ranks}
        until = time.monotonic() + _ANSWER_SECONDS
        found: dict[int, dict[str, Any] | None] = {}
        for rank, key in keys.items():
            try:
                self._store.wait([key], timedelta(seconds=max(0.1, until - time.monotonic())))
                found[rank] = json.loads(self._store.get(key))
            except (dist.DistStoreError, dist.DistNetworkError):
                found[rank] = None
        return found


class _Watcher(threading.Thread):
    """Tells the other processes, when they ask, where this one is.

    Attributes:
        meetings: how often all processes have come together so far.
        doing: what it waits for, or waited for last.
    """

    def __init__(self, store: Any, rank: int) -> None:
        super().__init__(name="fogline-watcher", daemon=True)
        self._store, self._rank = store, rank
        self.meetings, self.doing = 0, "the start"
        self._ended = threading.Event()

    def end(self) -> None:
        """Answer no more."""
        self._ended.set()
        self.join(timeout=_ANSWER_SECONDS)

    def run(self) -> None:
        answered = 0
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                asked = self._store.add(f"asked/{self._rank}", 0)
                while answered < asked:
                    answered += 1
                    self._store.set(f"answer/{self._rank}/{answered}", json.dumps(self._where()))
            except RuntimeError:  # whoever held the store has ended, and the run with it
                return

    def _where(self) -> dict[str, Any]:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = [] if frame is None else traceback.extract_stack(frame)[-_FRAMES:]
        return {
            "meetings": self.meetings,
            "polls": interrupts.polls,
            "doing": self.doing,
            "stack": [[place.filename, place.lineno, place.name, place.line] for place in stack],
        }


def _tell_late(doing: str, seconds: float, late: dict[int, dict[str, Any] | None]) -> str:
    """The sentence of a hang: which process did not come, and the line it is in.

    >>> print(_tell_late("step 7", 5, {1: None}))
    process 1 has not come to step 7 within 5 s: it does not answer (stopped, or busy outside of Python)
    """
    return "\n".join(
        f"process {rank} has not come to {doing} within {seconds:g} s: {_place(late[rank])}" for rank in late
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).partition(". ")[0].splitlines()[0]


def _place(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return "it does not answer (stopped, or busy outside of Python)"
    if not answer["stack"]:
        return f"it was last at {answer['doing']}"
    file, line, name, text = answer["stack"][-1]
    trail = "".join(f"\n  {f}, line {n}, in {where}: {code}" for f, n, where, code in answer["stack"])
    return f"it waits in {file}, line {line}, in {name}: {text}; its calls, the innermost last:{trail}"


def _below(prefix: str, store: Any) -> Any:
    return dist.distributed_c10d.PrefixStore(prefix, store)


def _make_group(backend: str, patience: timedelta) -> None:
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))  # type: ignore[attr-defined]
    # The store outlives the processes that torchrun starts again, and so do the addresses of the last ones in it.
    store = _below(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    atexit.register(dist.destroy_process_group)


_world: World | None = None


def leads(world: World | None) -> bool:
    """Whether this process writes and speaks: the only one, or the first of several."""
    return world is None or world.first


def by_first(world: World | None, function: Callable[[], Any], doing: str) -> Any:
    """What one process finds alone, for all of them."""
    return function() if world is None else world.by_first(function, doing)


def joined(device: str) -> World | None:
    """The processes that this one was started with, or None where it is on its own.

    They are found as ``torch.distributed`` finds them: by the environment that ``torchrun`` sets, unless a group was
    made already. A run within a run is on its own.

    Args:
        device: of the recipe; an accelerator is chosen by ``LOCAL_RANK``.
    """
    global _world
    if not dist.is_available() or interrupts.agreement is not None:
        return None
    accelerated = device != "cpu" and torch.cuda.is_available()
    if accelerated and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    patience = float(os.environ.get(PATIENCE, _PATIENCE))
    made = not dist.is_initialized()
    if made:
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
            return None
        _make_group("cpu:gloo,cuda:nccl" if accelerated else "gloo", timedelta(seconds=patience))
    if dist.get_world_size() < 2:
        return None
    if _world is None:
        group = None if made else dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))
        _world = World(group, dist.distributed_c10d._get_default_store(), patience)
    _world.agreement = Agreement()
    return _world
