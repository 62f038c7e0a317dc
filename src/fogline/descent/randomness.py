"""Randomness is counted, not carried: the generators of a step are seeded from (seed, step, purpose)."""

from __future__ import annotations

import random as python_random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from fogline.data.privacy import PrivateRandom, derived_seed

TRAIN, VALIDATE, INITIAL, PROBE, REFRESH = range(5)
"""Purposes: each draws from generators of its own."""


def seed_step(seed: int, step: int, purpose: int, device: torch.device) -> None:
    """Seed PyTorch's generators for one purpose of one step; about a microsecond on the CPU."""
    value = derived_seed(seed, step, purpose)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


def seed_everything(seed: int, step: int, purpose: int, device: torch.device) -> None:
    """Seed Python's and NumPy's generators as well: what a model factory or a data set may draw from."""
    value = derived_seed(seed, step, purpose)
    python_random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    seed_step(seed, step, purpose, device)


class Surroundings:
    """A run's own random states and settings of the processor, the caller's while it gives a step to the caller.

    The states of a run need not be kept meanwhile: every step is seeded anew.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device, self.threads = device, threads
        self._caller = ExitStack()

    def __enter__(self) -> Surroundings:
        self._caller.enter_context(private_randomness(self.device))
        self._caller.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(self.threads)
        # Numbers below 1e-38 take a hundred times as long as others, and a long run is full of them: second moments of
        # gradients that have vanished. As zeros they change nothing else.
        self._caller.callback(torch.set_flush_denormal, _flushes_denormal())
        torch.set_flush_denormal(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._caller.close()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Within it the caller's random states and threads are back."""
        self._caller.close()
        try:
            yield
        finally:
            self.__enter__()


def _flushes_denormal() -> bool:
    """PyTorch can set this and not be asked."""
    return float(torch.tensor(1e-40) * torch.tensor(1.0)) == 0.0


@contextmanager
def private_randomness(device: torch.device) -> Iterator[None]:
    """The caller's random states, on the CPU and on the device, return on leaving."""
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    before = None if accelerator is None else accelerator.get_rng_state(device)
    with PrivateRandom():
        try:
            yield
        finally:
            if accelerator is not None:
                accelerator.set_rng_state(before, device)
