"""What was found out about the data while it was opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fogline.data.source import Source

if TYPE_CHECKING:
    from fogline.data.images import ImageEncoder
    from fogline.data.tables import TableEncoder

Kind = Literal["classification", "regression", "other"]


@dataclass(frozen=True)
class Facts:
    """What the data is, for choosing a model, a loss and metrics, and for telling the user.

    Attributes:
        kind: classification, regression, or other (``on_batch``).
        inputs: shape of one example's input without the batch dimension; () where it has no single shape.
        classes: names of the classes in the order of their labels.
        outputs: width the last layer of a model needs; 0 where it is not known without reading all the data.
        columns: names of the input columns after encoding.
        notes: sentences to show the user.
        batch_size: the batch size of the DataLoader that was given.
        shuffle: what the DataLoader asked for; None where nothing was said.
        threshold: output above which a single-unit classifier says "yes": 0 for a logit, 0.5 for a probability.
        input_mean, input_scale: statistics of each input column, for a built-in model on tensors that nobody scaled.
        target_mean, target_scale: mean and deviation of each column of numbers to predict, on the training data.
        held_out_variance: variance of each of those columns on the held-out data (else the training data), for R2.
    """

    kind: Kind
    inputs: tuple[int, ...] = ()
    classes: tuple[str, ...] | None = None
    outputs: int = 1
    columns: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    batch_size: int | None = None
    shuffle: bool | None = None
    threshold: float = 0.0
    input_mean: tuple[float, ...] | None = None
    input_scale: tuple[float, ...] | None = None
    target_mean: tuple[float, ...] | None = None
    target_scale: tuple[float, ...] | None = None
    held_out_variance: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Opened:
    """Data ready to train on."""

    train: Source
    valid: Source | None
    facts: Facts
    encoder: TableEncoder | ImageEncoder | None = None
    """How new rows or image files become inputs; ``to_dict()`` is plain JSON."""
