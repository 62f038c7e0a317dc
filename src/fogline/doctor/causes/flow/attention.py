"""A softmax inside the model that has decided before anything was learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fogline.data.source import leaves
from fogline.descent.copies import copied
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import CPU, LINEAR, Anatomy, has_weight, inputs_of, operation
from fogline.doctor.case import FAILURES
from fogline.doctor.causes.flow.activations import MOSTLY
from fogline.doctor.closeup import DEFAULT_GAIN, spreads, wide
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.graphs import dimension_of
from fogline.doctor.uncut import MASKED, DropsLess, ScoresDivided, SoftmaxesSeen, Within

_DECIDED = 0.99
"""Of a row's weight on one entry: as of a sigmoid this near to its limit, less than 4 % of the slope is left."""
_FEWEST_ENTRIES, _FEWEST_ROWS = 4, 8
_MOST_NODES = 20_000
_USUAL = DEFAULT_GAIN**2
"""Spread of q k / sqrt(d) where queries and keys come of PyTorch's own layers and inputs of unit size."""


@dataclass(frozen=True)
class _Decided:
    """A softmax of which most rows are on one entry: which call of a pass, the share of rows, the spread of scores."""

    call: int
    share: float
    spread: float
    entries: int


def saturated_attention(exam: Examination) -> Suspicion | None:
    """Scores so far apart at first weights that a softmax inside the model picks one entry, and hardly has a slope.

    Scores that are sums of d products have a spread of about the root of d, which they are to be divided by (Vaswani et
    al. 2017). Where chance has a part in the scores, choices are drawn, and sharp ones may be meant.
    """
    anatomy = wide(exam)
    decided = _decided(anatomy)
    if not decided:
        return None
    shares = (
        Evidence(f"share of rows that a softmax over {seen.entries} scores puts on one entry", seen.share, "below 0.5")
        for seen in decided[:2]
    )
    return Suspicion(
        "saturated_units",
        0.7,
        (*shares, Evidence("spread of these scores in a row, before the first step", decided[0].spread, "1 or less")),
        "Inside the model a softmax begins on a single entry in most rows: its scores are so far apart that it passes "
        "almost no gradient back, and what it attends to by chance it goes on attending to.",
        (_divided(decided),),
        follows=any(spread.excess > 0 for spread in spreads(anatomy)),  # of weights too large scores are too
    )


def _divided(decided: list[_Decided]) -> Remedy:
    by = {seen.call: seen.spread / _USUAL for seen in decided}
    return Remedy(
        "divide the scores before the softmax, to the spread of usual first weights",
        f"scores = scores / {by[decided[0].call]:.3g}  # or q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, in place of "
        "what multiplies them now",
        on_model=lambda model: Within(model, partial(ScoresDivided, by)),
        place="scores",
        order=BODY,
    )


def _decided(anatomy: Anatomy) -> list[_Decided]:
    """The softmaxes inside the model that have decided, where they come to the same scores again."""
    if anatomy.stage or anatomy.outputs is None or not any(_sharp(node) for node in _inner(_ends(anatomy.outputs))):
        return []
    first, again = _scores(anatomy, 0), _scores(anatomy, 1)
    same = {call for call in first if call in again and torch.equal(first[call], again[call])}
    found = [_told(call, scores) for call, scores in first.items() if call in same]
    return [seen for seen in found if seen.share > MOSTLY]


def _told(call: int, scores: Tensor) -> _Decided:
    """How a softmax over the last dimension stands, in the rows that have some entries to choose from."""
    rows = scores.float().reshape(-1, scores.shape[-1])
    lowest = rows == rows.amin()
    masked = ~torch.isfinite(rows) | (rows <= MASKED) | (lowest & (lowest.sum() > 1))  # of scores one is the lowest
    entries = (~masked).sum(-1)
    rows, masked = (value[entries >= _FEWEST_ENTRIES] for value in (rows, masked))
    if len(rows) < _FEWEST_ROWS:
        return _Decided(call, 0.0, 1.0, 0)
    most = rows.masked_fill(masked, -torch.inf).softmax(-1).amax(-1)
    mean = rows.masked_fill(masked, 0).sum(-1, keepdim=True) / (~masked).sum(-1, keepdim=True)
    spread = float((rows - mean)[~masked].square().mean().sqrt())
    return _Decided(call, float((most >= _DECIDED).float().mean()), spread, int(entries.max()))


def _scores(anatomy: Anatomy, seed: int) -> dict[int, Tensor]:
    """What the softmaxes inside the model are given in a pass, by the number of the call; ``seed`` is that of chance.

    In training mode, as the graph was, but with nothing dropped.
    """
    model, seeing = copied(anatomy.model), SoftmaxesSeen()
    with private_randomness(CPU), torch.enable_grad():
        seed_step(seed, 0, PROBE, CPU)
        with DropsLess(), seeing, suppress(*FAILURES):  # a model that does not stand to be looked at is left alone
            inner = set(_inner(_ends(model(anatomy.batch[0]))))
            return {k: call.scores for k, call in enumerate(seeing.calls) if call.node in inner}
    return {}


def _ends(outputs: Any) -> list[Any]:
    return [leaf.grad_fn for leaf in leaves(outputs) if isinstance(leaf, Tensor)]


def _inner(ends: list[Any]) -> Iterator[Any]:
    """Softmaxes that outputs are calculated with: between each and the outputs there is a product, on every way.

    What is not multiplied by anything learned on its way out is the model's answer, and may be as sure as it likes.
    """
    inside: dict[Any, bool] = {}
    queue = [(end, False) for end in ends if end is not None]
    while queue and len(inside) < _MOST_NODES:
        node, behind = queue.pop()
        if node in inside and (behind or not inside[node]):
            continue  # been there, by a way with as few products
        inside[node] = behind
        before = inputs_of(node)
        product = (operation(node) in LINEAR and (has_weight(node) or len(before) > 1)) or (
            operation(node) == "Mul" and len(before) > 1
        )
        queue += [(found, behind or product) for found in before]
    return (node for node, behind in inside.items() if behind and operation(node) == "Softmax")


def _sharp(node: Any) -> bool:
    """Whether many rows of a softmax in the graph are on one entry, so that a closer look is worth two passes."""
    try:
        most = node._saved_result.amax(dimension_of(node))
    except RuntimeError:  # let go by somebody's own backward(), or of another kind of tensor
        return False
    return float((most >= _DECIDED).float().mean()) > MOSTLY / 2
