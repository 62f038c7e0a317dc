"""The findings of watched loops in words: what was seen, what it does, and the code to change."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fogline.doctor.finding import Evidence, Finding, Remedy, Severity
from fogline.doctor.graphs import Pairing
from fogline.doctor.naming import Named
from fogline.doctor.scaling import InputExcess, TargetExcess
from fogline.doctor.sorting import Between

_MUCH_LONGER = 4  # a rate within three times of the best is none that hurts


def missing_zero_grad(step: int, count: int, line: str) -> Finding:
    return _finding(
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
    return _finding(
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


def cleared(step: int, parameters: int, line: str) -> Finding:
    return _finding(
        "detached_graph",
        0.97,
        Evidence("parameters of the optimizer with a gradient", 0, parameters, step),
        "backward() gave gradients, and they were cleared before the optimizer stepped: it does nothing at all.",
        Remedy("clear the gradients before backward()", "optimizer.zero_grad()\nloss.backward()\noptimizer.step()"),
        severity="fatal",
        line=line,
    )


def not_of_outputs(step: int, line: str) -> Finding:
    return _finding(
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
    return _finding(
        "detached_graph",
        0.75,
        Evidence("layers without a gradient though they are in the optimizer", _listed(names), "", step),
        f"The layers before {following!r} are run in training and are in the optimizer, yet no gradient reaches them: "
        f"the graph is cut just before {following!r}, by detach(), .data or a tensor made anew. They stay as they "
        "were.",
        line=line,
        advice=f"pass the output of {names[-1]!r} on as it is; if it is meant to stay fixed, freeze it with "
        "requires_grad_(False)",
    )


def without_graph(step: int, names: Sequence[str], line: str) -> Finding:
    return _finding(
        "detached_graph",
        0.75,
        Evidence("layers that are run without a graph though they are in the optimizer", _listed(names), "none", step),
        "These layers are in the optimizer and hold the random weights they were made with, yet they are run within "
        "torch.no_grad(): no gradient reaches them, and they stay as they were drawn.",
        Remedy("let gradients through", "take the torch.no_grad() around these layers away"),
        line=line,
    )


def straight(step: int, layers: int, line: str) -> Finding:
    return _finding(
        "missing_activation",
        0.7,
        Evidence("layers with weights, and nothing that bends between them", layers, 1, step),
        f"{layers} layers with weights follow one another without an activation: together they are a single linear "
        "layer, and the model cannot learn anything that is not a straight line.",
        Remedy("put an activation between the layers", "nn.ReLU() after every layer but the last"),
        line=line,
    )


def constant_targets(step: int, rows: int) -> Finding:
    return _finding(
        "constant_target",
        0.8,
        Evidence("rows seen, all with the same label", rows, "several labels", step),
        "Every example that was looked at has the same label: there is nothing to tell apart.",
        advice="look at how the labels are read and encoded",
    )


def symmetric(step: int, names: Sequence[str]) -> Finding:
    return _finding(
        "symmetric_init",
        0.9,
        Evidence("layers whose units all have the same weights", _listed(names), "none", step),
        "After some steps all units of these layers still have the same weights: they began alike, get the same "
        "gradient and stay alike. However wide such a layer is, it does the work of a single unit, or of none.",
        Remedy("draw the first weights at random", "layer.reset_parameters()  # PyTorch's own first weights"),
        severity="fatal",
    )


def unshuffled(step: int, found: Between) -> Finding:
    return _finding(
        "unshuffled_data",
        min(0.9, 0.4 + found.share),
        Evidence("share of the targets' variance that lies between batches", found.share, found.by_chance, step),
        "Batches differ in their targets by far more than chance: the rows are taken in an order that follows the "
        "targets, and each step unlearns what the last ones taught.",
        Remedy("shuffle the rows", "loader = DataLoader(data, batch_size=..., shuffle=True)"),
    )


def summed(step: int, rows: float, left: float) -> Finding:
    return _finding(
        "sum_reduction",
        0.7,
        Evidence("rows whose losses are added up for a step", rows, 1, step),
        "The loop hardly learned anything, and its loss is the sum over the batch: the steps are as many times longer "
        "as there are rows.",
        Remedy("take the mean", 'reduction="mean", or a learning rate divided by the batch size'),
        more=(Evidence("loss at the end, as a share of that of the best constant answer", left, "well below 1"),),
    )


def eval_mode(step: int, steps: int, names: Sequence[str], *, switched: bool, line: str) -> Finding:
    since = "since a validation put it there" if switched else "from the start"
    return _finding(
        "eval_mode_training",
        0.9 if switched else 0.75,
        Evidence("steps in a row taken in evaluation mode", steps, 0, step),
        f"What depends on the mode is trained in evaluation mode {since}: dropout and other noise do nothing, and "
        f"normalisation uses running statistics that are not updated ({_listed(names)}).",
        Remedy("put the model back in training mode", "model.train()  # at the start of every epoch"),
        line=line,
    )


def train_mode(step: int, names: Sequence[str], line: str, *, logged: bool = True) -> Finding:
    scored = "held-out data were scored" if logged else "the model ran without gradients, as it does for scores"
    return _finding(
        "train_mode_eval",
        0.85 if logged else 0.6,
        Evidence(f"modules in training mode while {scored}", _listed(names), "none", step),
        "Held-out scores are measured in training mode: dropout drops units, and normalisation uses the "
        "statistics of the held-out batch and learns from it. The scores are worse, and noisier, than the model is.",
        Remedy("evaluate in evaluation mode", "model.eval()\nwith torch.no_grad():\n    ...\nmodel.train()"),
        line=line,
    )


def tiny_batch(step: int, layer: str, values: int, rows: int, few: int) -> Finding:
    counted = "values a channel that its statistics are made of" if values <= few else "rows a batch"
    return _finding(
        "tiny_batch_norm",
        0.8 if values <= few else 0.6 if rows <= 2 else 0.5,
        Evidence(counted, values if values <= few else rows, "32 or more", step, layer),
        f"Batch normalisation takes its mean and variance from {rows} rows: that is mostly chance, so the same example "
        "comes out different in every batch, and quite different again in evaluation mode.",
        Remedy("normalise each example on its own", "nn.GroupNorm or nn.LayerNorm instead of nn.BatchNorm"),
        advice="or take batches of 32 or more",
    )


def undivided(step: int, count: int, line: str) -> Finding:
    return _finding(
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
    return _finding(
        "parameters_not_optimized",
        0.95,
        Evidence("parameters that get gradients and are in no optimizer that steps", _listed(names), "none", step),
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
    return _finding(
        "parameters_not_optimized",
        0.97 if whole else 0.7,
        Evidence("parameters that get gradients and are in no optimizer that steps", _listed(names), "none", step),
        what,
        Remedy("give all parameters to the optimizer", "optimizer = type(optimizer)(model.parameters(), lr=lr)"),
        severity="fatal" if whole else "serious",
        advice="if they are meant to stay fixed, freeze them with requires_grad_(False): it is faster",
    )


def frozen(step: int, names: Sequence[str]) -> Finding:
    return _finding(
        "frozen_parameters",
        0.6,
        Evidence("frozen layers whose weights are as they were drawn", _listed(names), "none", step),
        "These layers have requires_grad=False and hold the random weights they were made with: nobody trained them, "
        "and nobody will.",
        Remedy("let them learn", "model.requires_grad_(True)  # before the optimizer is made"),
        advice="if trained weights were meant to be there, load them",
    )


ASKED_FIRST = "step the optimizer first"
NEVER_ASKED = "call scheduler.step() after optimizer.step()"


def schedule_first(line: str) -> Finding:
    return _finding(
        "schedule_step_unit",
        0.9,
        Evidence("calls of scheduler.step() before the first optimizer.step()", 1, 0, 0),
        "The scheduler is asked before the optimizer: the first value of the schedule is skipped.",
        Remedy(ASKED_FIRST, "optimizer.step()\nscheduler.step()"),
        severity="minor",
        line=line,
    )


def schedule_unit(confidence: float, evidence: Evidence, explanation: str, remedy: str) -> Finding:
    return _finding("schedule_step_unit", confidence, evidence, explanation, Remedy(remedy, remedy))


def scale_collapse(step: int, skips: int) -> Finding:
    return _finding(
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
    return _finding(
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
    return _finding(
        "nan_source",
        0.6,
        Evidence("first step whose loss or gradient was not finite", step, "none", step),
        "The loss or the gradient became NaN or infinite, and the steps taken with it put NaN into the weights"
        + (f" of {_listed(layers)}." if layers else "."),
        severity="fatal",
        advice="skip steps whose gradient is not finite; torch.autograd.set_detect_anomaly(True) names the operation",
    )


def other_rows(step: int, shift: float, ratio: float) -> Finding:
    return _finding(
        "train_valid_mismatch",
        0.8,
        Evidence("shift of the held-out inputs, in deviations of the training inputs", shift, 0.0, step),
        "The held-out loss is far above the training loss, and what is held out is in other units: most of its columns "
        "lie where no training row does. What is learned does not hold there, and the scores say nothing about it.",
        Remedy(
            "the same numbers for both", "mean, std = X.mean(0), X.std(0)\nX, Xv = (X - mean) / std, (Xv - mean) / std"
        ),
        more=(Evidence("ratio of the deviations of the inputs", ratio, 1.0),),
    )


def dropped(layer: str, share: float) -> Finding:
    return _finding(
        "regularization_too_strong",
        0.65,
        Evidence("share of the units that dropout takes away", share, "at most 0.5", layer=layer),
        "The loop learned nothing, and dropout leaves so few units of this layer that what is left of a signal is "
        "mostly noise.",
        Remedy("drop less", "nn.Dropout(0.2)"),
    )


def flipped(step: int, loss: str, line: str) -> Finding:
    return _finding(
        "loss_mismatch",
        0.8,
        Evidence("gradient at the outputs", f"that of {loss}, with the other sign", "", step),
        f"The loss is {loss} with a minus before it: each step makes the right answers less likely. The loss falls "
        "without end while the model unlearns.",
        Remedy(
            "take the minus away", "loss = nn.functional.nll_loss(log_probabilities, y)  # or cross_entropy(logits, y)"
        ),
        severity="fatal",
        line=line,
    )


def not_logarithms(step: int, line: str) -> Finding:
    return _finding(
        "loss_mismatch",
        0.9,
        Evidence("outputs that the divergence is given", "probabilities", "their logarithms", step),
        "The Kullback-Leibler divergence of PyTorch takes logarithms of probabilities, and is given the probabilities "
        "themselves. What it compares is no divergence: it falls below zero, and its slope hardly depends on how "
        "wrong an answer is.",
        Remedy("give it logarithms", 'F.kl_div(F.log_softmax(scores, dim=1), targets, reduction="batchmean")'),
        line=line,
    )


def outweighed(step: int, times: float, left: float) -> Finding:
    return _finding(
        "regularization_too_strong",
        0.75,
        Evidence("what is added to the loss, as a multiple of it, at first", times, "well below 1", 0),
        "What the loop adds to its loss, such as a penalty on the weights, is larger than the loss itself. The descent "
        "went into that: it came down, and the loss that compares outputs with targets did not.",
        Remedy("weigh it less", "loss = loss_fn(model(x), y) + 0.001 * penalty  # a hundredth of the factor it has"),
        more=(Evidence("the loss alone, at the end, over that of the best constant answer", left, "well below 1"),),
    )


def one_hot_numbers(step: int, loss: str, left: float) -> Finding:
    return _finding(
        "loss_mismatch",
        0.7,
        Evidence("loss of classes coded as a one among zeros", loss, "cross-entropy", step),
        "The loop hardly learned anything: classes are coded as a one among zeros and compared number by number. "
        "Nearly all of these are zeros, so the loss of answering nothing is small, and its slope towards an answer is "
        "small too.",
        Remedy("cross-entropy on logits", "loss_fn = nn.CrossEntropyLoss()  # no softmax before it"),
        more=(Evidence("loss at the end, as a share of that of the best constant answer", left, "well below 1"),),
    )


def class_numbers(step: int, classes: int, skill: float, orders: float, line: str) -> Finding:
    return _finding(
        "loss_mismatch",
        0.75,
        Evidence("numbers of classes that the loss takes for amounts", classes, "cross-entropy", step),
        "The targets are numbers of classes, and the loss takes them for amounts: between class 0 and class 4 it wants "
        "2, which is another class. The inputs tell the classes, and know nothing of the order of their numbers.",
        Remedy("cross-entropy with an output a class", f"nn.Linear(..., {classes}) at the end, nn.CrossEntropyLoss()"),
        more=(
            Evidence("skill of the nearest mean in telling the classes", skill, "0 by chance"),
            Evidence("share of other orders that suit the inputs as well", orders, "near 0 for amounts"),
        ),
        line=line,
    )


def unscaled_input(step: int, excess: InputExcess) -> Finding:
    return _finding(
        "unscaled_input",
        _by_excess(excess.times),
        Evidence("root mean square of the inputs", excess.overall, 1.0, 0),
        "The loop hardly learned anything, and its inputs are not scaled: they are far from the size of about one that "
        "first weights are made for, or their columns differ in size. The loss is then steep along large columns and "
        "flat along small ones, and no learning rate suits both.",
        Remedy(
            "standardise the inputs",
            "mean, std = X.mean(0), X.std(0).clamp_min(1e-8)  # of the training data\nX = (X - mean) / std",
        ),
        more=(Evidence("size of the largest column against the spread of a middle one", excess.uneven, "about 1", 0),),
    )


def unscaled_target(step: int, excess: TargetExcess) -> Finding:
    mean, deviation = float(excess.mean[0]), float(excess.deviation[0])
    return _finding(
        "unscaled_target",
        _by_excess(excess.times),
        Evidence("mean and deviation of the targets", f"{mean:.3g}, {deviation:.3g}", "0, 1", 0),
        "The loop hardly learned anything, and the numbers to predict are not scaled: they are far from what a network "
        "with first weights puts out. Either the steps are far too short to get there, or the errors are so large that "
        "the gradients are too long for this learning rate.",
        Remedy("scale the targets", "y = (y - mean) / std\nprediction = model(x) * std + mean"),
        more=(
            Evidence("distance of the first outputs from their mean, in deviations", excess.away, "a few", 0),
            Evidence("spread of the first outputs against that of the targets", excess.wide, "about 1", 0),
        ),
    )


def _by_excess(times: float) -> float:
    return min(0.85, 0.5 + 0.2 * math.log10(times))


def pairing(found: Pairing, line: str) -> Finding:
    remedy = Remedy(found.title, found.patch)
    return _finding(
        found.cause, found.confidence, found.evidence, found.explanation, remedy, severity=found.severity, line=line
    )


def _finding(
    cause: str,
    confidence: float,
    evidence: Evidence,
    explanation: str,
    remedy: Remedy | None = None,
    *,
    severity: Severity = "serious",
    more: Sequence[Evidence] = (),
    line: str = "",
    advice: str = "",
) -> Finding:
    place = (Evidence("line", line),) if line else ()
    return Finding(cause, severity, confidence, (evidence, *more, *place), explanation, None, remedy, advice)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
