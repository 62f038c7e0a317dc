"""Diagnosis of breast cancer from measurements of cell nuclei: probabilities that mean what they say.

    python examples/healthcare.py [--splits 10] [--pictures FOLDER]

The set comes with scikit-learn (Wolberg, Street and Mangasarian, 1993): 569 fine-needle aspirates, 30 measurements of
the nuclei in an image of each. Nothing is downloaded. This is a program about method and no medical device.

1. A fifth of the rows is put away to judge everything by. On the others five networks are trained, each without a fifth
   of them.
2. The probabilities are calibrated, and the threshold is chosen for recall, on the rows that each network did not see.
3. The labels are checked, and so is the check, by flipping some.
4. The doctor is asked about this program and about one with a common fault.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import BLUE, FAINT, GREEN, ORANGE, Panel, save
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import fogline

Floats = NDArray[np.float64]
TEST, FOLDS = 0.2, 5
RECALL = 0.97
"""The share of malignant tumours that shall not be missed."""
BINS, FEW = 10, 85
FLIPPED = 0.05
RECIPE = fogline.Recipe(optimizer="adamw", batch_size=32, duration="40ep", schedule="linear", precision="float32")
DECAYED = RECIPE.replace(weight_decay=1.0)
"""What the verdict of the first run advises."""


def measurements() -> tuple[Tensor, Tensor]:
    """(569, 30) measurements in their own units and (569, 1) labels, 1 for malignant."""
    data = load_breast_cancer()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target == 0).float()[:, None]


def split(y: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Rows to judge by, and the folds of the others; as many malignant ones in each as in all."""
    draws = torch.Generator().manual_seed(seed)
    test, folds = [], [[] for _ in range(FOLDS)]  # type: ignore[var-annotated]
    for label in (0, 1):
        rows = (y[:, 0] == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=draws)]
        away = round(TEST * len(rows))
        test.append(rows[:away])
        for fold, part in zip(folds, rows[away:].chunk(FOLDS), strict=True):
            fold.append(part)
    return torch.cat(test), [torch.cat(fold) for fold in folds]


class Network(nn.Module):
    """Measurements in their own units to the log-odds of malignant: the scaling is part of the model."""

    def __init__(self, rows: Tensor, *, scales: bool = True) -> None:
        super().__init__()
        columns = rows.shape[1]
        mean, std = (rows.mean(0), rows.std(0)) if scales else (torch.zeros(columns), torch.ones(columns))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.layers = nn.Sequential(nn.Linear(columns, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers((x - self.mean) / self.std)
        return outputs


def task_of(X: Tensor, y: Tensor, train: Tensor, valid: Tensor | None = None, *, scales: bool = True) -> fogline.Task:
    """What is to be learned from these rows; with others to score it on, the weights of the best score are kept."""
    return fogline.Task(
        model=lambda: Network(X[train], scales=scales),
        loss=nn.BCEWithLogitsLoss(),
        train=(X[train], y[train]),
        valid=None if valid is None else (X[valid], y[valid]),
        metrics={} if valid is None else {"accuracy": accuracy},
        name="healthcare",
    )


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers."""
    return ((outputs > 0) == (targets > 0.5)).float().mean()


def all_but(folds: Sequence[Tensor], place: int) -> Tensor:
    """The rows of the other folds."""
    return torch.cat([fold for k, fold in enumerate(folds) if k != place])


# -- calibration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Log-odds become ``slope * log_odds + offset``; two numbers, so that few rows are enough (Platt, 1999)."""

    slope: float
    offset: float

    @classmethod
    def fitted(cls, log_odds: Tensor, y: Tensor) -> Calibration:
        """The two numbers with the least cross-entropy on rows that the network never saw.

        Targets are drawn a little towards the middle, as Platt does: where a few rows are told apart without an error
        the likelihood alone would make every answer certain.
        """
        malignant, benign = y.sum(), (1 - y).sum()
        targets = torch.where(y > 0.5, (malignant + 1) / (malignant + 2), 1 / (benign + 2)).double()
        z = log_odds.double()

        def cross_entropy(w: Tensor) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(w[0] * z + w[1], targets)

        found = fogline.minimize(cross_entropy, torch.tensor([1.0, 0.0], dtype=torch.float64), method="bfgs")
        return cls(*found.x.tolist())

    def __call__(self, log_odds: Tensor) -> Floats:
        """Probabilities, (rows,)."""
        probabilities: Floats = torch.sigmoid(self.slope * log_odds.double() + self.offset).numpy()[:, 0]
        return probabilities


def reliability(probability: Floats, y: Floats) -> list[tuple[float, float, int]]:
    """Of bins with equally many rows: mean probability, share of malignant, rows."""
    order = np.argsort(probability, kind="stable")
    return [(probability[r].mean(), y[r].mean(), len(r)) for r in np.array_split(order, BINS) if len(r)]


def calibration_error(probability: Floats, y: Floats) -> float:
    """How far stated and observed are apart, averaged over the rows."""
    return float(sum(abs(stated - seen) * rows for stated, seen, rows in reliability(probability, y)) / len(y))


def log_loss(probability: Floats, y: Floats) -> float:
    """Mean cross-entropy of probabilities."""
    kept = np.clip(np.where(y > 0.5, probability, 1 - probability), 1e-12, 1)
    return float(-np.log(kept).mean())


# -- the threshold -------------------------------------------------------------------------------------------------


def threshold_for(recall: float, probability: Floats, y: Floats) -> float:
    """The highest threshold at which this share of the malignant rows is found."""
    found = np.sort(probability[y > 0.5])
    wanted = int(np.ceil(recall * len(found) - 1e-9))
    return float(found[len(found) - wanted])


def sure_of(hits: int, rows: int, doubt: float = 0.05) -> float:
    """The lowest recall at which so many hits are still not unlikely (Clopper and Pearson, one-sided)."""
    if hits == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        k = np.arange(hits, rows + 1)
        logs = np.array([_log_choose(rows, int(i)) for i in k]) + k * np.log(middle) + (rows - k) * np.log1p(-middle)
        low, high = (middle, high) if np.exp(logs).sum() < doubt else (low, middle)
    return low


def _log_choose(n: int, k: int) -> float:
    return float(
        torch.lgamma(torch.tensor([n + 1.0, k + 1.0, n - k + 1.0]).double()).mul(torch.tensor([1, -1, -1])).sum()
    )


# -- one split, and many -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What the rows that were put away say.

    Attributes:
        single, calibrated: probabilities of one network, as it says and calibrated.
        by_few: calibrated on as many rows as one part of a simple split would have.
        averaged: of all five, calibrated.
        y: 1 for malignant.
        threshold: that was chosen on the other rows.
        hits, rows: malignant ones found and all of them, on the rows that the threshold was chosen on.
    """

    single: Floats
    calibrated: Floats
    by_few: Floats
    averaged: Floats
    y: Floats
    calibration: Calibration
    threshold: float
    hits: int
    rows: int

    @property
    def recall(self) -> float:
        """Share of the malignant rows above the threshold."""
        return float((self.averaged[self.y > 0.5] >= self.threshold).mean())

    @property
    def precision(self) -> float:
        """Share of malignant rows among those above the threshold."""
        return float(self.y[self.averaged >= self.threshold].mean())


def one_split(X: Tensor, y: Tensor, seed: int, recipe: fogline.Recipe) -> Judged:
    """Train, calibrate, choose the threshold, and only then look at the rows that were put away."""
    test, folds = split(y, seed)
    unseen, away = [], []
    for place, fold in enumerate(folds):
        run = fogline.fit(task_of(X, y, all_but(folds, place)), recipe.replace(seed=seed), progress=False)
        with torch.no_grad():
            unseen.append(run.model(X[fold]))
            away.append(run.model(X[test]))
    log_odds, labels = torch.cat(unseen), y[torch.cat(folds)]
    calibration = Calibration.fitted(log_odds, labels)
    stated, known = calibration(log_odds), labels[:, 0].double().numpy()
    threshold = threshold_for(RECALL, stated, known)
    single = torch.sigmoid(away[0].double()).numpy()[:, 0]
    averaged = np.mean([calibration(z) for z in away], axis=0)
    hits, rows = int((stated[known > 0.5] >= threshold).sum()), int(known.sum())
    truth = y[test][:, 0].double().numpy()
    few = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:FEW]
    by_few = Calibration.fitted(log_odds[few], labels[few])(away[0])
    return Judged(single, calibration(away[0]), by_few, averaged, truth, calibration, threshold, hits, rows)


def flipped(y: Tensor, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of which a few of these rows are wrong, and the places of those among the rows."""
    draws = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(rows), generator=draws)[: round(FLIPPED * len(rows))]
    labels = y.clone()
    labels[rows[places]] = 1 - labels[rows[places]]
    return labels, places


def label_check(X: Tensor, y: Tensor, seed: int = 0) -> dict[str, Any]:
    """How well planted errors are found, and what the check says of the labels as they are."""
    rows = torch.cat(split(y, seed)[1])
    labels, places = flipped(y, rows, seed)
    planted, original = (task_of(X, given, rows) for given in (labels, y))
    recipe = DECAYED.replace(seed=seed)
    errors = fogline.examples(fogline.fit(planted, recipe, progress=False), planted).label_errors()
    as_it_is = fogline.examples(fogline.fit(original, recipe, progress=False), original).label_errors()
    wrong = np.isin(errors.ids, places.numpy())
    return {
        "planted": len(places),
        "among the first": int(wrong[: len(places)].sum()),
        "hits": wrong.cumsum(),
        "expected": float(errors.probability.sum()),
        "expected as it is": float(as_it_is.probability.sum()),
    }


# -- pictures ------------------------------------------------------------------------------------------------------


def draw_reliability(before: Sequence[Judged], after: Sequence[Judged], folder: Path) -> Path:
    """Stated against observed, before and after."""
    panels = []
    for title, colour, found, name in (
        ("one network, as it says", ORANGE, before, "single"),
        ("five with weight decay, calibrated", GREEN, after, "averaged"),
    ):
        y = np.concatenate([one.y for one in found])
        p = np.concatenate([getattr(one, name) for one in found])
        panel = Panel(title, "stated probability of malignant", (0, 1), (0, 1))
        panel.line([(0, 0), (1, 1)], FAINT, 1, "4 3")
        points = [(stated, seen) for stated, seen, _ in reliability(p, y)]
        panel.line(points, colour)
        panel.dots(points, colour, 3.5)
        panel.words((0.04, 0.9), f"error {calibration_error(p, y):.3f}", colour)
        panels.append(panel)
    return save(panels, folder / "healthcare-reliability.svg", "Observed share of malignant against stated probability")


def draw_threshold(all_of: Sequence[Judged], folder: Path) -> Path:
    """Recall and precision by threshold, all test rows together, and the recall of each split."""
    y, p = np.concatenate([one.y for one in all_of]), np.concatenate([one.averaged for one in all_of])
    curves = Panel("what a threshold costs", "threshold on the calibrated probability", (0, 1), (0.8, 1.005))
    places = np.linspace(0.01, 0.99, 99)
    curves.line([(t, (p[y > 0.5] >= t).mean()) for t in places], BLUE)
    curves.line([(t, y[p >= t].mean()) for t in places], ORANGE)
    curves.words((0.62, 0.9), "recall", BLUE)
    curves.words((0.16, 0.86), "precision", ORANGE)
    each = Panel("recall of every split", "threshold that was chosen", (0, 1), (0.8, 1.005))
    each.line([(0, RECALL), (1, RECALL)], FAINT, 1, "4 3")
    each.dots([(one.threshold, one.recall) for one in all_of], BLUE, 3.5)
    return save([curves, each], folder / "healthcare-threshold.svg", "Recall and precision by threshold")


def draw_labels(found: Mapping[str, Any], folder: Path) -> Path:
    """How many planted errors are among the first that the check names."""
    planted, hits = found["planted"], found["hits"]
    most = 4 * planted
    panel = Panel("planted wrong labels found", "rows looked at, likeliest wrong first", (0, most), (0, planted * 1.1))
    panel.line([(0, 0), (planted, planted), (most, planted)], FAINT, 1, "4 3")
    panel.line([(0, 0), *((k + 1, n) for k, n in enumerate(hits[:most]))], BLUE)
    panel.words((planted * 1.1, planted * 0.5), "as ranked", BLUE)
    return save([panel], folder / "healthcare-labels.svg", "Planted wrong labels found, by rows looked at")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--pictures", type=Path, default=Path("pictures"), metavar="FOLDER")
    given = parser.parse_args()

    X, y = measurements()
    print(f"{len(X)} rows, {X.shape[1]} measurements, {int(y.sum())} malignant")
    _, folds = split(y, 0)
    first = fogline.fit(task_of(X, y, all_but(folds, 0), folds[0]), RECIPE, progress=False)
    print(f"a first run, rate {first.recipe.lr:.3g} measured: {first.verdict}")

    judged = {}
    for name, recipe in (("as it was", RECIPE), ("with weight decay", DECAYED)):
        judged[name] = [one_split(X, y, seed, recipe) for seed in range(given.splits)]
        print(f"{name}, {given.splits} splits, their rows that were put away together:")
        say_calibration(judged[name])
    all_of = judged["with weight decay"]
    say_threshold(all_of)

    found = label_check(X, y)
    print(f"labels: {found['planted']} flipped, {found['among the first']} of them among the first {found['planted']}")
    print(
        f"  wrong ones expected: {found['expected']:.1f}; in the labels as they are: {found['expected as it is']:.1f}"
    )

    for name, scales in (("as it is", True), ("without scaling", False)):
        task = task_of(X, y, all_but(folds, 0), folds[0], scales=scales)
        report = fogline.diagnose(task, DECAYED, budget=3.0)
        causes = ", ".join(finding.cause for finding in report.findings) or "nothing"
        healed = "" if report.healed is None else f"; skill {report.control:.2f} -> {report.healed:.2f} with the remedy"
        print(f"the doctor on the program {name}: {report.verdict}; {causes}{healed}")

    print(draw_reliability(judged["as it was"], all_of, given.pictures))
    print(draw_threshold(all_of, given.pictures))
    print(draw_labels(found, given.pictures))


def say_calibration(all_of: Sequence[Judged]) -> None:
    """How good the probabilities are, each kind over all splits."""
    y = np.concatenate([one.y for one in all_of])
    print(f"  log-odds are calibrated by a factor of {np.mean([one.calibration.slope for one in all_of]):.2f}")
    for name in ("single", "by_few", "calibrated", "averaged"):
        p = np.concatenate([getattr(one, name) for one in all_of])
        right = ((p > 0.5) == (y > 0.5)).mean()
        print(
            f"  {name:<10} calibration error {calibration_error(p, y):.4f}, log loss {log_loss(p, y):.4f}, "
            f"accuracy {right:.4f}"
        )


def say_threshold(all_of: Sequence[Judged]) -> None:
    """What the threshold promises and what it keeps."""
    one = all_of[0]
    print(f"threshold {one.threshold:.3f} finds {one.hits} of the {one.rows} malignant rows it was chosen on")
    print(f"  had it not been chosen on them, that would prove a recall of {sure_of(one.hits, one.rows):.3f}, at 95 %")
    recalls, precisions = [one.recall for one in all_of], [one.precision for one in all_of]
    print(
        f"  asked for {RECALL}: mean recall {np.mean(recalls):.4f}, lowest {min(recalls):.3f}, reached in "
        f"{sum(r >= RECALL for r in recalls)} of {len(recalls)} splits; precision {np.mean(precisions):.4f}"
    )


if __name__ == "__main__":
    main()
