"""Targets that do not belong to their rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fogline.data.source import rows_of
from fogline.doctor.causes.data.common import kept_at, only, pair_of
from fogline.doctor.causes.data.order import rare, rows_of_classes
from fogline.doctor.causes.data.outliers import has_far_off_targets
from fogline.doctor.causes.data.places import moved_targets
from fogline.doctor.causes.data.split import train_valid_mismatch
from fogline.doctor.examination import Examination
from fogline.doctor.finding import ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.reading import answers_are_of_their_rows
from fogline.doctor.reference import out_of_fold
from fogline.doctor.remedies import smoothed_labels
from fogline.doctor.robust import robust
from fogline.doctor.standing import LEARNS
from fogline.doctor.yardstick import error_of

_MOSTLY_WRONG = (
    "label_noise",
    "Targets that are in their place, but wrong for most rows, look the same: so little is left in the rest that no "
    "learner finds it in these rows.",
)
_FEWEST = 50
"""Rows below which a share or a score says too little."""


def shuffled_labels(exam: Examination) -> Suspicion | None:
    """Targets that do not belong to their rows, while those of the held-out rows do.

    A classical learner gets little from training rows for other training rows, and what it gets holds better for the
    held-out rows, or those can be learned within themselves: then it is the training targets that are wrong.
    """
    seen, possible = exam.reference, _taught_by_held_out_rows(exam)
    if possible is None or seen.score is None or seen.score > _SOMETHING * possible or has_far_off_targets(exam):
        return None
    assert seen.valid_score is not None
    assert seen.within_valid is not None
    moved = moved_targets(exam)
    return Suspicion(
        "shuffled_labels",
        0.9,
        (
            *(() if moved is None else moved[1]),
            Evidence(f"score of {seen.learner} on training rows it did not see", seen.score, possible),
            Evidence("its score on the held-out rows", seen.valid_score),
            Evidence("score where it learns from some held-out rows and is tried on others", seen.within_valid),
        ),
        "The held-out rows can be learned, and the training rows cannot: most training targets do not belong to their "
        "rows. Usually inputs and targets were shuffled, sorted, filtered or joined apart from each other.",
        () if moved is None else (moved[0],),
        proof=True,
        severity="fatal",
        advice="Shuffle, sort and filter inputs and targets with one and the same index; look at a few rows by eye.",
        otherwise=None if moved else _MOSTLY_WRONG,
    )


def _taught_by_held_out_rows(exam: Examination) -> float | None:
    """What can be got of the held-out rows, where that is clearly more than of the training rows."""
    seen, held = exam.reference, exam.case.valid
    if seen.score is None or seen.within_valid is None or seen.valid_score is None or held is None or seen.rows is None:
        return None
    counts = rows_of_classes(exam)
    if counts is not None and bool(rare(counts).any()):
        return None  # what a learner of few rows of a class gets of it is little, whatever their labels
    classes = exam.case.yardstick.classes
    rows, others = seen.scored, min(4000, rows_of(held.inputs))
    if rows < 20 or others < 20:
        return None
    possible = max(seen.within_valid, seen.valid_score)
    error = math.hypot(error_of(rows, classes), error_of(others, classes))
    return possible if possible - seen.score >= max(3 * error, 0.25) else None


def wrong_numbers(exam: Examination) -> Suspicion | None:
    """Numeric training targets that are wrong in part, while those of held-out rows are not."""
    seen, bounded = exam.reference, robust(exam.program.loss)
    if exam.case.yardstick.work != "regression" or bounded is None or seen.score is None or has_far_off_targets(exam):
        return None
    possible = _taught_by_held_out_rows(exam)
    if possible is None or seen.score <= _SOMETHING * possible or train_valid_mismatch(exam):
        return None
    return Suspicion(
        "label_noise",
        0.7,
        (Evidence(f"score of {seen.learner} on training rows it did not see", seen.score, possible),),
        "The held-out rows can be learned better than the training rows, which teach something, but not that much: a "
        "part of the training targets does not belong to its rows.",
        (bounded,),
        proof=True,
        advice="Look at rows that the trained network misses by most: where do their targets come from?",
    )


def unrelated_labels(exam: Examination) -> Suspicion | None:
    """Targets that have nothing to do with their rows, held out or not, as far as any learner can tell.

    That the data can do no better is one answer; that targets were mixed up before they were split is the other, and
    the rows cannot tell which.
    """
    pair, seen, observed = pair_of(exam), exam.reference, exam.observed
    if pair is None or seen.score is None or seen.rows is None or observed is None or observed.error:
        return None
    within = 0.0 if seen.within_valid is None else seen.within_valid - seen.valid_error
    got = max(seen.score, within, observed.score)
    if seen.scored < _FEWEST // 2 or got > LEARNS or has_far_off_targets(exam):
        return None
    moved, classes = moved_targets(exam), exam.case.yardstick.classes
    # Squared correlations by chance are 1 / n, and learners that know nothing mostly explain less: more is a signal.
    rows = min(seen.scored, rows_of(exam.program.held))
    chance = 2 * error_of(rows, classes) if classes else 4 / max(1, rows)
    if moved is None and (got > chance or answers_are_of_their_rows(exam)):
        return None
    return Suspicion(
        "shuffled_labels",
        0.6 if moved is None else 0.9,
        (
            *(() if moved is None else moved[1]),
            Evidence(f"score of {seen.learner} on rows it did not see", seen.score, "well above 0"),
            Evidence("score of the network on held-out rows", observed.score, "well above 0"),
        ),
        "Neither the network nor a classical learner gets anything from the inputs that holds for other rows. Either "
        "the inputs do not determine the targets, or inputs and targets were shuffled, sorted, filtered or joined "
        "apart from each other before they were split.",
        () if moved is None else (moved[0],),
        proof=moved is not None,
        severity="fatal",
        advice="Look at a few rows by eye: does each target belong to its input?",
        otherwise=None if moved else _MOSTLY_WRONG,
    )


_WORSE = 0.05
"""What training rows are answered worse by, where their labels are wrong and those of held-out rows are not."""
_SOMETHING = 0.15
"""Of what is possible: targets that carry more than this are wrong in part."""
_KNOWN, _MANY, _OVERLAP = (0.45, 0.25), 0.2, 0.58
"""Score of a learner that can tell two classes, or more; share of labels that is more than noise of the data; and the
rank, with twice its error, up to which rows do not lie on the side of the class of their label. Of two normal
distributions that a learner scores 0.45 with, the rank is 0.59; below, it comes too near to that of wrong labels."""


def label_noise(exam: Examination) -> Suspicion | None:
    """Training labels that a classical learner of the other training rows contradicts, and for no good reason.

    Where inputs do not determine the label, or the learner is no good, labels are contradicted as well. Then they are
    among the held-out rows, too, and more often the nearer a row is to the class that it has for a label.
    """
    pair, seen, yardstick = pair_of(exam), exam.reference, exam.case.yardstick
    if pair is None or seen.score is None or seen.rows is None or kept_at(exam, "labels") or train_valid_mismatch(exam):
        return None
    if 1 - seen.score < _MANY / 2 and (seen.valid_score is None or seen.valid_score - seen.score < _WORSE):
        return None  # so few are contradicted in all that neither sign can be there
    ids = seen.rows
    labels = yardstick.labels(exam.case.train.targets[ids])
    said = None if labels is None else out_of_fold(exam.case, seen.learner, ids)
    if labels is None or said is None:
        return None
    ours, theirs = _by_class(said[0], exam), None if said[1] is None else _by_class(said[1], exam)
    found = _worse_than_held_out(exam, ours, theirs, labels) or _wherever_rows_lie(exam, ours, labels)
    if found is None:
        return None
    guesses = ours.argmax(1)
    margin = ours.amax(1) - ours.gather(1, labels[:, None])[:, 0]
    doubtful = margin.argsort(descending=True)[: round(found.share * len(ids))]
    doubtful = doubtful[guesses[doubtful] != labels[doubtful]]
    names = ids[doubtful]
    listed = (
        Evidence("rows whose label is likely wrong", len(names), 0),
        Evidence("the first of them", ", ".join(str(k) for k in sorted(names.tolist())[:5])),
    )
    return Suspicion(
        "label_noise",
        min(0.8, 0.5 + found.share),
        (*found.evidence, *listed),
        found.explanation,
        tuple(_mended(exam, names)),
        proof=found.proof,
        advice="Look at the rows listed by eye before anything is dropped.",
    )


@dataclass(frozen=True)
class _Wrong:
    """What tells that a share of the labels is wrong."""

    share: float
    evidence: tuple[Evidence, ...]
    explanation: str
    proof: bool


def _worse_than_held_out(exam: Examination, ours: Tensor, theirs: Tensor | None, labels: Tensor) -> _Wrong | None:
    """Whether training labels are contradicted more often than held-out ones."""
    seen, held = exam.reference, exam.case.valid
    others = None if held is None else exam.case.yardstick.labels(held.targets)
    if others is None or theirs is None or seen.score is None or seen.valid_score is None:
        return None
    if seen.valid_score - seen.score < _WORSE:
        return None
    others = others[: len(theirs)]
    common = [k for k in torch.unique(labels).tolist() if min(int((part == k).sum()) for part in (labels, others)) >= 3]
    inside, error = _contradicted(ours.argmax(1), labels, common)
    outside, other_error = _contradicted(theirs.argmax(1), others, common)
    share, error = inside - outside, math.hypot(error, other_error)
    if share < max(0.05, 3 * error):
        return None
    expected = f"{outside:.2g}, as held out"
    return _Wrong(
        share,
        (Evidence(f"share of training labels that {seen.learner} contradicts", inside, expected),),
        f"What {seen.learner} learns from the other training rows contradicts {inside:.0%} of the training labels, and "
        f"only {outside:.0%} of the held-out ones: about {share:.0%} of the training labels are wrong.",
        proof=share > max(0.1, 4 * error),
    )


def _wherever_rows_lie(exam: Examination, said: Tensor, labels: Tensor) -> _Wrong | None:
    """Whether labels are contradicted alike wherever their rows lie, as classes that overlap are not.

    Two things tell. The surer the learner is the less it is contradicted by classes that overlap; labels that went
    wrong contradict its surest answers as often. And of rows that it takes for the same class, those with another
    label are, where classes overlap, the ones that it gives most to that label.
    """
    seen = exam.reference
    best = said.topk(2, dim=1).values
    sure = (best[:, 0] - best[:, 1]).argsort(descending=True)[: len(said) // 2]
    outputs, labels, guesses = said[sure], labels[sure], said.argmax(1)[sure]
    wrong = (guesses != labels).double()
    known = _KNOWN[0] if exam.case.yardstick.classes == 2 else _KNOWN[1]
    if seen.score is None or seen.score < known or len(sure) < 4 * _FEWEST or len(torch.unique(guesses)) < 2:
        return None
    share = float(wrong.mean())
    error = math.sqrt(max(share * (1 - share), 1e-9) / len(sure))
    # A straight line through what is contradicted, from the surest row on: its beginning, and the error of that.
    place = torch.linspace(-0.5, 0.5, len(sure), dtype=torch.float64)
    surest = share - 0.5 * float(place @ wrong / place.square().sum())
    if share - 2 * error < _MANY or surest - 2 * 2 * error < max(0.5 * share, 0.75 * _MANY):
        return None
    ranks = torch.cat([_ranks_among(outputs[guesses == k], labels[guesses == k], k) for k in torch.unique(guesses)])
    rank, uncertain = float(ranks.mean()), math.sqrt(1 / 12 / len(ranks))
    if rank > 0.5 + 2 * uncertain or rank + 2 * uncertain > _OVERLAP:
        return None
    return _Wrong(
        share,
        (
            Evidence(f"share of labels that {seen.learner} contradicts where it is sure", share, 0.0),
            Evidence("the same where it is surest", surest, 0.0),
            Evidence(
                "rank of such rows among all taken for the same class, by what it gives to their label", rank, 1.0
            ),
        ),
        f"Where {seen.learner} is sure, it contradicts {share:.0%} of the labels, and no fewer where it is surest. "
        "Classes that overlap do not look like that: labels went wrong whatever their rows are, held-out ones as well.",
        proof=True,
    )


def _ranks_among(outputs: Tensor, labels: Tensor, guess: Tensor) -> Tensor:
    """For each row with another label than ``guess``: the share of all rows that this label gets less of, (w,)."""
    wrong = (labels != guess).nonzero().flatten()
    columns = outputs[:, labels[wrong]]
    own = outputs[wrong, labels[wrong]]
    return ((columns < own).double() + 0.5 * (columns == own).double()).mean(0)


def _by_class(outputs: Tensor, exam: Examination) -> Tensor:
    """One column a class."""
    if outputs.shape[1] > 1:
        return outputs
    low, high = exam.case.yardstick.values
    share = (outputs - low) / (high - low)
    return torch.cat([1 - share, share], 1)


def _contradicted(guesses: Tensor, labels: Tensor, classes: list[int]) -> tuple[float, float]:
    """Share of labels that are not what was guessed, averaged over these classes; and its error."""
    wrong = (guesses != labels).double()
    shares = [wrong[labels == k] for k in classes]
    if not shares:
        return 0.0, math.inf
    variance = sum(max(float(s.mean() * (1 - s.mean())), 1 / len(s)) / len(s) for s in shares)
    return sum(float(s.mean()) for s in shares) / len(shares), math.sqrt(variance) / len(shares)


def _mended(exam: Examination, names: Tensor) -> Iterator[Remedy]:
    """Rows and loss at once first: the learner does not find every wrong label, nor is each that it finds wrong."""
    without, bounded = _unlabelled(names), robust(exam.program.loss)
    if bounded is not None:
        yield replace(
            without, title=f"{without.title}, and {bounded.title}", patch=f"{without.patch}\n{bounded.patch}",
            on_loss=bounded.on_loss,
            costs=False,  # where no more is contradicted than is wrong, what is lost is little
        )  # fmt: skip
        yield bounded
        if (smoothed := smoothed_labels(exam)) is not None:  # learns faster, where steps are few
            yield smoothed
    else:
        yield without


def _unlabelled(names: Tensor) -> Remedy:
    """Others are taken twice in their place, so that an epoch has as many steps as before."""

    def edit(rows: Rows) -> Rows:
        if rows.ids is None:
            return rows
        fine = (~torch.isin(rows.ids, names)).nonzero().flatten()
        missing = len(rows.ids) - len(fine)
        again = fine[torch.arange(missing) * len(fine) // max(1, missing) % max(1, len(fine))]
        return only(rows, torch.cat([fine, again]))

    return Remedy(
        "take other rows twice in the place of those whose label is likely wrong",
        "fine = (~doubtful).nonzero().flatten()\nagain = fine[torch.randint(len(fine), (int(doubtful.sum()),))]\n"
        "rows = torch.cat([fine, again])\nX, y = X[rows], y[rows]",
        on_rows=edit,
        costs=True,
        place="labels",
        order=ROWS,
    )
