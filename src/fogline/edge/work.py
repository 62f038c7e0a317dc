"""An export on its way: rounded, fine-tuned, written, and looked at in its runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fogline.edge.capture import Captured, Graph
from fogline.edge.compare import difference, outputs_of
from fogline.edge.latency import Latency, compare
from fogline.edge.noise import LayerNoise, noise_of
from fogline.edge.onnx_file import InRuntime
from fogline.edge.predicting import write_predict
from fogline.edge.quantize import Grid, Quantized, calibrate, convert, quantized
from fogline.edge.report import STAGES, Difference, ExportReport
from fogline.edge.subject import Subject, losses_of
from fogline.edge.targets import Call, Target
from fogline.recipe import Recipe
from fogline.run import Run

_COMPARED = 512  # examples whose outputs are compared between stages
LOOKED_AT, _FEWEST_LOOKED_AT = 64, 4
"""Examples that a graph is recorded with, and at least so many that the noise of layers is taken of."""
_PASSES = 1024  # of one example, each through the whole net, that the noise of layers may cost
_WORTH_SKIPPING = 3.0  # decibels: half of the noise

Tuning = Literal["auto"] | Recipe | None


@dataclass
class Work:
    """An export on its way: what has been made of the model so far."""

    subject: Subject
    target: Target
    bits: int
    captured: Captured
    metadata: Mapping[str, Any]
    threads: int
    model: Quantized | None = None
    tuned: Run | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.notes += self.subject.notes
        if self.captured.most is not None:
            rows = "one row" if self.captured.most == 1 else f"{self.captured.most} rows"
            self.notes.append(f"the graph takes at most {rows} at once: PyTorch found no way to leave the batch open")
        self.scores["float"] = self.subject.score(self.subject.model)

    def round(self, grid: Grid, skip: Sequence[str], examples: int) -> None:
        """Quantize after training."""
        self.model = quantized(self.captured, grid, skip)
        calibrate(self.model, self.subject.calibration(examples))
        self.scores["fake"] = self.subject.score(self.model)
        self.chance = self.subject.chance()

    def lost(self, rounded: Mapping[str, float] | None = None) -> tuple[str, float]:
        """The metric that is judged, and how much of it these scores lose; those of the model as it is if not given."""
        return losses_of(self.scores["float"], rounded or self.scores["fake"], self.chance)

    def tune(self, qat: Tuning) -> None:
        """Fine-tune; keep what came of it if it is better."""
        from fogline.edge.training import fine_tuning, trained

        assert self.model is not None
        recipe = qat if isinstance(qat, Recipe) else fine_tuning(self.subject)
        self.tuned, models = trained(self.subject, self.model, recipe)
        name, before = self.lost()
        for model in models:
            scores = self.subject.score(model)
            if self.lost(scores)[1] < self.lost()[1]:
                self.scores["fake"], self.model = scores, model
        after = self.lost()[1]
        gained = f"fine-tuned {max(0.0, after):.2%}" if after < before else "fine-tuning no less: its weights were kept"
        self.notes.append(f"post-training quantization lost {max(0.0, before):.2%} of the {name}, {gained}")

    def float_report(self, path: Path) -> ExportReport:
        """The file of the model in floats."""
        graph = Graph(self.captured.graph, self.captured.most).eval()
        call = self._written(graph, path)
        kernels, _ = self.target.looked(path)
        stages = {"float": self.subject.model}
        return self._reported(path, "float", stages, graph, call, kernels=kernels, float_bytes=size_of(path))

    def report(self, path: Path, margin: float, qat: Tuning) -> ExportReport:
        """The file of the model in integers."""
        assert self.model is not None
        converted = convert(self.model).eval()
        stages: dict[str, nn.Module] = {"float": self.subject.model, "fake": self.model, "converted": converted}
        lost = self.lost()
        if lost[1] > margin:
            remedy = "'auto'" if self.subject.run is not None else "Recipe(...)"
            tried = self.tuned is not None or (qat is not None and self.subject.run is not None)
            advice = "" if tried else f"; qat={remedy} would fine-tune it"
            self.notes.append(f"more than the margin of {margin:.2%} is lost{advice}")
        examples = max(_FEWEST_LOOKED_AT, min(LOOKED_AT, _PASSES // len(self.model.layers)))
        layers = noise_of(self.model, self.subject.sample(examples), self.subject.compared(self.model))
        method = "quantization-aware" if self.model.seen else "post-training"
        return self._rounded(path, method, stages, converted, lost=lost, layers=tuple(layers), skip=_to_skip(layers))

    def low_bit_report(self, path: Path) -> ExportReport:
        """The file with 4-bit weights of linear layers and 8-bit activations whose ranges are found at run time."""
        from fogline.edge.executorch_file import four_bits

        captured = four_bits(self.subject.model, self.captured)
        graph = Graph(captured.graph, captured.most).eval()
        self.scores["converted"] = self.subject.score(graph)
        lost = losses_of(self.scores["float"], self.scores["converted"], self.subject.chance())
        stages: dict[str, nn.Module] = {"float": self.subject.model, "converted": graph}
        return self._rounded(path, "post-training", stages, graph, lost=lost)

    def _rounded(
        self, path: Path, method: str, stages: dict[str, nn.Module], graph: Graph, **found: Any
    ) -> ExportReport:
        """Write a file, and look at it beside float."""
        call = self._written(graph, path)
        kernels, weights = self.target.looked(path)
        latency, float_bytes = self._against_float(path, call)
        found |= {"kernels": kernels, "float_weights": tuple(weights), "latency": latency, "float_bytes": float_bytes}
        return self._reported(path, method, stages, graph, call, **found)

    def _written(self, graph: Graph, path: Path) -> Call:
        """Write the file, and open it."""
        self.target.write(self._file(self.subject.shipped(graph.graph)), self.captured, path, self.metadata)
        if self.target.name == "onnx":
            write_predict(path)
        return self.target.opened(path, self.threads)

    def _file(self, graph: nn.Module) -> Graph:
        return Graph(graph, self.captured.most).eval()

    def _module(self, call: Call, like: nn.Module) -> InRuntime:
        with torch.no_grad():
            return InRuntime(call, like(self.captured.example), self.captured.most)

    def _compared(self, graph: Graph, call: Call) -> nn.Module:
        """The file in its runtime, as far as what is compared; without its ending, where it has one."""
        like = self.subject.compared(self.subject.model)
        if self.subject.ending is None:
            return self._module(call, like)
        with tempfile.TemporaryDirectory() as folder:
            beside = Path(folder) / f"compared{self.target.suffix}"
            self.target.write(self._file(self.subject.compared(graph.graph)), self.captured, beside, {})
            return self._module(self.target.opened(beside, self.threads), like)

    def _against_float(self, path: Path, call: Call) -> tuple[Latency, int]:
        """Latency of one row against the same network in floats, and the size of its file."""
        row = self.captured.example[:1].numpy()
        what = "int8" if self.bits == 8 else f"the {self.bits}-bit file"
        with tempfile.TemporaryDirectory() as folder:
            found = self.target.twin(path, self.threads)
            if found is None:
                beside = Path(folder) / f"float{self.target.suffix}"
                self.target.write(self._file(self.subject.shipped(self.captured.graph)), self.captured, beside, {})
                found = self.target.opened(beside, self.threads), size_of(beside)
            twin, size = found
            latency = compare(lambda: twin(row), lambda: call(row), batch=1, threads=self.threads, what=what)
        return latency, size

    def _reported(
        self, path: Path, method: str, stages: dict[str, nn.Module], graph: Graph, call: Call, **found: Any
    ) -> ExportReport:
        for name, stage in stages.items():
            if name not in self.scores:
                self.scores[name] = self.subject.score(stage)
        file = self._module(call, self.subject.shipped(self.subject.model))
        self.scores["runtime"] = self.subject.scored(file)
        compared = {name: self.subject.compared(stage) for name, stage in stages.items()}
        compared["runtime"] = self._compared(graph, call)
        return ExportReport(
            path=path,
            target=self.target.name,
            bits=self.bits,
            method=method,
            scores={name: self.scores[name] for name in STAGES if name in compared},
            differences=self._differences(compared, self.subject.sample(_COMPARED)),
            bytes=size_of(path),
            tuned=self.tuned,
            notes=tuple(self.notes),
            metadata=dict(self.metadata),
            **found,
        )

    def _differences(self, stages: Mapping[str, nn.Module], sample: Tensor) -> dict[str, Difference]:
        facts, deployment = self.subject.opened.facts, self.subject.deployment
        threshold = facts.threshold if facts.kind == "classification" else None
        threshold = threshold if deployment is None else deployment.threshold
        outputs = {name: outputs_of(stage.eval(), sample) for name, stage in stages.items()}
        names = list(stages)
        return {
            f"{first} - {second}": difference(
                outputs[first],
                outputs[second],
                outputs["float"],
                threshold,
                multilabel=self.subject.multilabel,
                places=deployment is not None,
            )
            for first, second in pairwise(names)
        }


def size_of(path: Path) -> int:
    """Bytes of a file, with the weights beside it where the format keeps them apart."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if path.suffix == ".xml" and beside.exists() else 0)


def _to_skip(layers: Sequence[LayerNoise]) -> str | None:
    tried = [item for item in layers if item.gain is not None]
    best = max(tried, key=lambda item: item.gain or 0.0, default=None)
    return best.name if best is not None and (best.gain or 0.0) >= _WORTH_SKIPPING else None
