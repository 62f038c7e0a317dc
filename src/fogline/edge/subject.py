"""What is exported: the weights a run kept, its data as it trained on it, and how it is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.data.intake import Opened
from fogline.data.source import Batch, map_tree
from fogline.descent.batches import rows_of
from fogline.descent.checkpoint import kept_weights, load_model_tensors
from fogline.descent.objective import Objective
from fogline.descent.prepare import begin
from fogline.descent.randomness import private_randomness
from fogline.descent.scoring import Scorer
from fogline.edge.capture import first_input, joined
from fogline.edge.deployment import Deployment, Part
from fogline.errors import misfit
from fogline.recipe import Recipe
from fogline.run import Run
from fogline.task import OnBatch, Task

_ROWS, _FEWER_ROWS = 128, 16  # of a batch that is scored or calibrated on; the fewer where a detector sees it
_MOST_VALUES = 2**26  # of inputs that are held at once
_MOST_COMPARED = 2048
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """A trained model with the data it is judged on.

    Attributes:
        run: left as it is; None of a task whose model was trained elsewhere.
        folder: of the run, or where one would be.
        task: with model, loss and metrics filled in.
        recipe: resolved.
        model: what is captured: a copy with the kept weights, or the network in it, float32 on the CPU, in evaluation.
        ending: what comes after it in the file; None where its outputs are those of the file.
        opened: the data, float32.
        notes: for the report.
    """

    run: Run | None
    folder: Path
    task: Task
    recipe: Recipe
    model: nn.Module
    ending: nn.Module | None
    opened: Opened
    notes: tuple[str, ...]

    @classmethod
    def of(cls, source: Any, task: Task | None = None) -> Subject:
        """Read a run from its folder: its weights, and its data by its task; or take a task with its model as it is.

        Raises:
            TypeError: neither a run nor a task.
            ValueError: the task is not known, or the weights are not finite.
            FileNotFoundError: no checkpoint verifies.
        """
        if isinstance(source, Task):
            return cls._begun(None, Path("runs") / (source.name or "model"), source, Recipe(device="cpu"), None, [])
        if not isinstance(source, Run):
            remedy = "open the folder: fogline.Run.open(folder, task=task)"
            raise misfit("a run or a task", repr(source), remedy, "export", TypeError)
        task = source.task or task
        if task is None:
            raise ValueError(
                "expected a run with its task, received one that was only opened; "
                "give it as fogline.export(run, path, task=task)"
            )
        info = source.info
        if "recipe" not in info:
            raise ValueError(f"expected a run of fogline.fit, received {source.folder}, which holds no recipe")
        notes = []
        if info.get("verdict") is None or info["verdict"]["name"] == "INTERRUPTED":
            notes.append("the run is not finished: the best weights so far were taken")
        recipe = Recipe.from_dict({**info["recipe"], "device": "cpu"})
        return cls._begun(source, source.folder, task, recipe, kept_weights(source.folder), notes)

    @classmethod
    def _begun(
        cls,
        run: Run | None,
        folder: Path,
        task: Task,
        recipe: Recipe,
        weights: dict[str, Tensor] | None,
        notes: list[str],
    ) -> Subject:
        deployment = deployment_of(task)
        task = task if deployment is None else replace(task, train=deployment.train())
        with private_randomness(_CPU):
            start = begin(task, recipe, None if weights is None else recipe.to_dict())
        model = start.objective.model
        if weights is not None:
            load_model_tensors(model, weights)
        wrong = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
        if wrong:
            raise ValueError(f"expected finite weights, received NaN or infinite ones in {wrong[0]!r}; train it again")
        if any(value.dtype == torch.float64 for value in model.parameters()):
            notes.append("the weights were rounded from float64 to float32")
        opened = start.opened
        valid = None if opened.valid is None else opened.valid.astype(torch.float32)
        if valid is None:
            notes.append("there is no held-out data: scores are those of training data")
        opened = replace(opened, train=opened.train.astype(torch.float32), valid=valid)
        model = model.float().eval()
        found = cls(run, folder, start.task, recipe, model, None, opened, tuple(notes))
        if deployment is None:
            return found
        ending = deployment.ending(model, found.sample(1))
        return replace(found, model=deployment.network(model).eval(), ending=ending.eval())

    @property
    def deployment(self) -> Deployment | None:
        return deployment_of(self.task)

    def compared(self, network: nn.Module) -> nn.Module:
        """Of a network that stands for the model, the outputs that are compared."""
        return network if self.deployment is None else Part(network, self.deployment.outputs)

    def shipped(self, network: nn.Module) -> nn.Module:
        """A network that stands for the model with what follows it in the file."""
        return network if self.deployment is None else Part(network, self.deployment.outputs, self.ending)

    @property
    def multilabel(self) -> bool:
        """Whether each of several outputs says yes or no for itself."""
        return self.opened.facts.outputs > 1 and losses.family(self.task.loss) == "binary"

    @property
    def scorer(self) -> Scorer:
        """Of the held-out data; of the training data where there is none."""
        return Scorer(self.opened.valid or self.opened.train, self.task.metrics, self.rows, _CPU)

    @property
    def rows(self) -> int:
        """Examples at a time."""
        return _ROWS if self.deployment is None else _FEWER_ROWS

    def objective(self, model: nn.Module) -> Objective:
        """The loss of the task with this module in the place of the model."""
        assert self.task.loss is not None
        return Objective(model, self.task.loss)

    def score(self, model: nn.Module) -> dict[str, float]:
        """Loss and metrics of a module that stands for the model; where there is a deployment, those that it names."""
        return self.scored(self.shipped(model))

    def scored(self, whole: nn.Module) -> dict[str, float]:
        """The same of a module that gives what the file gives."""
        with private_randomness(_CPU):
            if self.deployment is not None:
                return self.deployment.scores(whole)
            return self.scorer(self.objective(whole))

    def inputs(self, batch: Batch) -> Tensor:
        """What the model is given of a batch."""
        return first_input(self.objective(self.model), batch)

    def calibration(self, examples: int) -> Iterator[Tensor]:
        """Inputs of training examples, in batches, evenly spread over data that is in memory or indexed."""
        train = self.opened.train
        if train.size is None or not hasattr(train, "take"):
            batches = train.batches(self.rows)
            yield from (self.inputs(batch) for batch in islice(batches, -(-examples // self.rows)))
            return
        count = min(examples, train.size)
        spread = torch.linspace(0, train.size - 1, count, dtype=torch.float64).round().long()
        # Data in the order of its classes: each batch should see all of it.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        for rows in torch.split(spread[order], self.rows):
            yield self.inputs(train.take(rows))

    def sample(self, examples: int) -> Tensor:
        """Inputs of the first examples that are scored, (n, ...); fewer of them where one is large."""
        found, rows = [], 0
        for batch in self.scorer._batches():
            found.append(self.inputs(batch))
            rows += len(found[-1])
            if rows >= examples or rows * found[0][0].numel() > _MOST_VALUES:
                break
        return torch.cat(found)[:examples]

    def chance(self) -> dict[str, float]:
        """Loss and metrics of the model's outputs against shuffled targets: what they are worth if nothing is learned.

        Empty where the loss sees the model, and nothing where a deployment scores.
        """
        if self.deployment is not None:
            return dict.fromkeys(self.deployment.metrics, 0.0)
        objective = self.objective(self.model)
        if not objective.supervised:
            return {}
        pairs: list[tuple[Any, Any]] = []
        rows = 0
        for batch in self.scorer._batches():
            with objective.without_learning():
                pairs.append((objective.with_outputs(batch)[0], batch[1]))
            rows += rows_of(batch)
            if rows >= _MOST_COMPARED:
                break
        outputs, targets = (joined(items) for items in zip(*pairs, strict=True))
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
        shuffled = map_tree(lambda leaf: leaf[order], targets)
        found = {name: float(metric(outputs, shuffled)) for name, metric in self.task.metrics.items()}
        return {"loss": float(losses.evaluated(self.task.loss, outputs, shuffled)), **found}

    def metadata(self) -> dict[str, Any]:
        """What a caller of the file must know: how inputs are made, and what outputs mean."""
        facts, encoder = self.opened.facts, self.opened.encoder
        found: dict[str, Any] = {
            "format": 1,
            "run": self.folder.name,
            "kind": facts.kind,
            "classes": None if facts.classes is None else list(facts.classes),
            "columns": None if facts.columns is None else list(facts.columns),
            "threshold": facts.threshold,
            "multilabel": self.multilabel,
            "encoder": None if encoder is None else encoder.to_dict(),
            "target": getattr(encoder, "target", None) or self.task.target,
        }
        return found if self.deployment is None else found | dict(self.deployment.metadata)


def deployment_of(task: Task) -> Deployment | None:
    """How a task says that its model goes to a device, where it says so."""
    found = task.loss.deployment if isinstance(task.loss, OnBatch) else None
    assert found is None or isinstance(found, Deployment)
    return found


def losses_of(
    floating: Mapping[str, float], rounded: Mapping[str, float], chance: Mapping[str, float]
) -> tuple[str, float]:
    """How much of what was learned is lost: the first metric (else the loss) and the share of its gap to chance.

    With ``f`` the score of float, ``q`` that of integers and ``c`` that of shuffled targets it is
    ``(f - q) / (f - c)``, whichever direction is the better one. Where chance is not known it is the relative rise of
    the loss.

    >>> losses_of({"loss": 0.1, "accuracy": 0.9}, {"loss": 0.2, "accuracy": 0.88}, {"loss": 4.0, "accuracy": 0.1})
    ('accuracy', 0.025)
    >>> losses_of({"loss": 0.5}, {"loss": 0.6}, {})
    ('loss', 0.2)
    """
    name = next((item for item in floating if item != "loss"), "loss")
    if name not in chance:
        base = abs(floating["loss"]) or 1.0
        return "loss", round((rounded["loss"] - floating["loss"]) / base, 6)
    gap = floating[name] - chance[name]
    return name, round((floating[name] - rounded[name]) / gap, 6) if gap else 0.0
