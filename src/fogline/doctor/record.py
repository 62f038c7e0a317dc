"""What a run's own record says of its faults: nothing is run, so nothing is proven, and the confidence says so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fogline.doctor.finding import Evidence, Finding, Remedy
from fogline.doctor.loop_findings import ASKED_FIRST, NEVER_ASKED
from fogline.doctor.report import Outcome, Report
from fogline.doctor.reported import unrelated
from fogline.doctor.signalled import from_signals, told_of_batches
from fogline.doctor.travelled import LITTLE_LEARNED, fell, thrown_before
from fogline.verdict import Verdict

if TYPE_CHECKING:
    from fogline.run import Run

_WORTH_SAYING, _CERTAIN = 0.5, 0.9
_DIVERGENCE = ("lr_too_high", "exploding_gradient", "nan_source")
_UNLEARNED = ("lr_too_low", "too_few_steps")
_EXPLAINS = {
    **dict.fromkeys(
        (
            "double_softmax",
            "shape_broadcast",
            "softmax_single_unit",
            "output_activation",
            "loss_mismatch",
            "missing_activation",
            "constant_target",
            "eval_mode_training",
            "tiny_batch_norm",
            "saturated_units",
            "frozen_parameters",
        ),
        _UNLEARNED,
    ),
    **dict.fromkeys(("missing_zero_grad", "accumulation_scale", "nan_in_data", "nan_source"), _DIVERGENCE),
    "schedule_step_unit": ("bad_schedule", *_UNLEARNED),
    "bad_init": ("vanishing_gradient", "lr_too_high", *_UNLEARNED),
    "unshuffled_data": ("lr_too_high", *_UNLEARNED),  # each class makes the others' losses grow
    "symmetric_init": ("dead_units", "vanishing_gradient", "lr_too_high", *_UNLEARNED),
    "detached_graph": ("dead_units", *_UNLEARNED),
    "epsilon_underflow": ("unscaled_target", *_UNLEARNED),
    "amp_scale_collapse": ("parameters_not_optimized", *_UNLEARNED),  # steps that are skipped move nothing
    **dict.fromkeys(
        ("sum_reduction", "unscaled_input", "unscaled_target", "parameters_not_optimized"),
        ("lr_too_high", *_UNLEARNED),
    ),
}  # what follows from a fault that was told
_FINE = (Verdict.CONVERGED, Verdict.NOISE_FLOOR, Verdict.IMPROVING)
_FOLLOWS_DIVERGENCE = ("nan_source", "dead_units", "vanishing_gradient")


def diagnose_record(run: Run) -> Report:
    """The report on a finished or watched run, from its record alone."""
    findings = tuple(findings_of_record(run))
    judgement, left = run.judgement, run.info.get("loss_over_constant")
    verdict: Outcome = "undecided"
    if findings:
        verdict = "faulty"
    elif (
        judgement is not None and judgement.verdict in _FINE and (fell(run) if left is None else left < LITTLE_LEARNED)
    ):
        verdict = "healthy"
    notes = ["nothing was run: give the task, run.diagnose(task), to have the remedies tried against a control"]
    if left is not None and left >= LITTLE_LEARNED:
        notes.append("the loss ends hardly lower than that of the best answer that does not look at the inputs")
    if judgement is None:
        notes.append("the run goes on, or was not judged")
    return Report(verdict, findings, notes=tuple(notes))


def findings_of_record(run: Run) -> list[Finding]:
    """Findings from the tables and ``run.json``, most likely first: those told as it ran, and the signals'."""
    signals = {finding.cause: finding for finding in from_signals(run)}
    withdrawn = run.info.get("withdrawn") or ()
    told = [_with_more(_read(row["data"]), signals) for row in run.findings if row["cause"] not in withdrawn]
    if run.judgement is not None and run.judgement.verdict is Verdict.DIVERGED:
        told = [f for f in told if f.cause != "nan_source"]  # the loss had grown without bound before it overflowed
    if any(f.cause == "nan_source" for f in told) and (thrown := thrown_before(run)) is not None:
        told = [thrown, *(f for f in told if f.cause not in ("nan_source", thrown.cause))]
    known = {finding.cause for finding in told}
    found = [f for f in signals.values() if f.cause not in known]
    sure = known | {f.cause for f in found if f.confidence >= _CERTAIN}
    explained = {follows for cause in sure for follows in _EXPLAINS.get(cause, ()) if follows != cause}
    told, found = ([f for f in some if f.cause not in explained] for some in (told, found))
    if any(f.cause == "lr_too_high" for f in (*told, *found)):
        found = [f for f in found if f.cause not in _FOLLOWS_DIVERGENCE]
    found = [told_of_batches(run, f) for f in found]
    ranks = ("fatal", "serious", "minor")
    if not {f.cause for f in (*told, *found)} - {"overfitting", "too_few_steps"}:
        of_no_input = unrelated(run)
        found = found if of_no_input is None else [of_no_input]
    kept = [f for f in (*told, *found) if f.confidence >= _WORTH_SAYING]
    return _with_other_readings(sorted(kept, key=lambda f: (ranks.index(f.severity), -f.confidence)))


def _with_other_readings(found: list[Finding]) -> list[Finding]:
    """A schedule may have been meant to be asked as often as it was, and have the wrong numbers."""
    of_units = next((f for f in found if f.cause == "schedule_step_unit"), None)
    if of_units is None or of_units.remedy is None or of_units.remedy.title in (NEVER_ASKED, ASKED_FIRST):
        return found
    why = "If the schedule is meant to be asked as often as it was, its numbers do not fit the length of the run."
    sure = 1 - of_units.confidence
    return [
        *found,
        replace(
            of_units, cause="bad_schedule", confidence=sure, explanation=why, remedy=None, instead_of=of_units.cause
        ),
    ]


def _with_more(told: Finding, signals: dict[str, Finding]) -> Finding:
    """What was told, with what the signals of the whole run add to it."""
    more = signals.get(told.cause)
    if more is None:
        return told
    evidence = tuple(dict.fromkeys((*told.evidence, *more.evidence)))
    sure = max(told.confidence, more.confidence)
    return replace(more, evidence=evidence, confidence=sure, remedy=more.remedy or told.remedy)


def _read(data: str) -> Finding:
    """A finding as it was written down."""
    value: dict[str, Any] = json.loads(data)
    remedy = value.get("remedy")
    return Finding(
        value["cause"],
        value["severity"],
        value["confidence"],
        tuple(Evidence(**item) for item in value["evidence"]),
        value["explanation"],
        remedy=None if remedy is None else Remedy(remedy["title"], remedy["patch"]),
        advice=value.get("advice", ""),
    )
