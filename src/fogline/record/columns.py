"""What a training step shows of each example, as columns: loss, margin, confidence, correctness, gradient norm.

They are computed from tensors that the step has anyway: the outputs, the targets and what went into the last linear
layer, ``h``. With logits ``z``, probabilities ``p`` and target ``y``,

- margin: ``z_y - max over others of z``; of a single logit ``z`` for the target 1 and ``-z`` for 0,
- confidence: ``p_y``,
- gradient norm: ``|p - y| sqrt(|h|^2 + 1)``, the norm of the gradient of the cross-entropy with respect to weight and
  bias of the last layer; for numbers ``|output - target| sqrt(|h|^2 + 1)``,
- residual: ``output - target``, of several outputs the root of their mean square.

Where targets are classes of pixels or tokens, or several yes/no questions, a column is the mean over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.record.each import LossOfEach

Kind = Literal["classification", "regression", "loss"]
Form = Literal["classes", "binary", "elementwise", "loss"]

_MOST_TARGETS = 64  # numbers of one target that are kept with the columns


@dataclass(slots=True)
class Shown:
    """What one forward pass showed: all of the same rows, and without a graph behind them.

    Attributes:
        outputs, targets: of the model and of the batch; None for a loss that sees the model itself.
        losses: shape (rows,), where the loss function gave one an example.
        hidden: norm of what went into the last linear layer, (rows, ...).
    """

    outputs: Tensor | None = None
    targets: Tensor | None = None
    losses: Tensor | None = None
    hidden: Tensor | None = None
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        first = self.losses if self.outputs is None else self.outputs
        self.rows = 0 if first is None or not first.ndim else first.shape[0]

    def named(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        fields = {"outputs": self.outputs, "targets": self.targets, "losses": self.losses, "hidden": self.hidden}
        return {name: value for name, value in fields.items() if value is not None}

    def like(self, other: Shown) -> bool:
        """Whether both can be put one after the other: the same shapes but for the rows."""
        if self.outputs is None or other.outputs is None or self.targets is None or other.targets is None:
            return self.outputs is other.outputs and self.targets is other.targets
        shaped = self.outputs.shape[1:] == other.outputs.shape[1:] and self.targets.shape[1:] == other.targets.shape[1:]
        return shaped and self.targets.dtype == other.targets.dtype

    @staticmethod
    def joined(several: list[Shown]) -> Shown:
        """All rows, one after another."""
        if len(several) == 1:
            return several[0]
        columns = zip(*((one.outputs, one.targets, one.losses, one.hidden) for one in several), strict=True)
        return Shown(*(None if values[0] is None else torch.cat(values) for values in columns))


@dataclass(frozen=True)
class Columns:
    """How the columns of a task are computed.

    Attributes:
        kind: what ``run.json`` says of them.
        form: what outputs and targets are.
        shape: of one example's output.
        each: the loss of each example; None where the loss cannot be had example by example.
        probabilities: the outputs of a yes/no question are probabilities, not logits.
        ignored: the label that does not count; None where the data has none of it.
        head: the last linear layer, or None where there is none.
        targets: numbers of one target that go with the columns; 0 where the targets are known already.
    """

    kind: Kind
    form: Form
    shape: tuple[int, ...] = ()
    each: LossOfEach | None = None
    probabilities: bool = False
    ignored: int | None = -100
    head: nn.Linear | None = None
    targets: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The columns in their order, without those of the targets."""
        found = ["loss"]
        if self.kind == "classification":
            found += ["margin", "confidence", "correct"]
            found += ["predicted"] if self.single else []
        if self.kind == "regression":
            found += ["residual"]
        return (*found, "gradient_norm") if self.head is not None else tuple(found)

    @property
    def single(self) -> bool:
        """Whether an example has one target, not one for each of its pixels, tokens or questions."""
        return len(self.shape) == 1 if self.form == "classes" else torch.Size(self.shape).numel() == 1

    @property
    def width(self) -> int:
        """How many rows :meth:`__call__` gives."""
        return len(self.names) + self.targets

    @property
    def classes(self) -> int:
        """How many classes there are; 0 where there are none."""
        return {"classes": self.shape[0] if self.shape else 0, "binary": 2}.get(self.form, 0)

    def with_targets(self) -> Columns:
        """The same with the targets beside the columns, where they are few numbers an example."""
        width = 1
        if self.kind != "classification" or not self.single:
            width = torch.Size(self.shape).numel()
        wanted = self.form != "loss" and not (self.form == "classes" and not self.single) and width <= _MOST_TARGETS
        return replace(self, targets=width if wanted else 0)

    def fits(self, shown: Shown) -> bool:
        """Whether a forward pass showed what is expected of its rows."""
        outputs, targets = shown.outputs, shown.targets
        if self.form == "loss":
            return shown.rows > 0 and (shown.losses if self.each is None else outputs) is not None
        if outputs is None or targets is None or outputs.ndim != 1 + len(self.shape):
            return False
        if self.form == "classes" and outputs.shape[1] != self.classes:
            return False  # as many as there are rows, where each is compared with all others
        same = outputs.shape == targets.shape
        if self.form == "classes" and not targets.is_floating_point():
            same = targets.shape == (outputs.shape[0], *outputs.shape[2:])
        return same and (self.head is None or (shown.hidden is not None and shown.hidden.shape[0] == shown.rows))

    @contextmanager
    def watching(self) -> Iterator[list[Tensor]]:
        """What goes into the last linear layer within it, in the order of its calls."""
        seen: list[Tensor] = []
        if self.head is None:
            yield seen
            return

        def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
            seen.append(given[0].detach())

        handle = self.head.register_forward_pre_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    def __call__(self, shown: Shown) -> Tensor:
        """The columns of all rows, (:attr:`width`, rows) float32, in the order of :attr:`names`, then the targets."""
        of_form = {"classes": self._of_classes, "binary": self._of_questions, "elementwise": self._of_numbers}
        found = of_form[self.form](shown) if self.form != "loss" else [self._loss(shown)]
        return torch.stack([column.float() for column in found])

    def _loss(self, shown: Shown) -> Tensor:
        if shown.losses is not None:
            return shown.losses
        assert shown.outputs is not None
        if self.each is None:
            return shown.outputs.new_full((shown.outputs.shape[0],), torch.nan)
        value = self.each(shown.outputs, shown.targets)
        per_place = self.form == "classes" and shown.targets is not None and value.shape == shown.targets.shape
        return value if per_place else _mean(value)

    def _of_classes(self, shown: Shown) -> list[Tensor]:
        assert shown.outputs is not None
        assert shown.targets is not None
        soft = shown.targets.is_floating_point()
        labels = shown.targets.argmax(1) if soft else shown.targets.long()
        # Classes first: what is taken over them then runs along the rows, which is twice as fast for 10 classes.
        scores = _real(shown.outputs).movedim(1, 0).contiguous()  # (classes, rows, ...)
        counted, kept = None, labels
        if not soft and self.ignored is not None:
            kept = labels.clamp(0, len(scores) - 1)
            counted = (labels == kept) & (labels != self.ignored)
        place, logarithms = kept.unsqueeze(0), scores.log_softmax(0)
        own = logarithms.gather(0, place).squeeze(0)
        # Without the target's own class: 1 - p_y, the sum over the rest, keeps its digits where it is small.
        others = logarithms.scatter(0, place, -torch.inf)
        rival, second = others.max(0)
        margin = own - rival
        right = margin >= 0
        plain = self.each is not None and self.each.plain and not soft
        found = [-own if plain else self._loss(shown), margin, own.exp(), right.to(scores.dtype)]
        if self.head is not None:
            error = logarithms.exp() - _real(shown.targets).movedim(1, 0) if soft else others.exp_()
            squares = (error * error).sum(0)
            if not soft:
                rest = error.sum(0)
                squares += rest * rest
            found.append(_through(shown, squares))
        if not self.single:
            return [_mean(column, counted) for column in found]
        found.insert(4, torch.where(right, kept, second).to(scores.dtype))
        if counted is not None:
            found = list(torch.where(counted, torch.stack(found), torch.nan))
        return [*found, labels.to(scores.dtype)] if self.targets else found

    def _of_questions(self, shown: Shown) -> list[Tensor]:
        assert shown.outputs is not None
        assert shown.targets is not None
        outputs, targets = _real(shown.outputs), _real(shown.targets)
        if self.probabilities:
            outputs = outputs.logit(1e-7)
        yes = targets > 0.5
        margin = torch.where(yes, outputs, -outputs)
        columns = (self._loss(shown), margin, margin.sigmoid(), (margin > 0).to(outputs.dtype))
        found = [_mean(column) for column in columns]
        if self.single:
            found.append((outputs > 0).to(outputs.dtype).flatten())
        if self.head is not None:
            found.append(_through_elements(shown, outputs.sigmoid() - targets))
        kept = yes.to(outputs.dtype) if self.single else targets
        return [*found, *(_numbers_of(kept) if self.targets else ())]

    def _of_numbers(self, shown: Shown) -> list[Tensor]:
        assert shown.outputs is not None
        assert shown.targets is not None
        targets = _real(shown.targets)
        residual = _real(shown.outputs) - targets
        found = [self._loss(shown), residual.flatten() if self.single else _mean(residual.square()).sqrt()]
        if self.head is not None:
            found.append(_through_elements(shown, residual))
        return [*found, *(_numbers_of(targets) if self.targets else ())]


def plan(objective: Any, batch: Any, labels: bool) -> Columns | str:
    """How the columns of a task are computed, from one forward pass on a batch; or why there are none.

    Args:
        objective: model and loss; see :class:`fogline.descent.objective.Objective`.
        batch: any of the training data.
        labels: whether the targets are labels of classes where the loss does not say so.
    """
    with _calls(objective.model) as calls:
        forward = objective.forward(batch)
    outputs, loss = forward.outputs, objective.loss
    if not objective.supervised:
        if forward.losses is not None:
            return Columns("loss", "loss")
        return "the on_batch function returns one number a batch; return one loss per example to have them recorded"
    targets = batch[1]
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.ndim and targets.ndim):
        return "the model's output or the target is not one tensor"
    return planned(loss, outputs.detach(), targets, forward.loss, calls, labels)


def planned(
    loss: Any,
    outputs: Tensor,
    targets: Tensor,
    value: Tensor,
    calls: Sequence[tuple[nn.Linear, Tensor]],
    labels: bool = False,
) -> Columns | str:
    """How the columns are computed of a loss on such outputs and targets; or why there are none.

    Args:
        loss: ``loss(outputs, targets)``.
        outputs, targets: of a batch.
        value: its loss.
        calls: the linear layers that were called on the way, in order, each with its input.
        labels: as in :func:`plan`.
    """
    form = _form(loss, outputs, targets, labels)
    each = LossOfEach.of(loss, outputs, targets, value)
    if form is None:
        return of_losses(each)
    kind: Kind = "regression" if form == "elementwise" else "classification"
    probabilities, ignored = losses.on_probabilities(loss), getattr(loss, "ignore_index", -100)
    found = Columns(kind, form, tuple(outputs.shape[1:]), each, probabilities, ignored)
    return replace(found, head=_head(form, outputs, calls))


def of_losses(each: LossOfEach | None) -> Columns | str:
    """The columns where nobody knows what the outputs mean; or why there are none."""
    if each is None:
        return "neither the loss of each example nor what the outputs mean is known"
    return Columns("loss", "loss", each=each)


def shown_by(forward: Any, batch: Any, hidden: Tensor | None) -> Shown:
    """What a forward pass shows of its examples.

    Args:
        forward: what it gave; see :class:`fogline.descent.objective.Forward`.
        batch: that it was made on.
        hidden: what went into the last linear layer.
    """
    outputs, _, each = forward
    supervised = outputs is not None
    return Shown(
        outputs.detach() if isinstance(outputs, Tensor) else None,
        batch[1] if supervised and isinstance(batch[1], Tensor) else None,
        None if each is None else each.detach(),
        None if hidden is None else torch.linalg.vector_norm(_real(hidden.detach()), dim=-1),
    )


def _form(loss: Any, outputs: Tensor, targets: Tensor, labels: bool) -> Form | None:
    if outputs.is_complex() or targets.is_complex():
        return None
    family, same = losses.family(loss), outputs.shape == targets.shape
    if outputs.ndim > 1 and outputs.shape[1] > 1 and not targets.is_floating_point():
        labelled = targets.shape == (outputs.shape[0], *outputs.shape[2:]) and int(targets.max()) < outputs.shape[1]
        return "classes" if labelled else None  # steps of a scale may be more than the outputs that tell them apart
    if not same or not targets.is_floating_point():
        return None
    if family == "classes":
        return "classes" if outputs.ndim > 1 and outputs.shape[1] > 1 else None
    if family == "binary" or (family == "unknown" and labels and bool(((targets == 0) | (targets == 1)).all())):
        return "binary"
    return "elementwise"


@contextmanager
def _calls(model: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor]]]:
    """The linear layers that are called within it, in order, each with its input."""
    calls: list[tuple[nn.Linear, Tensor]] = []

    def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Linear) and given and isinstance(given[0], Tensor):
            calls.append((module, given[0].detach()))

    linear = [] if is_compiled(model) else [m for m in model.modules() if isinstance(m, nn.Linear)]
    handles = [module.register_forward_pre_hook(keep) for module in linear]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def is_compiled(model: nn.Module) -> bool:
    """A hook on a layer of a compiled model would have it compiled again."""
    return hasattr(model, "_orig_mod") or any(module._compiled_call_impl is not None for module in model.modules())


def _head(form: Form, outputs: Tensor, calls: Sequence[tuple[nn.Linear, Tensor]]) -> nn.Linear | None:
    """The linear layer called last, where the outputs are its own."""
    if not calls:
        return None
    layer, hidden = calls[-1]
    if (
        sum(module is layer for module, _ in calls) > 1
        or layer.out_features * hidden[..., 0].numel() != outputs.numel()
    ):
        return None
    places = tuple(hidden.shape[:-1])
    if form == "classes":
        return layer if places == (outputs.shape[0], *outputs.shape[2:]) else None
    return layer if places in (tuple(outputs.shape), tuple(outputs.shape[:-1])) else None


def _real(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _mean(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """The mean of each row over what counts; NaN where nothing does."""
    if counted is not None:
        if values.ndim == 1:  # of each row already
            return torch.where(counted if counted.ndim == 1 else counted.flatten(1).any(1), values, torch.nan)
        kept = torch.where(counted, values, 0.0).flatten(1).sum(1)
        return kept / counted.flatten(1).sum(1)
    return values if values.ndim == 1 else values.flatten(1).mean(1)


def _through(shown: Shown, squares: Tensor) -> Tensor:
    """The gradient norm of the last layer at each place, from the squared norm of the gradient of its output."""
    assert shown.hidden is not None
    return (squares * (shown.hidden * shown.hidden + 1)).sqrt_()


def _numbers_of(targets: Tensor) -> Tensor:
    """Targets as columns: (numbers of one target, rows)."""
    return targets.flatten(1).t() if targets.ndim > 1 else targets.unsqueeze(0)


def _through_elements(shown: Shown, gradient: Tensor) -> Tensor:
    assert shown.hidden is not None
    places = gradient.unsqueeze(-1) if gradient.shape == shown.hidden.shape else gradient
    return _mean(_through(shown, places.square().sum(-1)))
