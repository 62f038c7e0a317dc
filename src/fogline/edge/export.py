"""``export``: a run in, a file for a device out, with a report of what it really does there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fogline.descent.randomness import private_randomness
from fogline.edge.capture import Captured, Graph, capture
from fogline.edge.compare import difference, outputs_of
from fogline.edge.latency import Latency, compare
from fogline.edge.noise import LayerNoise, noise_of
from fogline.edge.onnx_file import InRuntime
from fogline.edge.predicting import write_predict
from fogline.edge.quantize import Grid, Quantized, calibrate, convert, quantized
from fogline.edge.report import STAGES, Difference, ExportReport
from fogline.edge.subject import Subject, losses_of
from fogline.edge.targets import Call, Target, target_of
from fogline.errors import misfit
from fogline.recipe import Recipe
from fogline.run import Run
from fogline.task import Task

_COMPARED = 512  # examples whose outputs are compared between stages
_LOOKED_AT, _FEWEST_LOOKED_AT = 64, 4  # examples that the noise of layers is taken of
_PASSES = 1024  # of one example, each through the whole net, that the noise of layers may cost
_WORTH_SKIPPING = 3.0  # decibels: half of the noise

Tuning = Literal["auto"] | Recipe | None


def export(
    run: Run | Task,
    path: str | Path,
    target: str = "onnx",
    bits: int = 8,
    qat: Tuning = "auto",
    *,
    task: Task | None = None,
    margin: float = 0.005,
    calibration: int = 512,
    skip: Sequence[str] = (),
    threads: int = 1,
    scaler: tuple[Sequence[float], Sequence[float]] | None = None,
    classes: Sequence[str] | None = None,
    units: str | Sequence[str] | None = None,
) -> ExportReport:
    """Write the model of a run as a file for a device, and say what the file really does.

    The run is left as it is. Integers are found from training examples (post-training quantization). Where that loses
    more than ``margin``, and ``qat`` is "auto", the model is fine-tuned while it rounds (quantization-aware training)
    as a run of its own beside the first, by the same loop, and the better of the two is written.

    Args:
        run: finished, with its task; or interrupted, for its best weights so far. Or a task, whose model is taken as it
            is, trained wherever it was; its fine-tuning needs ``qat=Recipe(...)``.
        path: of the file; ``predict.py``, which runs it with ONNX Runtime and NumPy alone, is written beside it.
        target: "onnx" (ONNX Runtime), "openvino" or "executorch".
        bits: of the weights: 32 for float, 8, or 4 for linear layers on ExecuTorch.
        qat: "auto", None for post-training quantization alone, or the recipe of the fine-tuning, which is then done.
        task: of a run that was only opened.
        margin: the largest loss that is accepted, as a share of what was learned: the gap of the first metric (else of
            the loss) between the model and shuffled targets.
        calibration: training examples that ranges are taken from.
        skip: layers to leave in float, by name.
        threads: of the runtime, for the latency.
        scaler: mean and scale of each input column (or channel), for the file's metadata, where inputs were
            standardised before they were given to Fogline: ``predict.py`` then takes them as they were measured.
        classes: names of the classes, where the data does not tell.
        units: of the outputs.

    Returns:
        The report: accuracy at every stage, kernels, latency, bytes, noise by layer.

    Raises:
        ValueError, TypeError: what does not fit, before anything is trained.
        ModuleNotFoundError: the packages of the target are not installed; names the command that brings them.
        Interrupted: a signal came while fine-tuning; exporting again goes on.
        OSError: the file cannot be written.

    Example::

        report = fogline.export(run, "model.onnx", bits=8)
        print(report)
        report.scores["runtime"]["accuracy"], report.latency.ratio, report.bytes
    """
    chosen = target_of(target)
    path = _checked(Path(path), chosen, bits, qat, margin, calibration)
    subject = Subject.of(run, task)
    told = _metadata(subject, target=target, bits=bits, scaler=scaler, classes=classes, units=units)
    with private_randomness(torch.device("cpu")):
        work = _Work(subject, chosen, bits, _captured(subject), told, threads)
        if bits == 32:
            return work.float_report(path)
        if bits == 4:
            return work.low_bit_report(path)
        work.round(chosen.grid, skip, calibration)
    wanted = qat == "auto" and subject.run is not None and work.lost()[1] > margin
    if isinstance(qat, Recipe) or wanted:
        work.tune(qat)
    with private_randomness(torch.device("cpu")):
        return work.report(path, margin, qat)


def _checked(path: Path, target: Target, bits: int, qat: Tuning, margin: float, calibration: int) -> Path:
    if bits not in (32, 8, 4):
        raise misfit("bits of 32 (float), 8 or 4", repr(bits), "choose one of them")
    if bits not in target.bits:
        remedy = "take target='executorch', or bits=8" if bits == 4 else "take bits=8 or bits=32"
        raise misfit(f"bits of {' or '.join(map(str, target.bits))} for the target {target.name!r}", bits, remedy)
    if qat not in (None, "auto") and not isinstance(qat, Recipe):
        raise misfit("qat of None, 'auto' or a Recipe", repr(qat), "pass fogline.Recipe(...)", error=TypeError)
    if not margin >= 0:
        raise misfit("a margin of 0 or more", margin, "0.005 is half a hundredth of what was learned")
    if calibration < 1:
        raise misfit("at least 1 example to calibrate on", calibration, "512 is usual")
    if path.suffix != target.suffix:
        raise misfit(f"a file that ends in {target.suffix} for the target {target.name!r}", path.name, "rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _metadata(
    subject: Subject,
    *,
    target: str,
    bits: int,
    scaler: tuple[Sequence[float], Sequence[float]] | None,
    classes: Sequence[str] | None,
    units: str | Sequence[str] | None,
) -> dict[str, Any]:
    found = subject.metadata() | {"runtime": target, "bits": bits}
    known = found["classes"]
    if classes is not None:
        outputs = subject.opened.facts.outputs
        if found["kind"] == "classification" and outputs > 1 and len(classes) != outputs:
            raise misfit(f"{outputs} names of classes", len(classes), "name every class, in the order of the labels")
        known = [str(name) for name in classes]
    mean, scale = scaler if scaler is not None else (None, None)
    if mean is not None and scale is not None and len(mean) != len(scale):
        raise misfit("as many scales as means in the scaler", f"{len(mean)} and {len(scale)}", "give one of each")
    return found | {
        "classes": known,
        "units": [units] if isinstance(units, str) else None if units is None else [str(unit) for unit in units],
        "scaler": None if mean is None or scale is None else {"mean": _numbers(mean), "scale": _numbers(scale)},
    }


def _numbers(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values]


def _captured(subject: Subject) -> Captured:
    return capture(subject.model, subject.sample(_LOOKED_AT))


@dataclass
class _Work:
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
        call = self._written(converted, path)
        stages: dict[str, nn.Module] = {"float": self.subject.model, "fake": self.model, "converted": converted}
        lost = self.lost()
        if lost[1] > margin:
            remedy = "'auto'" if self.subject.run is not None else "Recipe(...)"
            tried = self.tuned is not None or (qat is not None and self.subject.run is not None)
            advice = "" if tried else f"; qat={remedy} would fine-tune it"
            self.notes.append(f"more than the margin of {margin:.2%} is lost{advice}")
        examples = max(_FEWEST_LOOKED_AT, min(_LOOKED_AT, _PASSES // len(self.model.layers)))
        layers = noise_of(self.model, self.subject.sample(examples), self.subject.compared(self.model))
        kernels, weights = self.target.looked(path)
        latency, float_bytes = self._against_float(path, call)
        return self._reported(
            path,
            "quantization-aware" if self.model.seen else "post-training",
            stages,
            converted,
            call,
            lost=lost,
            kernels=kernels,
            float_weights=tuple(weights),
            latency=latency,
            float_bytes=float_bytes,
            layers=tuple(layers),
            skip=_to_skip(layers),
        )

    def low_bit_report(self, path: Path) -> ExportReport:
        """The file with 4-bit weights of linear layers and 8-bit activations whose ranges are found at run time."""
        from fogline.edge.executorch_file import four_bits

        captured = four_bits(self.subject.model, self.captured)
        graph = Graph(captured.graph, captured.most).eval()
        call = self._written(graph, path)
        stages: dict[str, nn.Module] = {"float": self.subject.model, "converted": graph}
        self.scores["converted"] = self.subject.score(graph)
        lost = losses_of(self.scores["float"], self.scores["converted"], self.subject.chance())
        latency, float_bytes = self._against_float(path, call)
        kernels, weights = self.target.looked(path)
        return self._reported(
            path, "post-training", stages, graph, call, lost=lost, latency=latency, float_bytes=float_bytes,
            kernels=kernels, float_weights=tuple(weights),
        )  # fmt: skip

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
        found = self.target.twin(path, self.threads)
        row = self.captured.example[:1].numpy()
        what = "int8" if self.bits == 8 else f"the {self.bits}-bit file"
        if found is not None:
            return compare(lambda: found[0](row), lambda: call(row), batch=1, threads=self.threads, what=what), found[1]
        with tempfile.TemporaryDirectory() as folder:
            beside = Path(folder) / f"float{self.target.suffix}"
            self.target.write(self._file(self.subject.shipped(self.captured.graph)), self.captured, beside, {})
            twin = self.target.opened(beside, self.threads)
            return compare(lambda: twin(row), lambda: call(row), batch=1, threads=self.threads, what=what), size_of(
                beside
            )

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
