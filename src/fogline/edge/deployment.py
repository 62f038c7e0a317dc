"""What goes to a device of a model whose outputs are not yet the answer, such as a detector's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Outputs = Callable[[Any], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Deployment:
    """How a model is taken apart for a device; given with ``OnBatch(loss, deployment)``.

    Attributes:
        network: of a trained model, the module whose layers become integers: one tensor in, any tree of tensors out, of
            which the loss of the task can be taken.
        outputs: of what the network gives, the tensors that the file needs, classes (b, classes, places) first. They
            are what is compared between stages.
        ending: of a trained model and an example of inputs, the module that makes the outputs of the file of these
            tensors, in floats.
        scores: of a module that gives what the file gives, its metrics on the held-out data.
        metrics: their names, the one to judge by first. A model that has learned nothing has 0.
        train: data for calibration and fine-tuning, where they are not those that the training began with.
        threshold: above which the first of the outputs says that there is something.
        metadata: of the file, beside what is known of every task.
    """

    network: Callable[[nn.Module], nn.Module]
    outputs: Outputs
    ending: Callable[[nn.Module, Tensor], nn.Module]
    scores: Callable[[nn.Module], dict[str, float]]
    metrics: tuple[str, ...]
    train: Callable[[], Any]
    threshold: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Part(nn.Module):
    """Of what a network gives the tensors that a file needs, or what its ending makes of them."""

    def __init__(self, network: nn.Module, outputs: Outputs, ending: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.outputs, self.ending = network, outputs, ending

    def forward(self, inputs: Tensor) -> Any:  # (b, ...)
        found = self.outputs(self.network(inputs))
        return found if self.ending is None else self.ending(*found)
