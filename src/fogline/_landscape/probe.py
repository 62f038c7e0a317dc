"""What the landscape of a model is measured on: a private copy of it, and a fixed handful of training examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from fogline.data.defaults import default_loss
from fogline.data.intake import open_data
from fogline.data.source import Batch, InMemory, Source, Stream, leaves, map_tree
from fogline.data.streamed import Streamed
from fogline.descent.batches import rows_of
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.order import permuted_range
from fogline.descent.prepare import operations_of
from fogline.descent.randomness import PROBE, Surroundings, private_randomness, seed_everything, seed_step
from fogline.task import Task

_SELECTION = 1 << 40  # in the place of an epoch: no epoch of a run has this order
_SMALL = 2e8  # operations of a forward pass below which a second thread costs more than it brings


@dataclass(frozen=True)
class Probe:
    """A loss that is a function of the weights alone.

    Attributes:
        objective: a copy of the model in evaluation mode, and the loss. Its normalisation layers take the statistics
            of the probe itself: running statistics belong to the weights they were gathered with, and would be wrong
            at every other place (Izmailov et al., Averaging Weights Leads to Wider Optima, 2018, arXiv:1803.05407,
            section 3.2, for the same reason compute them anew).
        batch: the examples.
        rows: how many.
        names, shapes: of the trained parameters, in the order in which they lie in flat weights.
        normalised: whether there are layers that look at all examples together.
        seed: of whatever the loss may draw.
        threads: that computing it is worth.
    """

    objective: Objective
    batch: Batch
    rows: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    normalised: bool
    seed: int
    threads: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the copy."""
        named = dict(self.objective.model.named_parameters())
        return [named[name] for name in self.names]

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def weights(self) -> Tensor:
        """The weights of the model, flat, shape (n,)."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Random states and settings of the processor of one's own; the caller's are back on leaving."""
        with Surroundings(self.device, self.threads), self.objective.without_learning():
            seed_everything(self.seed, 0, PROBE, self.device)
            yield

    def seed_place(self) -> None:
        """A loss that draws, such as one of a sampled latent, draws the same at every place."""
        seed_step(self.seed, 0, PROBE, self.device)


def open_probe(task: Task, model: nn.Module, examples: int, seed: int) -> Probe:
    """The probe of a task: the same examples for the same seed.

    Args:
        task: whose training data is looked at.
        model: the trained one; it is copied.
        examples: how many at most.
        seed: of the selection.

    Raises:
        ValueError: the model has no trained weights with a fractional part, or the data is empty.
    """
    twin = copied(model).eval()
    named = [(name, p) for name, p in twin.named_parameters() if p.requires_grad]
    if not named or not all(p.dtype.is_floating_point for _, p in named):
        raise ValueError("expected a model with real weights that are trained, received none; nothing spans a plane")
    device = named[0][1].device
    with private_randomness(device):
        opened = open_data(task, seed=seed)
        loss = task.loss if task.loss is not None else default_loss(opened.facts)
        source = opened.train.astype(named[0][1].dtype)
        batch = map_tree(lambda leaf: leaf.to(device), _examples(source, examples, seed))
    objective = Objective(twin, loss, device_type=device.type)
    small = device.type == "cpu" and operations_of(objective, batch) < _SMALL
    return Probe(
        objective,
        batch,
        rows_of(batch),
        tuple(name for name, _ in named),
        tuple(tuple(p.shape) for _, p in named),
        _take_batch_statistics(twin),
        seed,
        1 if small else torch.get_num_threads(),
    )


def _examples(source: Source, examples: int, seed: int) -> Batch:
    if isinstance(source, Stream):
        for batch in islice(source.batches(examples), 1):
            return batch
        raise ValueError("expected training data with examples, received an empty stream")
    if isinstance(source, Streamed):
        return source.spread(examples)
    index = torch.from_numpy(permuted_range(seed, _SELECTION, 0, min(examples, source.size), source.size))
    return source.take(index.to(leaves(source.tensors)[0].device) if isinstance(source, InMemory) else index)


def _take_batch_statistics(model: nn.Module) -> bool:
    """Let normalisation layers use the statistics of the batch; whether there are any."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
    for layer in layers:
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = None
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)


def curvature(probe: Probe) -> Callable[[Tensor], Tensor]:
    """The map v -> H v of the probe's loss at its weights, vectors of shape (n,) in float64.

    Raises:
        ValueError: the loss has no second derivative.
    """
    parameters = probe.parameters
    sizes = [p.numel() for p in parameters]

    def product(vector: Tensor) -> Tensor:
        probe.seed_place()
        directions = [v.to(p).view_as(p) for v, p in zip(torch.split(vector, sizes), parameters, strict=True)]
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                probe.objective(probe.batch), parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
            slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
            assert isinstance(slope, Tensor)
            found = torch.autograd.grad(slope, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([h.reshape(-1).double().cpu() for h in found])

    def guarded(vector: Tensor) -> Tensor:
        try:
            return product(vector)
        except RuntimeError as error:
            if not any(words in str(error) for words in ("derivative", "not implemented", "does not require grad")):
                raise
            raise ValueError(
                f"expected a loss that can be differentiated twice for span='hessian', received one that cannot: "
                f"{str(error).splitlines()[0]}; take span='path' or span='filter'"
            ) from error

    return guarded
