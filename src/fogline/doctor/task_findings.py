"""Findings of what a watched loop is to learn, in words: its data, its model, and the loss that compares the two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fogline.doctor.finding import Evidence, Finding, Remedy, untried
from fogline.doctor.graphs import Pairing
from fogline.doctor.scaling import InputExcess, TargetExcess
from fogline.doctor.sorting import Between
from fogline.errors import some


def straight(step: int, layers: int, line: str) -> Finding:
    return untried(
        "missing_activation",
        0.7,
        Evidence("layers with weights, and nothing that bends between them", layers, 1, step),
        f"{layers} layers with weights follow one another without an activation: together they are a single linear "
        "layer, and the model cannot learn anything that is not a straight line.",
        Remedy("put an activation between the layers", "nn.ReLU() after every layer but the last"),
        line=line,
    )


def constant_targets(step: int, rows: int) -> Finding:
    return untried(
        "constant_target",
        0.8,
        Evidence("rows seen, all with the same label", rows, "several labels", step),
        "Every example that was looked at has the same label: there is nothing to tell apart.",
        advice="look at how the labels are read and encoded",
    )


def symmetric(step: int, names: Sequence[str]) -> Finding:
    return untried(
        "symmetric_init",
        0.9,
        Evidence("layers whose units all have the same weights", some(names), "none", step),
        "After some steps all units of these layers still have the same weights: they began alike, get the same "
        "gradient and stay alike. However wide such a layer is, it does the work of a single unit, or of none.",
        Remedy("draw the first weights at random", "layer.reset_parameters()  # PyTorch's own first weights"),
        severity="fatal",
    )


def unshuffled(step: int, found: Between) -> Finding:
    return untried(
        "unshuffled_data",
        min(0.9, 0.4 + found.share),
        Evidence("share of the targets' variance that lies between batches", found.share, found.by_chance, step),
        "Batches differ in their targets by far more than chance: the rows are taken in an order that follows the "
        "targets, and each step unlearns what the last ones taught.",
        Remedy("shuffle the rows", "loader = DataLoader(data, batch_size=..., shuffle=True)"),
    )


def summed(step: int, rows: float, left: float) -> Finding:
    return untried(
        "sum_reduction",
        0.7,
        Evidence("rows whose losses are added up for a step", rows, 1, step),
        "The loop hardly learned anything, and its loss is the sum over the batch: the steps are as many times longer "
        "as there are rows.",
        Remedy("take the mean", 'reduction="mean", or a learning rate divided by the batch size'),
        more=(Evidence("loss at the end, as a share of that of the best constant answer", left, "well below 1"),),
    )


def other_rows(step: int, shift: float, ratio: float) -> Finding:
    return untried(
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


def copies(step: int, found: int, rows: int) -> Finding:
    return untried(
        "duplicate_leak",
        0.75,
        Evidence("held-out rows that are copies of training rows", f"at least {found} of {rows}", "0", step),
        f"At least {found} of {rows} held-out rows are among the training rows too. The score on them says how well "
        "rows are remembered, not how well new ones are predicted: it is too good.",
        Remedy(
            "split before rows are repeated",
            "train, held_out = train_test_split(rows)  # first\ntrain = oversampled(train)  # then, these alone",
        ),
    )


def empty_codes(step: int) -> Finding:
    return untried(
        "regularization_too_strong",
        0.75,
        Evidence("rows that are told apart in what is rebuilt", "none", "all", step),
        "Every row has the same code, of mean 0 and variance 1, and is rebuilt as the same picture of all: the "
        "divergence of the codes outweighs the error of what is rebuilt, and is pleased by codes that say nothing.",
        Remedy(
            "sum both terms over the numbers of a row, and take the mean of the rows",
            'error = F.mse_loss(rebuilt, x, reduction="sum") / len(x)\n'
            "divergence = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(1).mean()\n"
            "loss = error + divergence  # or weigh the divergence less",
        ),
    )


def far_targets(step: int, far: float, line: str) -> Finding:
    return untried(
        "unscaled_target",
        0.7,
        Evidence("way that the outputs have to go, in their own size", far, "about 1", step),
        "The loss wants the outputs far away from where they are, all in the same direction, and pulls no less than it "
        "did at first: the targets are numbers so large that the steps of the loop will not get there.",
        Remedy(
            "scale the targets",
            "mean, std = y.mean(0), y.std(0)\ny = (y - mean) / std\nprediction = model(x) * std + mean",
        ),
        line=line,
    )


def dropped(layer: str, share: float) -> Finding:
    return untried(
        "regularization_too_strong",
        0.65,
        Evidence("share of the units that dropout takes away", share, "at most 0.5", layer=layer),
        "The loop learned nothing, and dropout leaves so few units of this layer that what is left of a signal is "
        "mostly noise.",
        Remedy("drop less", "nn.Dropout(0.2)"),
    )


def flipped(step: int, loss: str, line: str) -> Finding:
    return untried(
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
    return untried(
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
    return untried(
        "regularization_too_strong",
        0.75,
        Evidence("what is added to the loss, as a multiple of it, at first", times, "well below 1", 0),
        "What the loop adds to its loss, such as a penalty on the weights, is larger than the loss itself. The descent "
        "went into that: it came down, and the loss that compares outputs with targets did not.",
        Remedy("weigh it less", "loss = loss_fn(model(x), y) + 0.001 * penalty  # a hundredth of the factor it has"),
        more=(Evidence("the loss alone, at the end, over that of the best constant answer", left, "well below 1"),),
    )


def one_hot_numbers(step: int, loss: str, left: float) -> Finding:
    return untried(
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
    return untried(
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
    return untried(
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
    return untried(
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
    return untried(
        found.cause, found.confidence, found.evidence, found.explanation, remedy, severity=found.severity, line=line
    )
