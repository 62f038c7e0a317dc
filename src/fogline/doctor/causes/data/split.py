"""How rows were divided into training and held-out ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fogline.data.source import leaves, map_tree, rows_of, taken
from fogline.doctor.causes.data.common import alike, kept_at, map_both, only, pair_of
from fogline.doctor.causes.data.one_by_one import scaled_one_by_one
from fogline.doctor.causes.data.outliers import has_far_off_targets
from fogline.doctor.examination import Examination
from fogline.doctor.finding import ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.reference import features, measured, refer
from fogline.doctor.yardstick import error_of

_ENOUGH_TO_SCORE = 20  # rows
_MOST_COLUMNS = 1000
_MIDDLE_HALF = 1.349
"""Between the quartiles of normal numbers, in their deviations."""
_HOLDS, _AS_WELL = 0.5, 0.1
"""Scores on held-out rows of what was found in training rows, that leave no doubt of the two being of one kind."""
_FEWEST_LABELS, _OTHER_CLASSES = 8, 0.6
"""Rows whose classes are compared, and from what share of them on it is another kind: a rare class that is held out as
often as the common one makes half."""


def train_valid_mismatch(exam: Examination) -> Suspicion | None:
    """Held-out rows of another kind than the training rows.

    Told by what was done to each row by itself, by their units (mean and deviation of columns, far beyond the noise of
    samples), or by classical learners: what they learn from training rows holds for other training rows and not for the
    held-out ones, which can be learned within themselves.
    """
    held, pair = exam.case.valid, pair_of(exam)
    if held is None or pair is None or kept_at(exam, "split") or not isinstance(held.targets, Tensor):
        return None
    both = isinstance(pair[0], Tensor) and isinstance(held.inputs, Tensor)
    by_itself = scaled_one_by_one(pair[0], held.inputs) if both else None
    if by_itself is not None:
        return by_itself
    evidence, moved = _other_units(exam, pair, held)
    if "wholly" not in moved.values() and _carries_over(exam):
        evidence, moved = [], {}  # the same things at another time, such as prices that went on rising
    broken = _does_not_carry_over(exam)
    if broken:
        evidence += broken
    other_classes = _other_classes(exam, pair[1], held.targets)
    evidence += other_classes
    if not evidence:
        return None
    units, again = _same_units(pair, held, moved), _split_again(exam)
    same_rows = units is not None and not other_classes and _mends(exam, held, units)
    likelier = (units, again) if same_rows else (again, units)
    remedies = [r for r in likelier if r is not None]
    return Suspicion(
        "train_valid_mismatch",
        0.9 if broken or other_classes else 0.6,
        tuple(evidence),
        "The held-out rows are of another kind than the training rows: prepared in another way, or from elsewhere. "
        "What is learned does not hold for them, and the score on them says nothing about the training.",
        tuple(remedies),
        proof=bool(broken or other_classes) or any(word == "wholly" for word in moved.values()),
        advice="Prepare both parts by the same code with the same numbers, and split at random.",
    )


def _other_units(exam: Examination, pair: tuple[Any, Tensor], held: Rows) -> tuple[list[Evidence], dict[str, str]]:
    """Inputs or numeric targets whose columns have moved; "wholly" where nothing but other units explains it."""
    evidence: list[Evidence] = []
    which: dict[str, str] = {}
    parts = {"inputs": (_measures(pair[0]), _measures(held.inputs))}
    if exam.case.yardstick.work == "regression":
        parts["targets"] = features(pair[1]), features(held.targets)
    for name, (train, other) in parts.items():
        if train is None or other is None or train.shape[1] != other.shape[1] or min(len(train), len(other)) < 8:
            continue
        shift, ratio, counted = shifted(train, other)
        if counted < 1:
            continue
        far = (shift > 1) | (ratio > 2)
        utterly = (shift > 3) | (ratio > 5)
        if float(far.double().mean()) <= 0.5:
            continue
        which[name] = "wholly" if float(utterly.double().mean()) > 0.5 else "partly"
        evidence.append(
            Evidence(
                f"shift of the {name} of held-out rows, in deviations of the training rows", float(shift.median()), 0.0
            )
        )
        evidence.append(Evidence(f"ratio of the deviations of their {name}", float(ratio.median()), 1.0))
    return evidence, which


def _other_classes(exam: Examination, targets: Tensor, others: Tensor) -> list[Evidence]:
    """Held-out rows of other classes than the training rows, as the end of rows that are sorted by class has."""
    found = [exam.case.yardstick.labels(tree) for tree in (targets, others)]
    if any(labels is None or len(labels) < _FEWEST_LABELS for labels in found):
        return []
    classes = max(int(labels.max()) for labels in found if labels is not None) + 1
    counts = [torch.bincount(labels, minlength=classes).double() for labels in found if labels is not None]
    ours, theirs = (count / count.sum() for count in counts)
    apart = 0.5 * float((ours - theirs).abs().sum())
    by_chance = 0.5 * math.sqrt(classes * sum(1 / float(count.sum()) for count in counts))
    if apart < max(_OTHER_CLASSES, 3 * by_chance):
        return []
    return [Evidence("share of the held-out rows that would need another class to be as the training rows", apart, 0.0)]


def _measures(inputs: Any) -> Tensor | None:
    """The columns of inputs that are measured, beside such as are names of things."""
    return features([leaf for leaf in leaves(inputs) if _continuous(leaf)])


def _continuous(inputs: Tensor) -> bool:
    return inputs.is_floating_point() or inputs.dtype == torch.uint8


def shifted(train: Tensor, other: Tensor) -> tuple[Tensor, Tensor, int]:
    """Shift of the mean and ratio of the deviations by column, less four standard errors; of columns that vary.

    No more than those of the middle halves of the rows, where these vary: a few rows far off are no other units.
    """
    train, other = train[torch.isfinite(train).all(1)], other[torch.isfinite(other).all(1)]
    if min(len(train), len(other)) < 8:
        return torch.zeros(0), torch.zeros(0), 0
    first, second = train.std(0, correction=0), other.std(0, correction=0)
    varies = first > 1e-7 * train.abs().amax(0)
    first, second = first[varies], second[varies]
    size = min(len(train), len(other))
    shift = (other.mean(0) - train.mean(0))[varies].abs() / first - 4 / math.sqrt(size)
    tails = ((train - train.mean(0))[varies[None].expand_as(train)].reshape(len(train), -1) / first).pow(4).mean(0)
    error = (tails.clamp_min(1) / (4 * size)).sqrt()  # of the logarithm of a deviation
    ratio = ((second / first).clamp_min(1e-12).log().abs() - 4 * error).clamp_min(0).exp()
    middle, wide = _middle(train[:, varies])
    other_middle, other_wide = _middle(other[:, varies])
    known = (wide > 1e-7 * first) & (other_wide > 0)
    moved, grown = (other_middle - middle).abs() / wide, (other_wide / wide).log().abs().exp()
    shift = torch.where(known, torch.minimum(shift, moved), shift)
    return shift.clamp_min(0), torch.where(known, torch.minimum(ratio, grown), ratio), int(varies.sum())


def _middle(columns: Tensor) -> tuple[Tensor, Tensor]:
    """The median of columns, and the deviation of normal numbers whose middle half lies as wide."""
    low, middle, high = (columns.kthvalue(max(1, round(q * len(columns))), 0).values for q in (0.25, 0.5, 0.75))
    return middle, (high - low) / _MIDDLE_HALF


def _carries_over(exam: Examination) -> bool:
    """Whether what a classical learner finds in the training rows holds for the held-out ones as well."""
    learned, held_out = exam.reference.score, exam.reference.valid_score
    return learned is not None and held_out is not None and held_out >= max(_HOLDS, learned - _AS_WELL)


def _does_not_carry_over(exam: Examination) -> list[Evidence]:
    seen, held = exam.reference, exam.case.valid
    if seen.score is None or seen.valid_score is None or seen.within_valid is None or held is None:
        return []
    if has_far_off_targets(exam):
        return []  # of which the score on the rows that have them is made
    classes = exam.case.yardstick.classes
    first = error_of(seen.scored, classes)
    second = error_of(min(rows_of(held.inputs), 4000), classes)
    if seen.score - seen.valid_score < max(3 * math.hypot(first, second), 0.3 * seen.score):
        return []
    if seen.within_valid - seen.valid_score < max(2 * 1.5 * second, 0.2):
        return []
    return [
        Evidence(f"score of {seen.learner} on training rows it did not see", seen.score),
        Evidence("its score on the held-out rows", seen.valid_score, seen.score),
        Evidence("score where it learns from some held-out rows and is tried on others", seen.within_valid),
    ]


def _same_units(pair: tuple[Any, Tensor], held: Rows, moved: dict[str, str]) -> Remedy | None:
    if not moved:
        return None
    edits = {
        name: _onto(tree, getattr(held, name))
        for name, tree in zip(("inputs", "targets"), pair, strict=True)
        if name in moved
    }

    def edit(rows: Rows) -> Rows:
        if rows.ids is not None:  # training rows stay
            return rows
        return replace(rows, **{name: change(getattr(rows, name)) for name, change in edits.items()})

    what = " and ".join(moved)
    return Remedy(
        f"give the {what} of held-out rows the units of the training rows",
        "scaler.fit(X); X, Xv = scaler.transform(X), scaler.transform(Xv)  # the same numbers for both",
        on_rows=edit,
        also_valid=True,
        place="split",
        order=ROWS,
    )


def _mends(exam: Examination, held: Rows, remedy: Remedy) -> bool:
    """Whether what a classical learner gets from the training rows holds for the held-out rows once mended."""
    assert remedy.on_rows is not None
    seen, before = refer(replace(exam.case, valid=remedy.on_rows(replace(held, ids=None)))), exam.reference
    if seen.valid_score is None or before.score is None or before.valid_score is None:
        return True
    return seen.valid_score > (before.score + before.valid_score) / 2 or seen.valid_score >= before.score - 0.1


def _onto(train: Any, other: Any) -> Callable[[Any], Any]:
    """Moves measured columns from the mean and deviation of one set of rows to those of another."""
    moves = [_moved(ours, theirs) for ours, theirs in zip(leaves(train), leaves(other), strict=True)]

    def change(values: Any) -> Any:
        of_leaf = iter(moves)
        return map_tree(lambda leaf: next(of_leaf)(leaf), values)

    return change


def _moved(train: Tensor, other: Tensor) -> Callable[[Tensor], Tensor]:
    if not _continuous(train):
        return lambda values: values
    flat, away = train.reshape(len(train), -1).double(), other.reshape(len(other), -1).double()
    factor = flat.std(0, correction=0) / away.std(0, correction=0).clamp_min(1e-30)
    factor = torch.where(away.std(0, correction=0) > 0, factor, torch.ones_like(factor))
    shift = flat.mean(0) - away.mean(0) * factor

    def change(values: Tensor) -> Tensor:
        moved = values.reshape(len(values), -1).double() * factor + shift
        return moved.reshape(values.shape).to(train.dtype)

    return change


def _split_again(exam: Examination) -> Remedy | None:
    """Both parts are put together and divided at random, in the same numbers."""
    held, train = exam.case.valid, exam.case.train
    if held is None or not alike(train.inputs, held.inputs) or not alike(train.targets, held.targets):
        return None
    size, count = rows_of(train.inputs), rows_of(held.inputs)
    order = torch.randperm(size + count, generator=torch.Generator().manual_seed(0))
    pairs = ((train.inputs, held.inputs), (train.targets, held.targets))
    inputs, targets = (map_both(lambda a, b: torch.cat([a, b.to(a.dtype)]), *pair) for pair in pairs)

    def edit(rows: Rows) -> Rows:
        mine = order[:size] if rows.ids is not None else order[size:]
        mine = mine[: rows_of(rows.inputs)]
        return replace(rows, inputs=taken(inputs, mine), targets=taken(targets, mine))

    return Remedy(
        "put training and held-out rows together and split them at random",
        "X, Xv, y, yv = train_test_split(torch.cat([X, Xv]), torch.cat([y, yv]), test_size=len(Xv))",
        on_rows=edit,
        also_valid=True,
        place="split",
        order=ROWS,
    )


def duplicate_leak(exam: Examination) -> Suspicion | None:
    """Held-out rows that are copies of training rows: the score on them shows what was memorised.

    Values that repeat by themselves (few columns with few values) do so within the training rows too: the share of
    training rows that have a twin among the others is the share of copies that chance gives. Several measured numbers
    do not: where rows were repeated on purpose, as those of rare classes are, they were before the split.
    """
    held, pair = exam.case.valid, pair_of(exam)
    if held is None or pair is None or kept_at(exam, "copies") or kept_at(exam, "split"):
        return None
    if not isinstance(held.targets, Tensor) or not alike(pair[0], held.inputs) or rows_of(held.inputs) < 5:
        return None
    if _few_kinds(pair[0]):
        return None
    own, other = _hashes(pair[0], pair[1]), _hashes(held.inputs, held.targets)
    counts: dict[bytes, int] = {}
    for row in own:
        counts[row] = counts.get(row, 0) + 1
    copies = sum(row in counts for row in other)
    twins = sum(c for c in counts.values() if c > 1) / len(own)
    share, by_chance = copies / len(other), 0.0 if any(map(measured, leaves(pair[0]))) else twins
    error = math.sqrt((by_chance * (1 - by_chance) + 1 / len(own)) / len(other))
    if share < by_chance + 5 * error or share < max(0.02, 2 * by_chance):
        return None
    return Suspicion(
        "duplicate_leak",
        0.9,
        (
            Evidence("held-out rows that are copies of training rows", f"{copies} of {len(other)}", 0),
            Evidence("share of training rows that have a twin among themselves", twins),
        ),
        f"{copies} of {len(other)} held-out rows are in the training data too. The score on them says how well rows "
        "are "
        "remembered, not how well new ones are predicted: it is too good.",
        (_scored_without_copies(exam) if len(other) - copies >= _ENOUGH_TO_SCORE else _without_copies(exam),),
        proof=True,
        severity="serious" if share > 0.2 else "minor",
        advice="Split before rows are repeated or augmented, and by the thing they come from (a patient, a picture).",
    )


def _few_kinds(inputs: Any) -> bool:
    """Whether the columns have so few values that there are hardly more possible rows than rows."""
    columns = [column for leaf in leaves(inputs) for column in _flat(leaf)[:5000].unbind(1)]
    count, kinds = rows_of(inputs), 1.0
    for column in columns:
        kinds *= len(torch.unique(column))
        if kinds > 10 * count:
            return False
    return len(columns) > 1 or kinds < 0.5 * min(count, 5000)


def _hashes(inputs: Any, targets: Any) -> list[bytes]:
    """The bytes of each row, of spaced columns where there are very many."""
    wide = [flat for flat in map(_flat, leaves((inputs, targets))) if flat.shape[1]]
    columns = [flat[:, :: -(-flat.shape[1] // _MOST_COLUMNS)].double() for flat in wide]
    return [row.tobytes() for row in torch.cat(columns, 1).cpu().numpy()]


def _flat(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def _scored_without_copies(exam: Examination) -> Remedy:
    """Enough fresh rows are left to score on, so nothing is taken from what is learned."""
    train = exam.case.train
    known = set(_hashes(train.inputs, train.targets))

    def edit(rows: Rows) -> Rows:
        if rows.ids is not None:
            return rows
        fresh = [k for k, row in enumerate(_hashes(rows.inputs, rows.targets)) if row not in known]
        return only(rows, torch.tensor(fresh, dtype=torch.int64))

    code = "seen = {row.tobytes() for row in X.numpy()}\n"
    code += "fresh = [k for k, row in enumerate(Xv.numpy()) if row.tobytes() not in seen]"
    return Remedy(
        "leave out held-out rows that are training rows too",
        code + "\nXv, yv = Xv[fresh], yv[fresh]",
        on_rows=edit,
        also_valid=True,
        place="copies",
        order=ROWS,
    )


def _without_copies(exam: Examination) -> Remedy:
    held = exam.case.valid
    assert held is not None
    known = set(_hashes(held.inputs, held.targets))

    def edit(rows: Rows) -> Rows:
        if rows.ids is None:
            return rows
        fresh = [k for k, row in enumerate(_hashes(rows.inputs, rows.targets)) if row not in known]
        enough = len(fresh) >= max(2, rows_of(rows.inputs) // 10)
        return only(rows, torch.tensor(fresh, dtype=torch.int64)) if enough else rows

    code = "seen = {row.tobytes() for row in Xv.numpy()}\n"
    code += "fresh = [k for k, row in enumerate(X.numpy()) if row.tobytes() not in seen]"
    return Remedy(
        "leave out training rows that are held out too",
        code + "\nX, y = X[fresh], y[fresh]",
        on_rows=edit,
        place="copies",
        order=ROWS,
    )
