"""Batch normalisation over too few values."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fogline.data.source import rows_of
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, RECIPE, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import replaced

_FEW = 4
"""Values a channel at which the estimated variance is off by its own size: the error is sqrt(2 / (n - 1)) of it."""
_ENOUGH = 32
_REFUSAL = "Expected more than 1 value per channel"


def tiny_batch_norm(exam: Examination) -> Suspicion | None:
    """Batch normalisation over so few values that its variance is chance.

    Of n values the estimated variance is off by sqrt(2 / (n - 1)) of itself: by half at 9, by all of it at 3.
    """
    asked, recipe = exam.program.recipe.batch_size, exam.program.recipe
    rows = asked if isinstance(asked, int) else max(1, exam.case.batch_size // max(1, recipe.accumulate))
    size = rows_of(exam.anatomy.batch)
    if _REFUSAL in exam.anatomy.error:
        return _of_one(exam, rows)
    worst = min(_values_a_channel(exam, rows, size), key=lambda pair: pair[1], default=None)
    everything = rows_of(exam.case.train.inputs)
    last = everything % rows if rows <= everything else 0
    if worst is None or (worst[1] > _FEW and rows > _FEW and last != 1):
        return None
    name, values = worst
    alone = last == 1 and values // rows <= 1 and rows > 1
    if not alone and rows > _FEW and values > _FEW:
        return None
    strength = 0.8 if values <= _FEW else 0.6  # the pixels of a row are no independent draws
    return Suspicion(
        "tiny_batch_norm",
        strength,
        (
            Evidence("values a channel that its statistics are made of", 1 if alone else values, f"{_ENOUGH} or more",
                     layer=name),
            Evidence("rows a batch", rows, _ENOUGH),
        ),
        "The last batch of an epoch has a single row, of which batch normalisation can take no variance: PyTorch stops "
        "with an error there."
        if alone and values > _FEW
        else f"Batch normalisation takes mean and variance from {rows} rows, which is mostly chance: the same row "
        "comes out different in every batch, and different again when the model is evaluated.",
        (_larger_batches(exam, rows, alone and values > _FEW), _group_norm()),
        proof=alone and values > _FEW,
        blocks=alone and values > _FEW,
    )  # fmt: skip


def _of_one(exam: Examination, rows: int) -> Suspicion:
    """PyTorch refuses to normalise what has one value a channel: nothing can be trained."""
    return Suspicion(
        "tiny_batch_norm",
        0.95,
        (Evidence("values a channel that its statistics are made of", 1, f"{_ENOUGH} or more"),
         Evidence("rows a batch", rows, _ENOUGH)),
        "Batch normalisation is to take a variance of a single value, and PyTorch stops with an error.",
        (_larger_batches(exam, rows, alone=False), _group_norm()),
        proof=True,
        blocks=True,
        severity="fatal",
    )  # fmt: skip


def _values_a_channel(exam: Examination, rows: int, size: int) -> Iterator[tuple[str, int]]:
    for layer in exam.anatomy.layers:
        given = layer.received
        if isinstance(layer.module, _BatchNorm) and layer.module.training and given is not None and given.ndim > 1:
            a_row = given.numel() / max(1, given.shape[1]) / max(1, size)
            yield layer.name, max(1, round(a_row * rows))


def _larger_batches(exam: Examination, rows: int, alone: bool) -> Remedy:
    size = rows_of(exam.case.train.inputs)
    wanted, planned = min(size, rows + 1 if alone else _ENOUGH), exam.planned
    while wanted < size and size % wanted == 1:
        wanted += 1
    if alone:
        return Remedy(
            f"batches of {wanted} rows, so that none has a single one",
            f"batch_size={wanted}  # or drop_last=True in the DataLoader",
            on_recipe=lambda recipe: recipe.replace(batch_size=wanted, accumulate=1),
            place="batch",
            order=RECIPE,
        )
    return Remedy(
        f"batches of {wanted} rows instead of {rows}, for as many steps",
        f'fogline.Recipe(batch_size={wanted}, duration="{planned}st")',
        on_recipe=lambda recipe: recipe.replace(batch_size=wanted, accumulate=1, duration=f"{planned}st"),
        place="batch",
        order=RECIPE,
    )


def _group_norm() -> Remedy:
    return Remedy(
        "normalise each row on its own: nn.GroupNorm in place of nn.BatchNorm",
        "nn.GroupNorm(1, width)  # in place of nn.BatchNorm1d(width)",
        on_model=_grouped,
        place="batch",
        order=BODY,
    )


def _grouped(model: nn.Module) -> nn.Module:
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    for name, module in norms:
        like = next(model.parameters())
        made = nn.GroupNorm(1, module.num_features, eps=module.eps, affine=module.affine).to(like.device, like.dtype)
        model = replaced(model, name, lambda _, made=made: made)  # type: ignore[misc]
    return model
