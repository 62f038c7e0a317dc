"""What the edits are worth: the same recipe with them and without, from the same seeds, scored on held-out data."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from fogline._examples.edits import Edits
from fogline.errors import misfit
from fogline.record.store import read_info, write_json
from fogline.words import number

if TYPE_CHECKING:
    from fogline.recipe import Recipe
    from fogline.run import Run
    from fogline.task import Task

FILE = "retrained.json"
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
"""Student's t at 0.975 by degrees of freedom from 1; beyond, 2.13 and less: the last one is taken, a little wide."""
_BETTER_BELOW = ("loss", "mean_absolute_error", "mae", "mse", "rmse", "error", "perplexity")
_BETTER_ABOVE = ("accuracy", "r2", "f1", "auc", "auroc", "precision", "recall", "iou", "dice")


@dataclass(frozen=True)
class Difference:
    """What a held-out score became with the edits.

    Attributes:
        metric: its name.
        without, with_edits: scores by seed, in the order of the seeds.
        mean: of the differences, with less without.
        interval: the 95 % interval of the mean over seeds (Student's t); infinite for a single seed.
    """

    metric: str
    without: tuple[float, ...]
    with_edits: tuple[float, ...]
    mean: float
    interval: tuple[float, float]

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval[0] > 0 or self.interval[1] < 0

    @property
    def better(self) -> bool | None:
        """Whether the edits help; None where no difference is shown, or which way is better is not known."""
        up = _direction(self.metric)
        return None if up is None or not self.shown else (self.interval[0] > 0) == up

    def __str__(self) -> str:
        before, after = number(fmean(self.without)), number(fmean(self.with_edits))
        change = f"held-out {self.metric} {before} without the edits, {after} with them"
        if len(self.without) < 2:
            return f"{change}; one seed says nothing of the noise"
        unknown = "different" if self.shown else "no difference shown"
        words = {True: "better", False: "worse", None: unknown}[self.better]
        low, high = (f"{end:+.4f}" for end in self.interval)
        return f"{change}: {words}, {self.mean:+.4f} (95 % interval {low} to {high}, {len(self.without)} seeds)"


@dataclass(frozen=True)
class Retrained:
    """The result of :func:`retrain`.

    Attributes:
        differences: a :class:`Difference` for each held-out metric; the one to look at comes first.
        seeds: of first weights and data order, the same with and without.
        edits: how many examples were relabelled, left out, kept.
        stamp: of the last edit, in seconds since 1970: a later edit is not in this result.
        recipe: with every value resolved, but for the seed.
    """

    differences: tuple[Difference, ...]
    seeds: tuple[int, ...]
    edits: dict[str, int]
    stamp: float
    recipe: dict[str, Any]

    @property
    def difference(self) -> Difference:
        """Of the first metric."""
        return self.differences[0]

    def __str__(self) -> str:
        counts = self.edits
        head = f"{counts['relabel']} relabelled, {counts['drop']} left out"
        return "\n".join([head, *map(str, self.differences)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        for each in values["differences"]:
            each["interval"] = [end if math.isfinite(end) else None for end in each["interval"]]
        return values | {"words": str(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def retrain(
    run: Run,
    task: Task | None = None,
    recipe: Recipe | None = None,
    seeds: int | Sequence[int] = 3,
    *,
    say: Callable[[str], None] = lambda words: None,
) -> Retrained:
    """Train with the edits and without them, from the same seeds, and compare the held-out scores.

    Both are trained in turn, twice as many runs as seeds, in a temporary folder; the run itself is left as it is. The
    result is kept in its folder as ``examples/retrained.json``. The held-out data is not edited, so its own wrong
    labels count against both alike.

    Args:
        run: whose edits they are.
        task: by default the one of the run.
        recipe: by default that of the run with its resolved values, so that nothing is measured again.
        seeds: how many, counted from 0, or which.
        say: is told after each training.

    Raises:
        ValueError: nothing was edited, no task is at hand, nothing is held out, or the data is not that of the run.
    """
    from fogline._fit import fit
    from fogline.recipe import Recipe

    task = task or run.task
    if task is None:
        raise ValueError("expected the task of the run, received none; pass retrain(task)")
    edits = Edits(run.folder)
    counts = edits.counts()
    if not counts["relabel"] + counts["drop"]:
        raise misfit("examples that were relabelled or dropped", str(edits), "edit some first", "retrain")
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ValueError(f"expected at least one seed, received {seeds!r}")
    from fogline._examples.edited import edited

    info = read_info(run.folder)
    watched = (info.get("source") or {}).get("kind") == "watch"
    if recipe is None and (watched or not info.get("recipe")):
        raise misfit("a recipe, since the loop of this run was its own", "none", "pass retrain(task, recipe)")
    resolved = recipe or Recipe.from_dict(info["recipe"])
    without = edited(task, [], {}, info)
    if without.valid is None:
        raise misfit("held-out data", "none", "give the task valid=, else a difference cannot be seen", "retrain")
    with_edits = edits.applied(task)
    scores: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory(prefix="fogline-") as folder:
        for seed in chosen:
            for name, variant in (("without", without), ("with", with_edits)):
                again = resolved.replace(seed=seed, examples=False)
                trained = fit(variant, again, runs=folder, name=f"{name}-{seed}", progress=False)
                scores[name].append(trained.final_scores())
                say(f"seed {seed} {name} the edits: {_plain_scores(scores[name][-1])}")
    stamp = float(edits.table["seconds"].max())
    kept = {name: value for name, value in resolved.to_dict().items() if name != "seed"}
    found = Retrained(_differences(scores["without"], scores["with"]), chosen, counts, stamp, kept)
    place = run.folder / "examples"
    place.mkdir(exist_ok=True)
    write_json(place / FILE, found.to_dict())
    return found


def read_retrained(folder: Path) -> dict[str, Any] | None:
    """What :func:`retrain` kept in a run folder; None where there is nothing readable."""
    path = folder / "examples" / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def compare(metric: str, without: Sequence[float], with_edits: Sequence[float]) -> Difference:
    """The mean paired difference of scores with its 95 % interval.

    >>> found = compare("accuracy", [0.80, 0.82, 0.84], [0.83, 0.84, 0.87])
    >>> found.better, [round(end, 4) for end in found.interval]
    (True, [0.0123, 0.041])
    """
    differences = [after - before for before, after in zip(without, with_edits, strict=True)]
    mean, count = fmean(differences), len(differences)
    if count < 2 or not all(map(math.isfinite, differences)):
        return Difference(metric, tuple(without), tuple(with_edits), mean, (-math.inf, math.inf))
    half = _STUDENT[min(count - 2, len(_STUDENT) - 1)] * stdev(differences) / math.sqrt(count)
    return Difference(metric, tuple(without), tuple(with_edits), mean, (mean - half, mean + half))


def _differences(without: list[dict[str, float]], with_edits: list[dict[str, float]]) -> tuple[Difference, ...]:
    """Of every metric; the loss last where there is another."""
    names = [name for name in without[0] if name != "step"]
    names.sort(key=lambda name: name == "loss")
    return tuple(compare(name, [each[name] for each in without], [each[name] for each in with_edits]) for name in names)


def _direction(metric: str) -> bool | None:
    """Whether more is better; None where that is not known."""
    name = metric.lower()
    if name in _BETTER_ABOVE or name.endswith(("accuracy", "_f1", "_auc")):
        return True
    return False if name in _BETTER_BELOW or name.endswith(("loss", "error")) else None


def _plain_scores(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in scores.items() if name != "step")
