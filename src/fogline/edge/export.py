"""``export``: a run in, a file for a device out, with a report of what it really does there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fogline.descent.randomness import private_randomness
from fogline.edge.capture import capture
from fogline.edge.report import ExportReport
from fogline.edge.subject import Subject
from fogline.edge.targets import Target, target_of
from fogline.edge.work import LOOKED_AT, Work
from fogline.edge.work import Tuning as Tuning
from fogline.errors import misfit
from fogline.recipe import Recipe
from fogline.run import Run
from fogline.task import Task


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
        work = Work(subject, chosen, bits, capture(subject.model, subject.sample(LOOKED_AT)), told, threads)
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
