"""Held-out scores: the loss and the metrics, as means over examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import Batch, InMemory, MapStyle, Source, map_tree
from fogline.descent.batches import rows_of
from fogline.descent.group import World
from fogline.descent.interrupts import poll
from fogline.descent.objective import Objective, mode

_AGREED_EVERY = 16  # batches: so often processes that score together ask whether anybody was asked to stop


class Scorer:
    """Scores a model on held-out data, in order and without augmentation of the order.

    Args:
        source: the held-out data.
        metrics: functions of (outputs, targets) by name.
        batch_size: examples at a time; it does not change the result beyond rounding.
        world: the processes that score together, each its part of the batches; the sums are those of one process,
            bit for bit.
        in_step: each of them goes through the model as often as any other.
    """

    def __init__(
        self,
        source: Source,
        metrics: Mapping[str, Callable[[Any, Any], Any]],
        batch_size: int,
        device: torch.device,
        world: World | None = None,
        *,
        in_step: bool = False,
    ) -> None:
        self.source = source.to(device) if isinstance(source, InMemory) and device.type != "cpu" else source
        self.metrics, self.batch_size, self.device = dict(metrics), batch_size, device
        self.world, self.in_step = world, in_step

    def __call__(self, objective: Objective, seen: Callable[[Any, Any], None] | None = None) -> dict[str, float]:
        """The mean loss under ``"loss"`` and each metric under its name.

        Args:
            objective: what is scored.
            seen: is given the outputs and targets of every batch of supervised work.

        Raises:
            StopRequested: a signal came between two batches.
        """
        if self.world is not None:
            return self._scored_together(self.world, objective, seen)
        sums: dict[str, Tensor] = {}
        total = 0
        with objective.without_learning():
            for batch in self._batches():
                poll()
                rows = rows_of(batch)
                total += rows
                for name, value in self._values(objective, batch, seen).items():
                    sums[name] = sums[name] + value.double() * rows if name in sums else value.double() * rows
        if not total:
            raise ValueError("expected held-out data with examples, received none")
        return {name: value.item() / total for name, value in sums.items()}

    def _scored_together(
        self, world: World, objective: Objective, seen: Callable[[Any, Any], None] | None
    ) -> dict[str, float]:
        """Of every ``world.size`` batches each process scores one; the sums are taken in the order of the batches."""
        found: list[tuple[int, dict[str, float]]] = []
        with objective.without_learning():
            for turn, batch in enumerate(self._own_batches(world)):
                if turn % _AGREED_EVERY == _AGREED_EVERY - 1:
                    world.agree("a validation")
                poll()
                if batch is not None:
                    rows, values = rows_of(batch), self._values(objective, batch, seen)
                    found.append((rows, {name: (value.double() * rows).item() for name, value in values.items()}))
                elif self.in_step:
                    self._values(objective, next(self._batches()), None)
        sums: dict[str, float] = {}
        total = 0
        for neighbours in zip_longest(*world.gather(found, "a validation")):
            for count, values in filter(None, neighbours):
                total += count
                sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
        if not total:
            raise ValueError("expected held-out data with examples, received none")
        return {name: value / total for name, value in sums.items()}

    def _own_batches(self, world: World) -> Iterator[Batch | None]:
        """One batch of every ``world.size``, None where there are not as many left: all processes get as many."""
        source, size, rank = self.source, self.batch_size, world.rank
        if not isinstance(source, (InMemory, MapStyle)):
            batches = self._batches()
            while group := list(islice(batches, world.size)):
                yield group[rank] if rank < len(group) else None
            return
        starts = list(range(0, source.size, size))
        turns = -(-len(starts) // world.size)
        own = starts[rank :: world.size]
        yield from self._batches(own)
        yield from (None for _ in range(turns - len(own)))

    def _values(self, objective: Objective, batch: Batch, seen: Callable[[Any, Any], None] | None) -> dict[str, Tensor]:
        outputs, loss = objective.with_outputs(batch)
        values = {"loss": loss.detach()}
        if objective.supervised:
            if seen is not None:
                seen(outputs, batch[1])
            for name, metric in self.metrics.items():
                values[name] = torch.as_tensor(metric(outputs, batch[1])).detach()
        return values

    def _batches(self, starts: Sequence[int] | None = None) -> Iterator[Batch]:
        """The batches, or those that begin at these rows."""
        source, size = self.source, self.batch_size
        if isinstance(source, (InMemory, MapStyle)):
            starts = range(0, source.size, size) if starts is None else starts
        if isinstance(source, InMemory):
            assert starts is not None
            yield from (source.slice(start, start + size) for start in starts)
            return
        if isinstance(source, MapStyle):
            assert starts is not None
            indices = [list(range(start, min(start + size, source.size))) for start in starts]
            found: Iterator[Batch] = source.loader(indices)
        else:
            found = source.batches(size)
        for batch in found:
            yield map_tree(lambda leaf: leaf.to(self.device), batch)


def normalisation_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics of their inputs."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
    ]


def refresh_statistics(objective: Objective, batches: Iterator[Batch], count: int) -> None:
    """Recompute the running statistics of normalisation layers for the weights as they are, from training batches.

    The cumulative average over the batches replaces the moving one, as in ``torch.optim.swa_utils.update_bn``; averaged
    weights have activations of their own, so the statistics gathered on the way do not fit them.
    """
    layers = normalisation_layers(objective.model)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()  # type: ignore[operator]
        layer.momentum = None  # type: ignore[assignment]
    try:
        with mode(objective.model, training=True):
            for _ in range(count):
                poll()
                objective.value(next(batches))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
