"""Adapters: each tool used as its documentation says, with its default thresholds, its alarms as it gave them.

Levels are the tool's own. What a tool only remarks (information, hints) is no alarm and is not kept.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from doctor_parts.plain import Alarm, Batch, Subject, Tool
from fogline.task import OnBatch

BY_DEFAULT = "step 0"
"""Where torch-audit would have looked with its default interval."""


class Torchmortem(Tool):
    """torchmortem: ``Autopsy`` around the loop, ``autopsy.step(loss=loss.item())`` at the end of each pass."""

    def begin(self, subject: Subject) -> None:
        from torchmortem import Autopsy

        logging.getLogger("torchmortem").setLevel(logging.CRITICAL + 1)
        self.autopsy = Autopsy(subject.model, optimizer=subject.optimizer)
        self.autopsy.attach()

    def step(self, loss: float) -> None:
        self.autopsy.step(loss=loss)

    def end(self) -> None:
        self.autopsy.detach()
        report = self.autopsy.get_report()
        assert report is not None
        # The page shows insights, "root-cause explanations", before findings, and these by severity.
        self.found = [Alarm(insight.rule_name, "INSIGHT", insight.title) for insight in report.insights]
        for finding in report.findings:
            if finding.severity.name != "INFO":
                layers = ", ".join(finding.affected_layers)
                check = _without_layer(finding.title)
                self.found.append(Alarm(check, finding.severity.name, finding.summary, layers))


def _without_layer(title: str) -> str:
    """The name of a check: torchmortem has it only in the title, with the layer behind.

    >>> _without_layer("Dead units in layers.0"), _without_layer("Weight norm explosion")
    ('Dead units', 'Weight norm explosion')
    """
    return title.split(" in ")[0]


class TorchAudit(Tool):
    """torch-audit: ``autopatch`` with the static and initial audits.

    A run of ours is over before its default of an audit every 1000 steps comes round, so it audits every step, which
    its documentation offers. With the default it says what it says of step 0.
    """

    def begin(self, subject: Subject) -> None:
        from torch_audit import autopatch

        self.auditor = autopatch(
            subject.model, optimizer=subject.optimizer, every_n_steps=1, run_static=True, run_init=True
        )

    def end(self) -> None:
        result = self.auditor.finish(report=False)
        self.auditor.unpatch()
        found = [finding for finding in result.findings if finding.severity.value != "INFO"]
        found.sort(key=lambda finding: finding.severity, reverse=True)
        for finding in found:
            where = BY_DEFAULT if finding.step % 1000 == 0 else "other steps"
            self.found.append(Alarm(finding.rule_id, finding.severity.value, finding.message, where))


class TrainWatch(Tool):
    """trainwatch: ``Watcher`` told of every loss and every epoch; it prints its warnings."""

    def begin(self, subject: Subject) -> None:
        from trainwatch import Watcher

        self.said = io.StringIO()
        with contextlib.redirect_stdout(self.said):
            self.watcher = Watcher()

    def step(self, loss: float) -> None:
        with contextlib.redirect_stdout(self.said):
            self.watcher.step(loss=loss)

    def epoch(self, valid: float) -> None:
        with contextlib.redirect_stdout(self.said):
            self.watcher.epoch_end()

    def end(self) -> None:
        for line in self.said.getvalue().splitlines():
            _, warns, message = line.partition("WARNING: ")
            if warns:
                check = message.split(" detected")[0].split(" (")[0]
                self.found.append(Alarm(check, "WARNING", message))


class MLDoctor(Tool):
    """mldoct: ``mldoctor diagnose`` on a CSV of training loss, held-out loss and gradient norm by epoch."""

    def begin(self, subject: Subject) -> None:
        self.model = subject.model
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rows: list[str] = []

    def backward(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.norms.append(float(nn.utils.get_total_norm(gradients)))

    def step(self, loss: float) -> None:
        self.losses.append(loss)

    def epoch(self, valid: float) -> None:
        loss, norm = statistics.fmean(self.losses), statistics.fmean(self.norms)
        self.rows.append(f"{len(self.rows) + 1},{loss},{valid},{norm}")
        self.losses, self.norms = [], []

    def end(self) -> None:
        from mldoctor.advisor import diagnose_csv

        if not self.rows:
            return
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log.csv"
            log.write_text("\n".join(["epoch,train_loss,val_loss,grad_norm", *self.rows]))
            said = diagnose_csv(str(log))
        if said["label"] != "healthy":
            self.found.append(Alarm(str(said["label"]), "CONDITION", f"{said['confidence']:.0f} % sure"))
        for insight in said["insights"]:
            title, _, message = insight.removeprefix("**").partition(":** ")
            if title != "Gradient Health":  # which is said where all is well
                self.found.append(Alarm(title, "INSIGHT", message))


class Torchtest2(Tool):
    """torchtest2: ``check_model`` on the first batch, with the loss and the optimizer of the program."""

    before_training = True

    def begin(self, subject: Subject) -> None:
        self.subject = subject.twin()

    def check(self, batch: Batch, inputs: Any) -> None:
        import torchtest2

        model, loss_fn, targets = self.subject.model, self.subject.loss_fn, _targets(batch)
        how: dict[str, Any] = {"loss_fn": loss_fn, "optimizer": self.subject.optimizer}
        if isinstance(loss_fn, OnBatch):  # as it says for models with a special training forward pass
            how["forward_fn"] = lambda model, *_: loss_fn.function(model, batch)
            how["loss_fn"] = lambda loss, *_: loss
        report = torchtest2.check_model(model, inputs, targets, **how)
        for result in [*report.failures, *report.warnings]:
            self.found.append(Alarm(result.name, result.status.value, result.message))


class Torchtest(Tool):
    """torchtest: ``test_suite`` on the first batch with the tests that need no knowledge of the model.

    It stops at the first that fails. The test of the output's range needs a range, and no program tells one.
    """

    before_training = True

    def begin(self, subject: Subject) -> None:
        self.subject = subject.twin()

    def check(self, batch: Batch, inputs: Any) -> None:
        from torchtest import test_suite

        model = self.subject.model
        try:
            test_suite(
                model, _plain_loss(self.subject.loss_fn, model, batch), self.subject.optimizer,
                (inputs, _targets(batch)),
                test_vars_change=True, test_nan_vals=True, test_inf_vals=True,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - it speaks by raising, and its exceptions are plain ones
            own = type(error).__module__.startswith("torchtest")
            self.found.append(Alarm(type(error).__name__ if own else "raised", "FAIL", str(error)))


class Torchdiag(Tool):
    """torchdiag: its quick start on the first batch: summary, dead neurons, one verified step, gradients."""

    before_training = True

    def begin(self, subject: Subject) -> None:
        self.subject = subject.twin()

    def check(self, batch: Batch, inputs: Any) -> None:
        import torchdiag

        model, optimizer = self.subject.model, self.subject.optimizer
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            torchdiag.summary(model)
            dead = torchdiag.check_dead_neurons(model, inputs)
            loss_fn = _plain_loss(self.subject.loss_fn, model, batch)
            step = torchdiag.verify_step(model, optimizer, loss_fn, inputs, _targets(batch))
            gradients = torchdiag.check_gradients(model)
        if "ALL parameters are frozen" in said.getvalue():
            self.found.append(Alarm("all frozen", "WARNING"))
        for part in ("forward", "loss", "backward"):
            if str(step.get(part, "")).startswith("FAILED"):
                self.found.append(Alarm(f"{part} failed", "ISSUE", step[part]))
        if isinstance(step.get("loss"), float) and not torch.isfinite(torch.tensor(step["loss"])):
            self.found.append(Alarm("loss not finite", "ISSUE", str(step["loss"])))
        if step.get("params_unchanged") and not step.get("params_updated"):
            self.found.append(Alarm("no parameters changed", "ISSUE"))
        for name, facts in gradients.items():
            if facts["status"] != "OK":
                self.found.append(Alarm(f"gradient {facts['status'].lower()}", "ISSUE", "", name))
        for name, facts in dead.items():
            if facts["dead_pct"] > 20:
                level = "CRITICAL" if facts["dead_pct"] > 50 else "WARNING"
                self.found.append(Alarm("dead neurons", level, f"{facts['dead_pct']:.0f} %", name))


def _targets(batch: Batch) -> Any:
    """The targets of a batch; a tensor in their place where there are none, which no loss looks at."""
    if isinstance(batch, Tensor):
        return batch
    return batch[1] if len(batch) > 1 else batch[0]


def _plain_loss(loss_fn: Any, model: nn.Module, batch: Batch) -> Callable[[Any, Any], Tensor]:
    """A loss of (outputs, targets); one that sees the model calls it once more."""
    if isinstance(loss_fn, OnBatch):
        return lambda *_: loss_fn.function(model, batch)
    return loss_fn  # type: ignore[no-any-return]


DURING: dict[str, Callable[[], Tool]] = {
    "torchmortem": Torchmortem,
    "torch-audit": TorchAudit,
    "trainwatch": TrainWatch,
    "mldoct": MLDoctor,
}
"""They listen to a run and change nothing in it, so that they can listen together."""

HOOKED = ("torchmortem", "torch-audit")
"""Much of their work is in hooks; that of the others is in the calls they get."""

BEFORE: dict[str, Callable[[], Tool]] = {"torchtest2": Torchtest2, "torchtest": Torchtest, "torchdiag": Torchdiag}
"""They look at one batch before training; some of them train on it, each its own twin of the program."""
