"""A mask the wrong way round: the padding is seen, and all else is hidden."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fogline.data.source import leaves, rows_of, taken
from fogline.descent.copies import copied
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.masking import MasksSeen, MasksTurned
from fogline.doctor.uncut import Within, answers

_ROWS = 64
_ALIKE = 0.9
"""Of the places of either of two sets, those of both: inside a row some word may be the padding's own number."""
_MORE_THAN_A_MASK = 2
"""Different numbers that are not padding: inputs with no more of them may be masks, which have no padding."""


def mask_turned(exam: Examination) -> Suspicion | None:
    """Masks inside the model that hide what is no padding, and leave nothing but padding.

    For PyTorch's attention and for ``masked_fill``, true is what is to be ignored; elsewhere, 1 is what is to be kept.
    Where one mask hides padding the model knows what padding is, and another may be its counterpart.
    """
    if not exam.case.supervised or exam.anatomy.stage == "forward":
        return None
    inputs = exam.anatomy.batch[0]
    for count in (_ROWS, _ROWS - 1):  # rows as many as places would leave open which is which
        some = taken(inputs, torch.arange(min(count, rows_of(inputs))))
        paddings = [pad for leaf in leaves(some) for pad in _paddings(leaf)]
        if paddings and all(len(set(pad.shape)) > 1 for pad in paddings):
            break
    else:
        return None
    wrong = _wrong(exam, some, paddings)
    if not wrong:
        return None
    hides, keeps = next(iter(wrong.values()))
    calls = frozenset(wrong)
    remedy = Remedy(
        "turn the mask about",
        "mask = ~mask  # for masked_fill and key_padding_mask, true is what is to be ignored",
        on_model=lambda model: Within(model, partial(MasksTurned, calls)),
        place="mask",
        order=BODY,
    )
    return Suspicion(
        "bottleneck",
        0.9,
        (
            Evidence("share of what a mask inside the model hides that is padding", hides, 1.0),
            Evidence("share of what it leaves that is padding", keeps, 0.0),
        ),
        "A mask inside the model is the wrong way round: it hides all that is no padding, so that the model sees the "
        "padding alone, and of a row knows hardly more than its length.",
        (remedy,),
        severity="fatal",
    )


def _wrong(exam: Examination, inputs: Any, paddings: list[Tensor]) -> dict[int, tuple[float, float]]:
    """Calls with such masks, by number: which shares of what they hide, and of what they leave, are padding.

    None where some mask of scores hides padding, and where all are factors.
    """
    seen = MasksSeen()
    if answers(copied(exam.anatomy.model).eval(), inputs, seen) is None:
        return {}
    wrong = {}
    for number, mask in seen.calls.items():
        for pad in paddings:
            hidden = _by_place(mask.hidden, *pad.shape)
            if hidden is None or not bool(hidden.any()) or bool(hidden.all()):
                continue
            if _alike(hidden, pad) or not bool((hidden & ~pad).any()):
                if mask.of_scores:
                    return {}
                continue
            if _alike(~hidden, pad):
                wrong[number] = float(pad[hidden].float().mean()), float(pad[~hidden].float().mean())
    return wrong if any(seen.calls[number].of_scores for number in wrong) else {}


def _alike(first: Tensor, second: Tensor) -> bool:
    return float((first & second).sum()) >= _ALIKE * float((first | second).sum())


def _by_place(mask: Tensor, rows: int, places: int) -> Tensor | None:
    """A mask as (rows, places), where it is the same for all heads, features, or places that look."""
    mask = mask.squeeze()
    if mask.ndim < 2:
        return None
    if mask.shape[-1] == places and mask.shape[0] % rows == 0:
        wide = mask.reshape(rows, -1, places)
    elif mask.shape[:2] == (rows, places):
        wide = mask.reshape(rows, places, -1).transpose(1, 2)
    elif mask.shape[:2] == (places, rows):
        wide = mask.reshape(places, rows, -1).permute(1, 2, 0)
    else:
        return None
    return wide[:, 0] if bool((wide == wide[:, :1]).all()) else None


def _paddings(given: Any) -> Iterator[Tensor]:
    """Which places of the inputs may be padding, (rows, places): a constant that fills the ends, of several lengths."""
    if not isinstance(given, Tensor) or given.ndim < 2 or given.dtype == torch.bool or min(given.shape[:2]) < 2:
        return
    if given.ndim == 3:
        zeros = (given == 0).all(-1)
        fills = [zeros] if given.shape[-1] > 1 or given.is_floating_point() else []
    elif given.ndim == 2 and not given.is_floating_point():
        usual = {0, int(given[:, 0].mode().values), int(given[:, -1].mode().values)}
        fills = [given == number for number in sorted(usual)]
        fills = [fill for fill in fills if len(torch.unique(given[~fill])) > _MORE_THAN_A_MASK]
    else:
        return
    for fill in fills:
        for run in (fill.flip(1).long().cumprod(1).flip(1).bool(), fill.long().cumprod(1).bool()):
            lengths = run.sum(1)
            if len(torch.unique(lengths)) > _MORE_THAN_A_MASK and not bool((lengths == run.shape[1]).all()):
                yield run
