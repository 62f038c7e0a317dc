"""In which mode a loop trains and evaluates, of a model that answers otherwise in the other one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fogline.doctor import loop_findings
from fogline.doctor.caller import calling_line
from fogline.doctor.finding import Finding

SURE = 3
"""Times that a fault must show: one may be an oddity of the start."""

_DRAWS = ("dropout", "rand", "bernoulli", "normal", "uniform")

Found = Iterator[tuple[int, Finding]]
"""Findings, each with the step it is of."""


class ModeLook:
    """Follows the mode from pass to pass.

    Args:
        model: of the loop; where nothing in it depends on the mode, nothing is ever found.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._noisy = [(name, module) for name, module in model.named_modules() if _depends_on_mode(module)]
        self._unseen = [module for _, module in self._noisy if _has_no_statistics(module)]
        self._was_training = False
        self._forwards = self._in_eval = 0  # since the last step
        self._waiting = 0  # forward passes in training mode since the last backward()
        self._steps_in_eval = 0
        self._passes = {True: 0, False: 0}  # without gradient since the last with one, by mode
        self._at = ""  # the line of the first of them in training mode
        self._blind, self._blind_at = 0, 0  # evaluations in training mode, and the step of the last
        self._sees = False  # some evaluation was in its own mode
        self._scored: tuple[int, list[str], str] | None = None  # scores from passes with a graph, so it seems
        self._heard_at = -1  # the last step of which a gradient was seen as it was made

    def forward(self, step: int) -> Found:
        """Before a forward pass with gradients."""
        if not self._noisy:
            return
        self._forwards += 1
        yield from self._from_scores()  # nothing came back from what they were made of
        if self.model.training:
            self._unseen = [module for module in self._unseen if not module.training]
            self._was_training = self._was_training or not self._unseen
            self._in_eval += bool(self._unseen)
        elif any(not module.training for _, module in self._noisy):
            self._in_eval += 1
        self._waiting += any(module.training for _, module in self._noisy)
        if self._passes[True] or self._passes[False]:
            yield from self._end_evaluation(step)

    def evaluation(self) -> None:
        """Before a forward pass without gradients."""
        if not self._noisy:
            return
        trains = any(module.training for _, module in self._noisy)
        self._passes[trains] += 1
        if trains and not self._at:
            self._at = calling_line()

    def _ended(self) -> tuple[int, int]:
        trained, evaluated = self._passes[True], self._passes[False]
        self._passes = {True: 0, False: 0}
        self._sees = self._sees or evaluated > 0
        return trained, evaluated

    def _end_evaluation(self, step: int) -> Found:
        """Passes without gradients between steps that lie apart are evaluations, though no score may be logged."""
        trained, _ = self._ended()
        if trained and not self._sees and step - self._blind_at >= SURE:
            self._blind += 1
            if self._blind == SURE:
                yield step, loop_findings.train_mode(step, self._in_training(), self._at, logged=False)
        self._blind_at = step

    def _in_training(self) -> list[str]:
        return [name for name, module in self._noisy if module.training]

    def scored(self, step: int) -> Found:
        """Held-out scores were logged."""
        trained, evaluated = self._ended()
        if trained and not evaluated:
            yield step, loop_findings.train_mode(step, self._in_training(), calling_line())
        if not (trained or evaluated) and self._waiting and not self._in_eval and self._heard_at >= step:
            self._scored = step, self._in_training(), calling_line()

    def accumulated(self, step: int) -> None:
        """After a gradient came back: the passes before it were no evaluation."""
        self._waiting, self._scored, self._heard_at = 0, None, step

    def before_step(self, step: int, line: str) -> Found:
        """Before the optimizer takes a step, on this line."""
        if not self._noisy:
            return
        in_eval = self._forwards and self._in_eval == self._forwards
        self._steps_in_eval = self._steps_in_eval + 1 if in_eval else 0
        if self._steps_in_eval == SURE:
            names = [name or "the model" for name, module in self._noisy if not module.training]
            yield step, loop_findings.eval_mode(step, SURE, names, switched=self._was_training, line=line)

    def step_taken(self) -> None:
        """After it."""
        self._forwards = self._in_eval = self._waiting = 0
        self._scored = None

    def finish(self) -> Found:
        """The loop is over."""
        yield from self._from_scores()

    def _from_scores(self) -> Found:
        if self._scored is not None:
            yield self._scored[0], loop_findings.train_mode(*self._scored)
            self._scored = None


def _depends_on_mode(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("torch.") and _draws_in_training(module):
        return True
    dropping = isinstance(module, (_DropoutNd, nn.RNNBase)) and float(getattr(module, "p", 0) or 0) > 0
    dropping = dropping or (isinstance(module, nn.RNNBase) and module.dropout > 0)
    drawing = isinstance(module, nn.RReLU) and module.lower < module.upper
    return dropping or drawing or (isinstance(module, _NormBase) and module.track_running_stats)


def _draws_in_training(module: nn.Module) -> bool:
    """Whether somebody's own ``forward`` asks for the mode and draws numbers; not where every float it reads is 0."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or "training" not in (*code.co_names, *code.co_consts):
        return False
    read = [value for name in code.co_names if isinstance(value := vars(module).get(name), float)]
    return any(part in name for name in code.co_names for part in _DRAWS) and (not read or any(read))


def _has_no_statistics(module: nn.Module) -> bool:
    """Whether a batch normalisation that is trained has the mean of 0 that it was made with."""
    mean = getattr(module, "running_mean", None)
    trained = isinstance(module, _BatchNorm) and any(p.requires_grad for p in module.parameters(recurse=False))
    return trained and isinstance(mean, Tensor) and not bool(mean.any())
