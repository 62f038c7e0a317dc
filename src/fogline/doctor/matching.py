"""The end of a model and the loss that belong to the targets, as one remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fogline.doctor.examination import Examination
from fogline.doctor.finding import HEAD, Remedy, Rows
from fogline.doctor.heads import Edit, behind, bend, last_layer, widened


def width_of(exam: Examination) -> int | None:
    """Numbers the model puts out for an example; None where that is not one row of them."""
    outputs = exam.anatomy.outputs
    if isinstance(outputs, Tensor):
        return 1 if outputs.ndim == 1 else int(outputs.shape[1]) if outputs.ndim == 2 else None
    layer = last_layer(exam.anatomy)
    if layer is None or layer.output is None or layer.output.ndim != 2:
        return None
    return int(layer.output.shape[1])


def matching(exam: Examination) -> Remedy | None:
    """Cross-entropy on scores for labels, binary cross-entropy for two values, the squared error for numbers.

    A sigmoid stays where it fits, so that probabilities stay probabilities. None where no edit of the model is known.
    """
    work, width = exam.case.yardstick.work, width_of(exam)
    targets = exam.program.train[1] if exam.case.supervised else None
    if isinstance(targets, Tensor) and targets.ndim > 2:  # yes and no at each position
        alike = getattr(exam.anatomy.outputs, "shape", ())[1:] == targets.shape[1:]
        return _yes_or_no(exam, 1) if work == "binary" and alike else None
    if width is None or not isinstance(targets, Tensor):
        return None
    if work == "classes" and (exam.case.yardstick.classes > 2 or width > 1):
        return _labels(exam, width, exam.case.yardstick.classes)
    if work == "one_hot":
        return _labels(exam, width, exam.case.yardstick.classes)
    if work == "binary" and width == 2 and (targets.ndim == 1 or targets.shape[1] == 1):
        return _labels(exam, width, 2)
    if work in ("classes", "binary"):
        return _yes_or_no(exam, width)
    return _numbers(exam, width) if work == "regression" else None


def labelled(exam: Examination, classes: int) -> Remedy | None:
    """One score a class and cross-entropy, for numbers that are codes of classes."""
    width = width_of(exam)
    return None if width is None else _labels(exam, width, classes)


def _labels(exam: Examination, width: int, classes: int) -> Remedy | None:
    ends = bend(exam.anatomy)
    edit: Edit | None = None
    said = []
    if width < classes:
        edit = widened(exam.anatomy, classes)
        said.append(f"give the last layer {classes} outputs, one a class")
    elif ends not in ("", "log_softmax"):
        edit = behind(exam.anatomy)
        said.append(f"leave out the {ends} at the end")
    if said and edit is None:
        return None
    hot = exam.case.yardstick.work == "one_hot"
    said.append("use nn.CrossEntropyLoss()" + ("" if hot else " with whole-number labels"))
    return Remedy(
        " and ".join(said),
        f"{_in_code(said, width, classes)}\nloss = nn.CrossEntropyLoss()"
        + ("" if hot else "\ny = y.reshape(-1).long()"),
        on_model=edit,
        on_loss=lambda _: nn.CrossEntropyLoss(),
        on_rows=None if hot else _as_labels,
        also_valid=True,
        place="head",
        order=HEAD,
    )


def _in_code(said: list[str], width: int, classes: int) -> str:
    if width < classes:
        return f"last = nn.Linear(last.in_features, {classes})  # and nothing behind it"
    return "# no softmax, sigmoid or ReLU behind the last nn.Linear" if len(said) > 1 else "# the model stays as it is"


def _as_labels(rows: Rows) -> Rows:
    targets = rows.targets
    low = targets.min()
    flat = targets.reshape(len(targets), -1)[:, 0]
    return replace(rows, targets=(flat > low).long() if _two_but_not_codes(flat) else flat.long())


def _two_but_not_codes(flat: Tensor) -> bool:
    return bool((flat < 0).any()) and int(torch.unique(flat).numel()) == 2


def _yes_or_no(exam: Examination, width: int) -> Remedy | None:
    anatomy, values = exam.anatomy, exam.case.yardstick.values
    if exam.case.yardstick.work == "classes":
        values = (0.0, 1.0)
    ends = bend(anatomy)
    edit: Edit | None = None
    loss: type[nn.Module]
    if ends == "sigmoid" and len(anatomy.head) == 1:
        said, loss = "use nn.BCELoss() on the sigmoid", nn.BCELoss
    elif not anatomy.head:
        said, loss = "use nn.BCEWithLogitsLoss()", nn.BCEWithLogitsLoss
    else:
        edit = behind(anatomy, nn.Sigmoid)
        said, loss = f"put nn.Sigmoid() in the place of the {ends} at the end and use nn.BCELoss()", nn.BCELoss
        if edit is None:
            return None
    units = values == (0.0, 1.0)
    fitted = UnitTargets(loss(), *values)
    dense = exam.program.train[1].ndim > 2
    reshape = _shaped(exam, width) if units and not dense else None
    patch = f"loss = nn.{loss.__name__}()"
    flat = "\ny = y.float()" if dense else "\ny = y.float().reshape(len(y), -1)"
    patch += flat if units else f"\ny = (y > {sum(values) / 2:.3g}).float()"
    if edit is not None:
        patch = f"model[-1] = nn.Sigmoid()  # in the place of the {ends}\n{patch}"
    return Remedy(
        said if units else f"{said} on targets mapped to 0 and 1",
        patch,
        on_model=edit,
        on_loss=(lambda _: loss()) if units else (lambda _: fitted),
        on_rows=reshape,
        also_valid=True,
        place="head",
        order=HEAD,
    )


def _shaped(exam: Examination, width: int) -> Callable[[Rows], Rows]:
    outputs = exam.anatomy.outputs
    flat = isinstance(outputs, Tensor) and outputs.ndim == 1

    def edit(rows: Rows) -> Rows:
        targets = rows.targets.float() if not rows.targets.is_floating_point() else rows.targets
        return replace(rows, targets=targets.reshape(-1) if flat else targets.reshape(len(targets), width))

    return edit


def _numbers(exam: Examination, width: int) -> Remedy | None:
    targets = exam.program.train[1]
    columns = 1 if targets.ndim == 1 else int(targets.shape[1])
    anatomy, edit = exam.anatomy, None
    said = ["use nn.MSELoss()"]
    if width != columns:
        edit = widened(anatomy, columns)
        said.insert(0, f"give the last layer {columns} outputs")
    elif anatomy.head:
        edit = behind(anatomy)
        said.insert(0, f"leave out the {bend(anatomy)} at the end")
    if len(said) > 1 and edit is None:
        return None
    return Remedy(
        " and ".join(said),
        "# the model ends in its last nn.Linear\nloss = nn.MSELoss()\ny = y.float().reshape(len(y), -1)",
        on_model=edit,
        on_loss=lambda _: nn.MSELoss(),
        on_rows=_shaped(exam, columns),
        also_valid=True,
        place="head",
        order=HEAD,
    )


class UnitTargets(nn.Module):
    """A loss on targets mapped from two values to 0 and 1, in the shape of the outputs."""

    def __init__(self, loss: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.loss, self.low, self.high = loss, low, high

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mapped = (targets.to(outputs.dtype) - self.low) / (self.high - self.low)
        found: Tensor = self.loss(outputs, mapped.reshape(outputs.shape))
        return found
