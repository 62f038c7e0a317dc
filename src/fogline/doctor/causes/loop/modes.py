"""Training in evaluation mode, evaluation in training mode, and statistics that lag behind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fogline.data.source import cast, float_type
from fogline.descent.copies import copied
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import CPU
from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import Wrapped, replaced
from fogline.doctor.uncut import DropsLess, Noiseless, Within

_STALE = 0.05  # share of the first statistics, 0 and 1, that is left in batch normalisation's running ones


def eval_mode_training(exam: Examination) -> Suspicion | None:
    """Batch normalisation that stays in evaluation mode while it trains, with statistics nobody ever took."""
    stuck = [name for name, m in exam.anatomy.named_modules() if _is_norm(m) and not m.training and _never_seen(m)]
    if not stuck:
        return None
    return Suspicion(
        "eval_mode_training",
        0.6,
        (Evidence("batch normalisation in evaluation mode during training", ", ".join(stuck[:4]), "none"),),
        "These layers stay in evaluation mode though the model is trained, and their running mean and variance are the "
        "0 and 1 they were made with: they normalise nothing.",
        (
            Remedy(
                "let batch normalisation follow the mode of the model",
                "remove the .eval() inside the model's forward() or train()",
                on_model=FollowsMode,
                place="mode",
                order=WRAP,
            ),
        ),
    )


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _never_seen(module: nn.Module) -> bool:
    seen = getattr(module, "num_batches_tracked", None)
    return isinstance(seen, Tensor) and int(seen) == 0


class FollowsMode(Wrapped):
    """A model whose batch normalisation is in the model's own mode at every call, whatever the model does to it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(self._follow)

    def _follow(self, module: nn.Module, _: Any) -> None:
        module.training = self.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped_model(*args, **kwargs)


def train_mode_eval(exam: Examination) -> Suspicion | None:
    """What goes on when the model is evaluated: ``F.dropout`` with its default ``training=True``, noise, and batch
    normalisation that keeps no statistics.
    """
    model = copied(exam.anatomy.model).eval()
    inputs = exam.anatomy.batch[0] if exam.case.supervised else None
    if inputs is None:
        return None
    mode, noise = DropsLess(), Noiseless()
    floats = float_type(model)
    with private_randomness(CPU), torch.no_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            with mode, noise:
                model(cast(inputs, floats))
        except FAILURES:
            return None
    if not mode.highest:
        return _noisy() if len(noise.drawn) > noise.sampled else _of_the_batch(exam)
    return Suspicion(
        "train_mode_eval",
        0.6,
        (Evidence("dropout in evaluation mode", "drops units", "does nothing"),),
        "A dropout called as a function drops units also in evaluation mode, because it does not know of the mode: "
        "predictions are noisy and worse than they need be.",
        (
            Remedy(
                "tell the dropout of the mode",
                "F.dropout(x, p, training=self.training)",
                on_model=lambda module: Within(module, DropsLess, only_evaluating=True),
                place="mode",
                order=WRAP,
            ),
        ),
        proof=True,
        severity="minor",
    )


def _noisy() -> Suspicion:
    """It may be meant: a trial has to show that answers are better without."""
    return Suspicion(
        "train_mode_eval",
        0.5,
        (Evidence("normal noise in evaluation mode", "is drawn", "none"),),
        "Noise that is to help in training is added in evaluation mode, too: predictions are worse than they need be.",
        (
            Remedy(
                "no noise in evaluation mode",
                "if self.training:\n    x = x + torch.randn_like(x) * scale",
                on_model=lambda module: Within(module, Noiseless, only_evaluating=True),
                place="mode",
                order=WRAP,
            ),
        ),
    )


def _of_the_batch(exam: Examination) -> Suspicion | None:
    """Batch normalisation whose answer to a row depends on the rows it is asked beside, for good."""
    names = [layer.name for layer in exam.anatomy.layers if _keeps_nothing(layer.module)]
    if not names:
        return None
    return Suspicion(
        "train_mode_eval",
        0.6,
        (Evidence("batch normalisation without running statistics", ", ".join(names[:4]), "none"),),
        "Batch normalisation keeps no running statistics, and takes those of the batch in evaluation mode, too: what "
        "is said of a row depends on the rows beside it, and of a single one nothing can be said.",
        (
            Remedy(
                "let batch normalisation keep its statistics",
                "nn.BatchNorm1d(width)  # without track_running_stats=False",
                on_model=_keeping_statistics,
                place="mode",
                order=BODY,
            ),
        ),
        proof=True,
        severity="minor",
    )


def _keeps_nothing(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _keeping_statistics(model: nn.Module) -> nn.Module:
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm) and _keeps_nothing(m)]
    for name, module in norms:
        like = next(model.parameters())
        made = type(module)(module.num_features, module.eps, module.momentum, module.affine).to(like.device, like.dtype)
        made.load_state_dict(module.state_dict(), strict=False)
        model = replaced(model, name, lambda _, made=made: made)  # type: ignore[misc]
    return model


def stale_statistics(exam: Examination) -> Suspicion | None:
    """Batch normalisation whose running statistics cannot settle within the run: evaluation is another function.

    After n steps with momentum m a share (1 - m)^n of the first statistics is left; with a momentum near 1, as Keras
    counts it, they are those of the last batch alone.
    """
    observed = exam.observed
    if observed is None or not math.isfinite(observed.train_loss) or observed.steps < 2:
        return None
    norms = [(n, m) for n, m in exam.anatomy.named_modules() if _is_norm(m) and _unsettled(m, observed.steps)]
    if not norms:
        return None
    late = observed.losses[-max(3, observed.steps // 10) :]
    late = late[np.isfinite(late)]
    if not len(late) or observed.train_loss <= late.mean() + 3 * late.std():
        return None
    momenta = ", ".join(f"{module.momentum:g}" for _, module in norms[:3] if isinstance(module.momentum, float))
    return Suspicion(
        "train_mode_eval",
        0.7,
        (
            Evidence("momentum of the running statistics", momenta, 0.1, layer=norms[0][0]),
            Evidence("loss on learned rows in evaluation mode", observed.train_loss, float(late.mean())),
        ),
        "In evaluation mode the model is another function than the one that was trained: batch normalisation's running "
        "statistics do not settle with this momentum (PyTorch's is the share of the new batch: Keras' 0.99 is 0.01).",
        (
            Remedy(
                "momentum 0.1 in batch normalisation",
                "nn.BatchNorm1d(width, momentum=0.1)",
                on_model=_settling,
                place="norm",
                order=BODY,
            ),
        ),
    )


def _unsettled(module: nn.Module, steps: int) -> bool:
    momentum = getattr(module, "momentum", None)
    return isinstance(momentum, float) and (momentum > 0.5 or (1 - momentum) ** steps > _STALE)


def _settling(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.1
    return model
