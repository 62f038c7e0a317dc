"""Losses whose targets are signs, 1 and -1, and that are given 1 and 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fogline.doctor.causes.output.common import mismatched, passed_through
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.matching import matching
from fogline.doctor.uncut import within

_SIGNS: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "cosine_embedding_loss": (2, "target"), "margin_ranking_loss": (2, "target"),
        "hinge_embedding_loss": (1, "target"), "soft_margin_loss": (1, "target"),
    }
)  # fmt: skip
"""Functions of PyTorch that want signs: where, and by what name, they take them."""


class Signs(TorchFunctionMode):
    """Takes -1 for 0 in what such functions are given.

    Attributes:
        given: functions that were given zeros and ones, by name, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, None] = {}

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _SIGNS:
            place, word = _SIGNS[name]
            targets = args[place] if len(args) > place else kwargs.get(word)
            if isinstance(targets, Tensor) and _are_zeros_and_ones(targets):
                self.given[name] = None
                signs = 2 * targets - 1 if targets.is_signed() else 2 * targets.long() - 1
                if len(args) > place:
                    args = (*args[:place], signs, *args[place + 1 :])
                else:
                    kwargs = kwargs | {word: signs}
        return func(*args, **kwargs)


def _are_zeros_and_ones(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all()) and bool((targets == 0).any())


def zeros_for_signs(exam: Examination) -> Suspicion | None:
    """A loss of PyTorch, wherever it is called, that wants targets 1 and -1 and is given 1 and 0."""
    mode = Signs()
    if not passed_through(exam, mode) or not mode.given:
        return None
    name = f"F.{next(iter(mode.given))}"
    remedy = Remedy(
        f"give {name} -1 in the place of 0",
        f"{name}(..., 2 * targets - 1)",
        on_loss=lambda loss: within(loss, Signs),
        place="targets",
        order=LOSS,
    )
    found = mismatched(
        exam,
        0.95,
        (Evidence(f"targets of {name}", "0 and 1", "-1 and 1"),),
        f"{name} wants targets of 1 and -1, and is given 1 and 0. Of those with 0 nothing, or the wrong thing, is "
        "learned.",
        (remedy, matching(exam) if exam.case.supervised else None),
        proof=True,
        blocks=exam.case.yardstick.work == "other",  # only the loss can judge, and it is another one afterwards
    )
    return replace(found, advice="Make the targets 2 * targets - 1.")
