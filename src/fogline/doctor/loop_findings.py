"""Findings of what a watched loop does wrong, in words: gradients, parameters, modes, schedule, and the first NaN."""

from __future__ import annotations

from collections.abc import Sequence

from fogline.doctor.finding import Evidence, Finding, Remedy, untried
from fogline.doctor.naming import Named
from fogline.errors import some

_MUCH_LONGER = 4  # a rate within three times of the best is none that hurts


def missing_zero_grad(step: int, count: int, line: str) -> Finding:
    return untried(
        "missing_zero_grad",
        0.97,
        Evidence("steps whose gradient still held that of the step before", count, 0, step),
        "backward() adds to the gradients that are there. They are not cleared between steps, so each step goes along "
        "the sum of all gradients so far: the first ones, from the worst weights, are never forgotten, and the steps "
        "grow longer and longer.",
        Remedy("clear the gradients before each backward()", "optimizer.zero_grad()\nloss.backward()"),
        line=line,
    )


def no_gradient(step: int, parameters: int, line: str) -> Finding:
    return untried(
        "detached_graph",
        0.97,
        Evidence("parameters of the optimizer with a gradient", 0, parameters, step),
        "No parameter has a gradient when the optimizer is asked to step, so it does nothing at all. Something "
        "between the model and the loss cuts the graph: detach(), .data, .item(), argmax, NumPy, torch.no_grad(), or "
        "a new tensor made from the old numbers; or backward() is not called.",
        severity="fatal",
        line=line,
        advice="compute the loss from the model's own outputs with torch operations, and call loss.backward()",
    )


def no_step(backwards: int) -> Finding:
    return untried(
        "parameters_not_optimized",
        0.95,
        Evidence("steps of the optimizer", 0, f"one for each backward(), of which there were {backwards}"),
        "Gradients were computed all along, and the optimizer was never asked to step: the weights are what they were "
        "at first.",
        Remedy("let the optimizer step", "loss.backward()\noptimizer.step()"),
        severity="fatal",
    )


def another_steps(backwards: int) -> Finding:
    return untried(
        "optimizer_mismatch",
        0.7,
        Evidence("steps of the optimizer", 0, f"one for each backward(), of which there were {backwards}"),
        "The weights move, and the optimizer that is watched took no step: another one moves them. Where it is made "
        "anew inside the loop it forgets all it has seen, as its momentum and its estimates of how steep each weight "
        "is, with every step.",
        Remedy("make the optimizer once, before the loop", "optimizer = torch.optim.Adam(model.parameters())"),
        advice="If another optimizer is meant to train this model, watch that one.",
    )


def cleared(step: int, parameters: int, line: str) -> Finding:
    return untried(
        "detached_graph",
        0.97,
        Evidence("parameters of the optimizer with a gradient", 0, parameters, step),
        "backward() gave gradients, and they were cleared before the optimizer stepped: it does nothing at all.",
        Remedy("clear the gradients before backward()", "optimizer.zero_grad()\nloss.backward()\noptimizer.step()"),
        severity="fatal",
        line=line,
    )


def not_of_outputs(step: int, line: str) -> Finding:
    return untried(
        "detached_graph",
        0.85,
        Evidence("gradients that came to the outputs of the model", 0, "one a step", step),
        "All layers get gradients, but none by way of what the model puts out: what backward() was called on does not "
        "depend on the outputs, only on the weights themselves, as a penalty does. The part of the loss that compares "
        "outputs with targets was cut off: by detach(), .data, .item() or torch.no_grad().",
        severity="fatal",
        line=line,
        advice="call backward() on the loss that is computed from the model's own outputs",
    )


def cut_graph(step: int, names: Sequence[str], following: str, line: str) -> Finding:
    return untried(
        "detached_graph",
        0.75,
        Evidence("layers without a gradient though they are in the optimizer", some(names), "", step),
        f"The layers before {following!r} are run in training and are in the optimizer, yet no gradient reaches them: "
        f"the graph is cut just before {following!r}, by detach(), .data or a tensor made anew. They stay as they "
        "were.",
        line=line,
        advice=f"pass the output of {names[-1]!r} on as it is; if it is meant to stay fixed, freeze it with "
        "requires_grad_(False)",
    )


def cut_behind(step: int, names: Sequence[str], others: Sequence[str], line: str) -> Finding:
    return untried(
        "detached_graph",
        0.75,
        Evidence("layers without a gradient though they are in the optimizer", some(names), "none", step),
        "No layer that is run in training gets a gradient, only parameters that are used behind them do: what the "
        "layers give is cut off from the loss, by argmax, round, detach(), .data or a tensor made anew. They stay as "
        "they were.",
        more=(Evidence("parameters with a gradient", some(others), "all", step),),
        line=line,
        advice="compute the loss from the numbers that the layers give, by operations that have a gradient",
    )


def without_past(step: int, names: Sequence[str], times: int, line: str) -> Finding:
    return untried(
        "detached_graph",
        0.75,
        Evidence("calls in a pass of which a gradient comes to the last only", f"{some(names)}: {times}", "none", step),
        f"{some(names)} is called {times} times in a pass, each time on what it said before, and a gradient comes to "
        "what it said last only: what goes on from step to step is cut off, by detach(), .data or a tensor made anew. "
        "What is to be remembered of earlier steps is never learned.",
        line=line,
        advice="pass the state on as it is within a sequence; detach it between batches only",
    )


def without_graph(step: int, names: Sequence[str], line: str) -> Finding:
    return untried(
        "detached_graph",
        0.75,
        Evidence("layers that are run without a graph though they are in the optimizer", some(names), "none", step),
        "These layers are in the optimizer and hold the random weights they were made with, yet they are run within "
        "torch.no_grad(): no gradient reaches them, and they stay as they were drawn.",
        Remedy("let gradients through", "take the torch.no_grad() around these layers away"),
        line=line,
    )


def eval_mode(step: int, steps: int, names: Sequence[str], *, switched: bool, line: str) -> Finding:
    since = "since a validation put it there" if switched else "from the start"
    return untried(
        "eval_mode_training",
        0.9 if switched else 0.75,
        Evidence("steps in a row taken in evaluation mode", steps, 0, step),
        f"What depends on the mode is trained in evaluation mode {since}: dropout and other noise do nothing, and "
        f"normalisation uses running statistics that are not updated ({some(names)}).",
        Remedy("put the model back in training mode", "model.train()  # at the start of every epoch"),
        line=line,
    )


def train_mode(step: int, names: Sequence[str], line: str, *, logged: bool = True) -> Finding:
    scored = "held-out data were scored" if logged else "the model ran without gradients, as it does for scores"
    return untried(
        "train_mode_eval",
        0.85 if logged else 0.6,
        Evidence(f"modules in training mode while {scored}", some(names), "none", step),
        "Held-out scores are measured in training mode: dropout drops units, and normalisation uses the "
        "statistics of the held-out batch and learns from it. The scores are worse, and noisier, than the model is.",
        Remedy("evaluate in evaluation mode", "model.eval()\nwith torch.no_grad():\n    ...\nmodel.train()"),
        line=line,
    )


def tiny_batch(step: int, layer: str, values: int, rows: int, few: int) -> Finding:
    counted = "values a channel that its statistics are made of" if values <= few else "rows a batch"
    return untried(
        "tiny_batch_norm",
        0.8 if values <= few else 0.6 if rows <= 2 else 0.5,
        Evidence(counted, values if values <= few else rows, "32 or more", step, layer),
        f"Batch normalisation takes its mean and variance from {rows} rows: that is mostly chance, so the same example "
        "comes out different in every batch, and quite different again in evaluation mode.",
        Remedy("normalise each example on its own", "nn.GroupNorm or nn.LayerNorm instead of nn.BatchNorm"),
        advice="or take batches of 32 or more",
    )


def undivided(step: int, count: int, line: str) -> Finding:
    return untried(
        "accumulation_scale",
        0.6,
        Evidence("mean losses added up for a step", count, f"each divided by {count}", step),
        f"The gradients of {count} batches are added for one step, and the losses are not divided by {count}: the "
        f"step is {count} times as long as the learning rate says.",
        Remedy("divide each loss by the number of batches", f"(loss / {count}).backward()"),
        severity="serious" if count >= _MUCH_LONGER else "minor",
        line=line,
    )


def hidden_parameters(step: int, names: Sequence[str]) -> Finding:
    return untried(
        "parameters_not_optimized",
        0.95,
        Evidence("parameters that get gradients and are in no optimizer that steps", some(names), "none", step),
        "These parameters get gradients and never move: they are plain tensors, or kept in a plain Python list or "
        "dict, where model.parameters() does not see them. What they compute stays as it was at the start.",
        Remedy(
            "register them",
            "self.layers = nn.ModuleList(layers)  # a list\nself.weight = nn.Parameter(weight)  # a tensor",
        ),
    )


def left_out(step: int, names: Sequence[str], *, whole: bool) -> Finding:
    what = (
        "The optimizer has none of the parameters of this model: it was made from another one, or from this one before "
        "it was copied, made anew or given new layers. Nothing is learned."
        if whole
        else "These parameters get gradients and never move: the optimizer does not have them. What they compute stays "
        "as it was at the start."
    )
    return untried(
        "parameters_not_optimized",
        0.97 if whole else 0.7,
        Evidence("parameters that get gradients and are in no optimizer that steps", some(names), "none", step),
        what,
        Remedy("give all parameters to the optimizer", "optimizer = type(optimizer)(model.parameters(), lr=lr)"),
        severity="fatal" if whole else "serious",
        advice="if they are meant to stay fixed, freeze them with requires_grad_(False): it is faster",
    )


def frozen(step: int, names: Sequence[str]) -> Finding:
    return untried(
        "frozen_parameters",
        0.6,
        Evidence("frozen layers whose weights are as they were drawn", some(names), "none", step),
        "These layers have requires_grad=False and hold the random weights they were made with: nobody trained them, "
        "and nobody will.",
        Remedy("let them learn", "model.requires_grad_(True)  # before the optimizer is made"),
        advice="if trained weights were meant to be there, load them",
    )


ASKED_FIRST = "step the optimizer first"
NEVER_ASKED = "call scheduler.step() after optimizer.step()"


def schedule_first(line: str) -> Finding:
    return untried(
        "schedule_step_unit",
        0.9,
        Evidence("calls of scheduler.step() before the first optimizer.step()", 1, 0, 0),
        "The scheduler is asked before the optimizer: the first value of the schedule is skipped.",
        Remedy(ASKED_FIRST, "optimizer.step()\nscheduler.step()"),
        severity="minor",
        line=line,
    )


def schedule_unit(confidence: float, evidence: Evidence, explanation: str, remedy: str) -> Finding:
    return untried("schedule_step_unit", confidence, evidence, explanation, Remedy(remedy, remedy))


def scale_collapse(step: int, skips: int) -> Finding:
    return untried(
        "amp_scale_collapse",
        0.9,
        Evidence("steps that the gradient scaler skipped", skips, "a few at the start", step),
        "The gradient scaler finds infinity again and again and halves its scale each time. After so many the scale is "
        "below one: the cause is not the scale, something is infinite in float16 itself, and the steps left over lose "
        "their small gradients.",
        Remedy("compute in bfloat16, which needs no scaler", "torch.autocast(device, dtype=torch.bfloat16)"),
        severity="fatal" if skips > step else "serious",
    )


_AGAINST_NAN = {
    "nan_in_data": (0.97, "drop these rows, or fill in what is missing"),
    "log_of_zero": (
        0.9,
        "log_softmax(x) instead of log(softmax(x)); nn.BCEWithLogitsLoss() instead of log(sigmoid(x)); or clamp_min",
    ),
    "lr_too_high": (0.75, "a tenth of the learning rate, and inputs and targets of size one"),
    "nan_source": (0.9, "skip steps whose gradient is not finite, and mend the operation that is named here"),
}


def not_finite(step: int, norm: float, found: Named, line: str) -> Finding:
    confidence, advice = _AGAINST_NAN[found.cause]
    return untried(
        found.cause,
        0.7 if found.cause == "nan_source" and found.module is None else confidence,
        Evidence("gradient norm", norm, "finite", step, found.module),
        f"{found.sentence} The step taken with it puts NaN into the weights, and nothing is learned from there on.",
        severity="fatal",
        more=found.evidence,
        line=line,
        advice=advice,
    )


def not_finite_later(step: int, layers: Sequence[str]) -> Finding:
    return untried(
        "nan_source",
        0.6,
        Evidence("first step whose loss or gradient was not finite", step, "none", step),
        "The loss or the gradient became NaN or infinite, and the steps taken with it put NaN into the weights"
        + (f" of {some(layers)}." if layers else "."),
        severity="fatal",
        advice="skip steps whose gradient is not finite; torch.autograd.set_detect_anomaly(True) names the operation",
    )
