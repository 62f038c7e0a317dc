"""Quantization-aware training: the same loop, signals, verdict and checkpoints, on a model that rounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fogline._fit import fit, resume
from fogline.data.source import Stream
from fogline.descent.checkpoint import latest, load_model_tensors
from fogline.descent.optimizers import spec_of
from fogline.descent.resolve import batch_rows
from fogline.edge.quantize import Quantized
from fogline.edge.subject import Subject
from fogline.recipe import Duration, Recipe
from fogline.record.store import read_info
from fogline.run import Run
from fogline.verdict import Verdict

_SHARE = 0.1  # of the steps of the run
_FEWEST = 100  # steps, unless the run itself had fewer
_MOVING = 2 / 3  # share of the steps in which ranges follow the data
_VALIDATIONS = 5


def fine_tuning(subject: Subject) -> Recipe:
    """The recipe of a run for its fine-tuning: a tenth of its steps, at a rate that is measured again, to zero.

    The rate of the run is none of this model's: batch normalisation, which holds activations in place while weights
    move, has been folded into the weights, and they may be far smaller than they were. It is measured by the curvature;
    a sweep from weights that are trained already finds nothing. So an optimizer whose edge of stability is not known
    gives way to AdamW.
    """
    assert subject.run is not None
    recipe, taken = subject.recipe, int(subject.run.info.get("steps") or 0)
    steps = max(math.ceil(_SHARE * taken), min(_FEWEST, max(1, taken)))
    if spec_of(recipe.optimizer).edge is None:
        recipe = recipe.replace(optimizer="adamw", options={}, weight_decay=None)
    return recipe.replace(
        lr="auto",
        guard="auto",
        duration=f"{steps}st",
        schedule="linear",
        warmup=0.05,
        validate_every=f"{math.ceil(steps / _VALIDATIONS)}st",
        patience=None,
    )


def _scales(scales: Mapping[str, float], model: nn.Module) -> dict[str, float]:
    """Ratios of learning rates by the names that parameters have in the graph; the graph has none for some."""
    names = [name for name, _ in model.named_parameters()]
    return {name: scale for place, scale in scales.items() for name in names if f".{place}." in f".{name}."}


def trained(subject: Subject, model: Quantized, recipe: Recipe) -> tuple[Run, list[Quantized]]:
    """Fine-tune a calibrated model; gives the run, and the model at its lowest held-out loss and as it was last.

    Both, since a network that grows surer of itself can err less at a higher loss: it is for the metric to say which is
    better. The run is called after the one it comes from; one that was interrupted is taken up where it stopped.

    Raises:
        Interrupted: a signal came; exporting again goes on.
        OSError: the run folder cannot be written.
    """
    recipe = recipe.replace(
        device=_device(subject, model),
        precision="float32",
        step="eager" if recipe.step == "auto" else recipe.step,
        ema=None,  # averaged weights would meet the ranges of others
        lr_scale=_scales(recipe.lr_scale, model),
    )
    model.settle_after = _settling(subject, recipe)
    task = replace(subject.task, model=model, name=f"{subject.folder.name}-qat")
    folder = subject.folder.with_name(f"{subject.folder.name}-qat")
    # The curvature that the rate is measured by is a second derivative, and fused kernels of attention have none.
    with sdpa_kernel(SDPBackend.MATH):
        if _interrupted(folder, recipe):
            run = resume(folder, task)
        else:
            run = fit(task, recipe, runs=folder.parent, name=_free(folder), progress=False)
    best = run.model.cpu().eval()
    assert isinstance(best, Quantized)
    last, (checkpoint, _) = copy.deepcopy(best), latest(run.folder)
    if checkpoint is not None:
        load_model_tensors(last, checkpoint.model)
    return run, [best, last]


def _device(subject: Subject, model: Quantized) -> str:
    """That of the run, unless the graph makes tensors on the CPU by name."""
    wanted = "cpu" if subject.run is None else str(subject.run.info["recipe"]["device"])
    graph = model.graph.graph
    fixed = any(node.kwargs.get("device") is not None for node in graph.nodes)  # type: ignore[union-attr]
    return "cpu" if fixed or not _is_here(wanted) else wanted


def _is_here(device: str) -> bool:
    if device == "cpu" or not torch.accelerator.is_available():
        return device == "cpu"
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and torch.device(device).type == accelerator.type


def _settling(subject: Subject, recipe: Recipe) -> int:
    """Passes after which the ranges stay as they are; all of them where the length is not known in steps."""
    if recipe.duration == "auto":
        return 2**62
    train = subject.opened.train
    size = None if isinstance(train, Stream) else train.size
    rows = 64 if recipe.batch_size == "auto" else batch_rows(recipe, size)
    steps = Duration.parse(recipe.duration).steps(rows, size)
    return 2**62 if steps is None else math.ceil(_MOVING * steps) * recipe.accumulate


def _interrupted(folder: Path, recipe: Recipe) -> bool:
    if not (folder / "run.json").exists():
        return False
    info = read_info(folder)
    verdict = info.get("verdict")
    stopped = verdict is None or verdict["name"] == Verdict.INTERRUPTED.name
    return stopped and Recipe.from_dict(info["asked"]) == recipe


def _free(folder: Path) -> str:
    names = (folder.name, *(f"{folder.name}-{k}" for k in range(2, 10**6)))
    return next(name for name in names if not (folder.parent / name / "run.json").exists())
