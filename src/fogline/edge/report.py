"""What an export really gave."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline.edge.kernels import Kernels
from fogline.edge.latency import Latency
from fogline.edge.noise import LayerNoise
from fogline.words import number

if TYPE_CHECKING:
    from fogline.run import Run

STAGES = ("float", "fake", "converted", "runtime")
_SHOWN = 5
CLOSE = 2  # output steps


@dataclass(frozen=True)
class Difference:
    """How far the outputs of two stages lie apart, over the sample.

    Attributes:
        largest: difference of any output.
        steps: the same in output steps: 1/255 of the range of the outputs.
        decisions: share of examples with the same highest class (yes/no for one output), or of detections with the
            same class; None where there are none.
        close: share of the outputs that lie at most two steps apart.
    """

    largest: float
    steps: float
    decisions: float | None
    close: float = 1.0


@dataclass(frozen=True)
class ExportReport:
    """What an export really gave, stage by stage; ``str(report)`` says it in lines.

    Attributes:
        path: the file.
        target: onnx, openvino or executorch.
        bits: of a weight: 32, 8 or 4.
        method: "float", "post-training" or "quantization-aware".
        scores: loss and metrics of the task by stage: "float" (the model), "fake" (the model that rounds), "converted"
            (the graph with integers) and "runtime" (the file where it runs).
        lost: the metric that was judged, and the share of what was learned that rounding lost.
        differences: between successive stages, as "fake - converted".
        kernels: which operators became integer kernels; None where the target does not tell.
        latency: of one call, against float; None where there is no float to compare with.
        bytes, float_bytes: sizes of the file and of the same in float.
        float_weights: constants still stored as floats, with their number of values, the largest first.
        layers: signal-to-noise by layer, the noisiest first.
        skip: the layer to leave in float, where that would help.
        tuned: the run of the fine-tuning, or None.
        notes: sentences.
        metadata: what the file says of its inputs and outputs.
    """

    path: Path
    target: str
    bits: int
    method: str
    scores: dict[str, dict[str, float]]
    differences: dict[str, Difference]
    bytes: int
    float_bytes: int | None = None
    lost: tuple[str, float] | None = None
    kernels: Kernels | None = None
    latency: Latency | None = None
    float_weights: tuple[tuple[str, int], ...] = ()
    layers: tuple[LayerNoise, ...] = ()
    skip: str | None = None
    tuned: Run | None = None
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is infinite is given as text."""
        values = asdict(replace(self, tuned=None))
        values |= {"path": str(self.path), "tuned": None if self.tuned is None else str(self.tuned.folder)}
        if self.latency is not None:
            values["latency"]["verdict"] = self.latency.verdict
        return dict(_plain(values))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.target}, {_bits(self.bits)}, {self.method}, {self._size()}"]
        names = {name: None for stage in STAGES for name in self.scores.get(stage, {})}
        for name in names:
            told = ", ".join(f"{stage} {number(self.scores[stage][name])}" for stage in STAGES if stage in self.scores)
            lines.append(f"{name}: {told}")
        if self.lost is not None:
            lines.append(f"lost by rounding: {max(0.0, self.lost[1]):.2%} of the {self.lost[0]} that was learned")
        lines += [f"{between}: {_difference(found)}" for between, found in self.differences.items()]
        if self.kernels is not None:
            lines += _kernels(self.kernels)
        if self.latency is not None:
            lines.append(f"{self.latency.verdict} ({_how(self.latency)})")
        weights = [item for item in self.float_weights if item[1] > 0]
        if weights and self.bits < 32:
            count = sum(size for _, size in weights)
            lines.append(f"still stored as float: {count:,} values, most in {weights[0][0]}")
        if self.layers:
            noisy = ", ".join(f"{item.name} {item.signal_to_noise:.0f} dB" for item in self.layers[:_SHOWN])
            lines.append(f"noisiest layers: {noisy}")
        if self.skip is not None:
            lines.append(f"where it matters, leaving {self.skip!r} in float would help most: skip=[{self.skip!r}]")
        if self.tuned is not None:
            lines.append(f"fine-tuned in {self.tuned.folder}: {self.tuned.verdict}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _size(self) -> str:
        if self.float_bytes is None or self.bits == 32:
            return f"{self.bytes:,} bytes"
        ratio = self.float_bytes / self.bytes
        told = f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"
        return f"{self.bytes:,} bytes, float {self.float_bytes:,} ({told})"


def _bits(bits: int) -> str:
    return "float" if bits == 32 else f"{bits}-bit weights"


def _difference(found: Difference) -> str:
    same = "" if found.decisions is None else f", {found.decisions:.2%} equal decisions"
    close = "" if found.steps <= CLOSE else f", {found.close:.3%} of all within {CLOSE}"
    return f"largest difference {number(found.largest)} ({found.steps:.2f} output steps{close}){same}"


def _how(latency: Latency) -> str:
    rows = "1 row" if latency.batch == 1 else f"{latency.batch} rows"
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return f"{rows}, {threads}"


def _kernels(kernels: Kernels) -> list[str]:
    if not kernels.integer:
        return [f"integer kernels: none; {len(kernels.floating)} operators compute in floats"]
    integer = ", ".join(f"{count} {name}" for name, count in kernels.integer.items())
    lines = [f"integer kernels: {integer} ({kernels.share:.0%} of the operators that compute)"]
    reasons: dict[str, list[str]] = {}
    for item in kernels.floating:
        reasons.setdefault(f"{item.kind}: {item.why}", []).append(item.name)
    return lines + [f"float: {len(names)} {reason}" for reason, names in reasons.items()]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value
