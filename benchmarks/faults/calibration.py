"""The calibration half: wine, digits, diabetes, moons, a sine, waves, token counts and XOR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from faults import data, losses, nets, plants, scores
from faults.data import Sets
from faults.nets import Detach
from faults.plants import both, habits, inputs, loss, metric, net, raw_inputs, raw_targets, recipe, targets
from faults.program import Fault, Healthy, Plant, Program, Score, Setting, together
from fogline import Recipe

CE = nn.CrossEntropyLoss()
SOFTMAX = partial(nn.Softmax, dim=1)


def _setting(model: Callable[..., nn.Module], loss: object, sets: Sets, score: Score, **how: Any) -> Setting:
    recipe = Recipe(**{"schedule": "constant", **how})
    made = Setting(model, loss, *sets[:3], recipe, score)
    return made.but(units=sets.units, target_units=sets.target_units)


def _wine() -> Setting:
    model = partial(nets.mlp, sizes=(13, 32, 3))
    return _setting(
        model, CE, data.wine(), scores.balanced_accuracy, optimizer="adam", lr=0.01, batch_size=16, duration="30ep"
    )


def _digits() -> Setting:
    model = partial(nets.mlp, sizes=(64, 64, 32, 10))
    how = {"optimizer": "momentum", "lr": 0.1, "batch_size": 64, "duration": "15ep"}
    return _setting(model, CE, data.digits(), scores.balanced_accuracy, **how)


def _digits_cnn() -> Setting:
    model = partial(nets.cnn, channels=(8, 16), classes=10)
    how = {"optimizer": "adam", "lr": 0.01, "batch_size": 64, "duration": "15ep", "schedule": "linear"}
    return _setting(model, CE, data.digit_images(), scores.balanced_accuracy, **how)


def _digits_norm() -> Setting:
    model = partial(nets.cnn, channels=(8, 16), classes=10, norm=True)
    how = {"optimizer": "momentum", "lr": 0.05, "batch_size": 50, "duration": "8ep"}
    return _setting(model, CE, data.digit_images(), scores.balanced_accuracy, **how)


def _diabetes() -> Setting:
    model = partial(nets.mlp, sizes=(10, 16, 1))
    how = {"optimizer": "sgd", "lr": 0.02, "batch_size": 32, "duration": "60ep"}
    return _setting(model, nn.MSELoss(), data.diabetes(), scores.r_squared, **how)


def _sine() -> Setting:
    model = partial(nets.mlp, sizes=(1, 32, 32, 1), activation=nn.Tanh)
    how = {"optimizer": "adam", "lr": 0.02, "batch_size": 32, "duration": "80ep", "schedule": "auto"}
    return _setting(model, nn.MSELoss(), data.sine(), scores.r_squared, **how)


def _moons() -> Setting:
    model = partial(nets.mlp, sizes=(2, 16, 16, 1))
    how = {"optimizer": "adam", "lr": 0.01, "batch_size": 32, "duration": "40ep"}
    return _setting(model, nn.BCEWithLogitsLoss(), data.moons(), scores.balanced_accuracy, **how)


def _waves() -> Setting:
    model = partial(nets.Recurrent, cell=nn.GRU, hidden=24, outputs=3)
    how = {"optimizer": "adam", "lr": 0.01, "batch_size": 32, "duration": "18ep"}
    return _setting(model, CE, data.waves(), scores.balanced_accuracy, **how)


def _majority() -> Setting:
    model = partial(nets.Encoder, outputs=3)
    how = {"optimizer": "adam", "lr": 0.005, "batch_size": 32, "duration": "10ep"}
    return _setting(model, CE, data.majority(), scores.balanced_accuracy, **how)


def _xor() -> Setting:
    model = partial(nets.mlp, sizes=(2, 16, 1), activation=nn.Tanh)
    how = {"optimizer": "adam", "lr": 0.03, "batch_size": 4, "duration": "300ep"}
    return _setting(model, nn.BCEWithLogitsLoss(), data.xor(), scores.balanced_accuracy, **how)


def _autoencoder() -> Setting:
    model = partial(nets.mlp, sizes=(64, 32, 12, 32, 64), activation=nn.ELU)
    how = {"optimizer": "adam", "lr": 0.01, "batch_size": 50, "duration": "50ep", "schedule": "linear"}
    return _setting(model, losses.reconstruct, data.digits(), scores.reconstruction, **how)


def _deep() -> Setting:
    model = partial(nets.mlp, sizes=(64, 32, 32, 32, 32, 32, 10), init=plants.kaiming())
    how = {"optimizer": "momentum", "lr": 0.03, "batch_size": 64, "duration": "15ep"}
    return _setting(model, CE, data.digits(), scores.balanced_accuracy, **how)


def _by_hand(setting: Setting, **how: object) -> Setting:
    return habits(**how)(setting)


WINE = Healthy("mlp-wine", "mlp", _wine, 0.9)
DIGITS = Healthy("mlp-digits", "mlp", _digits, 0.9)
CNN = Healthy("cnn-digits", "cnn", _digits_cnn, 0.92)
NORM = Healthy("cnn-digits-norm", "cnn", _digits_norm, 0.92)
DIABETES = Healthy("regression-diabetes", "regression", _diabetes, 0.48)
SINE = Healthy("regression-sine", "regression", _sine, 0.94)
MOONS = Healthy("mlp-moons", "mlp", _moons, 0.92)
WAVES = Healthy("rnn-waves", "rnn", _waves, 0.9)
MAJORITY = Healthy("transformer-majority", "transformer", _majority, 0.85)
XOR = Healthy("mlp-xor", "mlp", _xor, 0.95)
AUTO = Healthy("mlp-autoencoder", "mlp", _autoencoder, 0.5)
DEEP = Healthy("mlp-deep-digits", "mlp", _deep, 0.88)

L_DIGITS = Healthy("loop-digits", "loop", lambda: _by_hand(_digits()), 0.9)
L_SINE = Healthy("loop-sine", "loop", lambda: _by_hand(_sine()), 0.93)
L_CNN = Healthy("loop-cnn", "loop", lambda: _by_hand(_digits_norm(), loader=True), 0.92)
L_WAVES = Healthy("loop-waves", "loop", lambda: _by_hand(_waves()), 0.9)
L_DROP = Healthy("loop-dropout", "loop", lambda: both(net(dropout=0.3), habits(loader=True))(_digits()), 0.9)


def _softmax_pair(classes: int) -> Plant:
    """A Keras port: softmax and one-hot rows with the squared error."""
    return both(net(last=SOFTMAX), plants.one_hot(classes), loss(nn.MSELoss()))


_PLAIN_WINE = WINE.vary("plain-sgd", recipe(optimizer="sgd", lr=0.1))
_PLAIN_DIGITS = DIGITS.vary("plain-sgd", recipe(optimizer="sgd", lr=0.5, duration="20ep"))
_PLAIN_SINE = SINE.vary("relu-momentum", both(net(activation=nn.ReLU), recipe(optimizer="momentum", lr=0.03)), 0.9)
_SMALL_DIABETES = DIABETES.vary("adam", recipe(optimizer="adam", lr=0.01, duration="30ep"))
_DECAY = DIGITS.vary("adamw-decay", recipe(optimizer="adamw", lr=0.003, weight_decay=0.05))
_DROPOUT = DIGITS.vary("dropout", net(dropout=0.2))
_BCE = MOONS.vary("sigmoid-bce", loss(nn.BCELoss(), last=nn.Sigmoid))
_HANDMADE = MOONS.vary("handmade-bce", loss(losses.binary_entropy, last=nn.Sigmoid))
_HOT = WINE.vary("one-hot-softmax-mse", _softmax_pair(3))
_CLIPPED = DIGITS.vary("keras-crossentropy", loss(losses.clipped_probabilities_of_labels, last=SOFTMAX))
_TANH_RNN = WAVES.vary("plain-rnn", both(net(cell=nn.RNN), recipe(lr=0.005, duration="25ep")), 0.8)
_SCHEDULED = L_DIGITS.vary("step-schedule", habits(schedule=lambda o: lr_scheduler.StepLR(o, step_size=5, gamma=0.3)))
_EXPONENTIAL = L_WAVES.vary("exponential-schedule", habits(schedule=lambda o: lr_scheduler.ExponentialLR(o, 0.93)))
_ACCUMULATED = L_DIGITS.vary("accumulated", habits(accumulate=4))
_ACCUMULATED_CNN = L_CNN.vary("accumulated", habits(accumulate=2))
_SCALED = L_DIGITS.vary("mixed-precision", habits(scaler=lambda: torch.amp.GradScaler("cpu")))
_SCALED_SINE = L_SINE.vary("mixed-precision", habits(scaler=lambda: torch.amp.GradScaler("cpu")), 0.85)
_RMS = DIABETES.vary("gd-full-batch", recipe(optimizer="gd", lr=0.1, batch_size="full", duration="250ep"))

HEALTHY = [
    WINE, DIGITS, CNN, NORM, DIABETES, SINE, MOONS, WAVES, MAJORITY, XOR, AUTO, DEEP,
    L_DIGITS, L_SINE, L_CNN, L_WAVES, L_DROP,
    _PLAIN_WINE, _PLAIN_DIGITS, _PLAIN_SINE, _SMALL_DIABETES, _DECAY, _DROPOUT, _BCE, _HANDMADE, _HOT, _CLIPPED,
    _TANH_RNN, _SCHEDULED, _EXPONENTIAL, _ACCUMULATED, _ACCUMULATED_CNN, _SCALED, _SCALED_SINE, _RMS,
    # at the edge of stability, loss falling
    WINE.vary("full-batch-edge", recipe(optimizer="gd", lr=1.0, batch_size="full", duration="200ep")),
    DIGITS.vary("full-batch-edge", recipe(optimizer="gd", lr=0.8, batch_size="full", duration="300ep"), 0.88),
    # a rate within three times the best
    CNN.vary("rate-thrice", recipe(lr=0.015)),
    SINE.vary("rate-third", recipe(lr=0.007, duration="100ep")),
    # noisy and small
    WINE.vary("batch-of-4", recipe(batch_size=4, lr=0.003, duration="15ep")),
    MOONS.vary("batch-of-4", recipe(batch_size=4, lr=0.01, duration="15ep")),
    WINE.vary("30-rows", both(plants.rows(30), recipe(batch_size=10, duration="60ep")), 0.85),
    # units that frighten
    DIABETES.vary("target-in-units",
        both(raw_targets(), recipe(optimizer="adam", lr=0.05, duration="80ep", schedule="linear"))),
    NORM.vary("pixels-to-255", raw_inputs()),
    WINE.vary("norm-of-raw-columns", both(raw_inputs(), net(norm=True, first=partial(nn.BatchNorm1d, 13)))),
    # losses and heads that look wrong and are right
    DIGITS.vary("log-softmax-twice", net(last=partial(nn.LogSoftmax, dim=1))),
    DIGITS.vary("nll", loss(nn.NLLLoss(), last=partial(nn.LogSoftmax, dim=1))),
    WINE.vary("sum-of-losses", both(loss(nn.CrossEntropyLoss(reduction="sum")), recipe(optimizer="adam", lr=0.01))),
    AUTO.vary("summed-over-pixels", loss(losses.reconstruct_summed)),
    AUTO.vary("sigmoid-output", net(last=nn.Sigmoid)),
    DIABETES.vary(
        "softplus-output", both(raw_targets(0.01), net(last=nn.Softplus), recipe(optimizer="adam", lr=0.01))
    ),
    DIGITS.vary("negative-loss",
        both(loss(losses.negative_agreement), recipe(optimizer="adam", lr=0.005, duration="30ep")), 0.85),
    MOONS.vary("hinge", both(targets(lambda y: 2 * y - 1), loss(losses.hinge))),
    # recipes
    DIGITS.vary("warm-up", recipe(warmup=0.2, lr=0.2, schedule="cosine")),
    CNN.vary("constant", recipe(schedule="constant", lr=0.005)),
    DIGITS.vary("few-epochs", recipe(optimizer="adam", lr=0.01, batch_size=32, duration="5ep")),
    MAJORITY.vary("clipped", recipe(clip=1.0, schedule="linear")),
    # data
    MOONS.vary("imbalanced", both(plants.rare(1, 25), recipe(duration="100ep")), 0.8),
    WINE.vary("tanh", net(activation=nn.Tanh)),
]  # fmt: skip

HIDDEN = "the held-out rows are wrong, not the training: the figures mislead, the weights are those of the twin"
CHANCE = "the held-out rows are wrong: it is left to chance how good the weights are that do best on them"
FIGURES = "only the figure that is reported is wrong"
GATED = "the step of a batch that is not finite is refused, so that the other rows train the model"

FAULTS = [
    # step
    Fault("lr_too_high", "mlp-digits", recipe(lr=1.5), recipe(lr=20.0)),
    Fault("lr_too_high", "cnn-digits", recipe(lr=0.3), recipe(lr=3.0)),
    Fault("lr_too_high", "regression-sine", recipe(lr=3.0), recipe(lr=30.0)),
    Fault("lr_too_high", "transformer-majority", recipe(lr=0.2), recipe(lr=1.0)),
    Fault("lr_too_low", "mlp-digits", recipe(lr=5e-4), recipe(lr=1e-5)),
    Fault("lr_too_low", "rnn-waves", recipe(lr=2e-4), recipe(lr=1e-5)),
    Fault("lr_too_low", "regression-sine", recipe(lr=1e-4), recipe(lr=1e-6)),
    Fault("bad_schedule", "loop-digits/step-schedule",
        habits(schedule=lambda o: lr_scheduler.ExponentialLR(o, 0.15)),
        habits(schedule=lambda o: lr_scheduler.StepLR(o, 1, 0.01)), "lr_too_low"),
    Fault("bad_schedule", "loop-sine", habits(schedule=lambda o: lr_scheduler.ExponentialLR(o, 0.3)),
        habits(schedule=lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1.6**epoch))),
    Fault("too_few_steps", "mlp-digits", recipe(duration="1ep", lr=0.02), recipe(duration="2st")),
    Fault("too_few_steps", "rnn-waves", recipe(duration="3ep"), recipe(duration="5st")),
    Fault("too_few_steps", "mlp-xor", recipe(duration="5ep"), recipe(duration="2ep")),
    Fault("optimizer_mismatch", "mlp-digits", recipe(optimizer="adadelta", lr=0.001),
        recipe(optimizer="rprop", lr=0.01, batch_size=16), "lr_too_low batch_too_small", tag="others"),
    Fault("optimizer_mismatch", "transformer-majority", recipe(optimizer="sgd", lr=0.01),
        recipe(optimizer="adagrad", lr=1e-4), "lr_too_low"),
    Fault("batch_too_small", "mlp-digits/plain-sgd", recipe(batch_size=2, duration="3ep"),
        recipe(batch_size=1, duration="2ep"), "lr_too_high"),
    Fault("batch_too_small", "regression-diabetes", recipe(batch_size=1, lr=0.1, duration="8ep"),
        recipe(batch_size=1, lr=0.2, duration="8ep"), "lr_too_high"),
    Fault("batch_too_large", "mlp-digits", recipe(batch_size=500), recipe(batch_size="full", duration="8ep"),
        "too_few_steps lr_too_low"),
    Fault("batch_too_large", "transformer-majority", recipe(batch_size="full"),
        recipe(batch_size="full", duration="5ep"), "too_few_steps lr_too_low"),
    Fault("regularization_too_strong", "mlp-digits", recipe(weight_decay=0.05), recipe(weight_decay=1.0)),
    Fault("regularization_too_strong", "mlp-digits/dropout", net(dropout=0.8), net(dropout=0.95)),
    Fault("regularization_too_strong", "regression-sine", recipe(optimizer="adamw", weight_decay=10.0),
        recipe(optimizer="adamw", weight_decay=100.0)),
    # flow
    Fault("vanishing_gradient", "mlp-deep-digits", net(activation=nn.Sigmoid, init=None),
        net(activation=nn.Sigmoid, init=plants.scaled(0.5)), "bad_init saturated_units"),
    Fault("vanishing_gradient", "rnn-waves/plain-rnn", net(init=plants.scaled(0.3, "rnn")),
        net(init=plants.scaled(0.02, "rnn")), "bad_init"),
    Fault("vanishing_gradient", "regression-sine", net(sizes=(1, *[16] * 8, 1), activation=nn.Sigmoid),
        net(sizes=(1, *[16] * 14, 1), activation=nn.Sigmoid), "bad_init saturated_units"),
    Fault("exploding_gradient", "mlp-deep-digits", net(init=plants.normal(0.6)), net(init=plants.normal(2.0)),
        "bad_init lr_too_high"),
    Fault("exploding_gradient", "rnn-waves/plain-rnn",
        net(nonlinearity="relu", init=plants.scaled(4.0, "weight_hh")),
        net(nonlinearity="relu", init=plants.scaled(8.0, "weight_hh")), "bad_init lr_too_high"),
    Fault("dead_units", "mlp-digits/plain-sgd", net(init=plants.sunk(-3.0)), net(init=plants.sunk(-20.0)), "bad_init"),
    Fault("dead_units", "cnn-digits", net(init=plants.sunk(-2.0)), net(init=plants.sunk(-20.0)), "bad_init"),
    Fault("dead_units", "regression-sine/relu-momentum", net(init=plants.sunk(-1.5)), net(init=plants.sunk(-10.0)),
        "bad_init"),
    Fault("saturated_units", "regression-sine", net(init=plants.scaled(20.0)), net(init=plants.scaled(200.0)),
        "bad_init"),
    Fault("saturated_units", "mlp-digits", net(activation=nn.Sigmoid, init=plants.normal(3.0)),
        net(activation=nn.Sigmoid, init=plants.normal(30.0)), "bad_init vanishing_gradient"),
    Fault("bad_init", "mlp-digits", net(init=plants.uniform(0, 1)), net(init=plants.normal(10.0)),
        "exploding_gradient dead_units lr_too_high"),
    Fault("bad_init", "cnn-digits", net(init=plants.normal(1e-4)), net(init=plants.uniform(0, 2)),
        "exploding_gradient vanishing_gradient lr_too_high dead_units"),
    Fault("bad_init", "regression-sine/relu-momentum", net(init=plants.normal(1.5)), net(init=plants.normal(5.0)),
        "exploding_gradient lr_too_high"),
    Fault("symmetric_init", "mlp-digits", net(init=plants.constant(0.05)), net(init=plants.constant(0.0)),
        "bad_init dead_units saddle"),
    Fault("symmetric_init", "regression-sine", net(init=plants.constant(0.3)), net(init=plants.constant(0.0)),
        "bad_init saddle"),
    Fault("symmetric_init", "mlp-xor", net(init=plants.constant(0.5)), net(init=plants.constant(0.0)),
        "bad_init saddle"),
    Fault("missing_activation", "mlp-moons", net(activation=None), None, "underfitting"),
    Fault("missing_activation", "regression-sine", None, net(activation=None), "underfitting"),
    Fault("missing_activation", "mlp-xor", None, net(activation=None), "underfitting"),
    Fault("bottleneck", "mlp-digits", net(sizes=(64, 64, 2, 10)), net(sizes=(64, 64, 1, 10)), "underfitting"),
    Fault("bottleneck", "cnn-digits", net(hidden=2), net(hidden=1), "underfitting"),
    # output
    Fault("output_activation", "regression-diabetes", net(last=nn.ReLU), net(last=nn.Sigmoid), "dead_units"),
    Fault("output_activation", "regression-sine", net(last=nn.ReLU), net(last=SOFTMAX),
        "softmax_single_unit dead_units"),
    Fault("output_activation", "mlp-digits", net(last=nn.ReLU), net(last=nn.Sigmoid), "dead_units double_softmax"),
    Fault("double_softmax", "mlp-digits", net(last=SOFTMAX), both(net(last=SOFTMAX), recipe(lr=0.01)),
        "output_activation"),
    Fault("double_softmax", "cnn-digits", both(net(last=SOFTMAX), recipe(lr=0.001)),
        both(net(last=SOFTMAX), recipe(lr=3e-4)), "output_activation lr_too_low too_few_steps"),
    Fault("double_softmax", "loop-digits", net(last=SOFTMAX), both(net(last=SOFTMAX), recipe(lr=0.01)),
        "output_activation"),
    Fault("softmax_single_unit", "mlp-moons/sigmoid-bce", None, net(last=SOFTMAX), "output_activation"),
    Fault("softmax_single_unit", "mlp-xor", None, both(net(last=SOFTMAX), loss(nn.MSELoss())), "output_activation"),
    Fault("loss_mismatch", "mlp-digits",
        both(plants.column(), net(sizes=(64, 64, 32, 1)), loss(nn.MSELoss()), recipe(lr=0.01)), loss(nn.NLLLoss()),
        "output_activation output_width"),
    Fault("loss_mismatch", "mlp-moons", loss(nn.HingeEmbeddingLoss()), loss(losses.hinge)),
    Fault("loss_mismatch", "rnn-waves", None, loss(nn.NLLLoss()), "output_activation output_width"),
    Fault("output_width", "mlp-wine", net(sizes=(13, 32, 1)), net(sizes=(13, 32, 2))),
    Fault("output_width", "regression-diabetes", both(net(sizes=(10, 16, 3)), loss(losses.squares)),
        net(sizes=(10, 16, 4)), "shape_broadcast",
        {"mild": "each of the outputs learns the target, and their mean is as good"}),
    Fault("sum_reduction", "mlp-digits/plain-sgd", loss(nn.CrossEntropyLoss(reduction="sum")),
        both(loss(nn.CrossEntropyLoss(reduction="sum")), recipe(lr=0.5)), "lr_too_high"),
    Fault("sum_reduction", "regression-diabetes", loss(losses.summed_squares),
        both(loss(nn.MSELoss(reduction="sum")), recipe(batch_size=130)), "lr_too_high exploding_gradient"),
    Fault("shape_broadcast", "regression-diabetes", both(plants.flat(), loss(losses.squares)), plants.flat()),
    Fault("shape_broadcast", "regression-sine", both(plants.flat(), loss(losses.absolute)),
        both(plants.flat(), loss(losses.squares))),
    Fault("shape_broadcast", "loop-sine", plants.flat(), both(plants.flat(), loss(losses.squares))),
    # data
    Fault("unscaled_input", "mlp-wine/plain-sgd", raw_inputs(0.02), raw_inputs()),
    Fault("unscaled_input", "mlp-wine/tanh", raw_inputs(), raw_inputs(100.0)),
    Fault("unscaled_input", "regression-diabetes", raw_inputs(0.02), raw_inputs()),
    Fault("unscaled_input", "mlp-digits", inputs(lambda x: 16 * x), raw_inputs()),
    Fault("unscaled_target", "regression-diabetes/adam", raw_targets(), raw_targets(1000.0),
        "lr_too_low too_few_steps"),
    Fault("unscaled_target", "regression-diabetes", raw_targets(), raw_targets(100.0),
        "lr_too_high exploding_gradient"),
    Fault("unscaled_target", "regression-sine", targets(lambda y: 100 * y + 300), targets(lambda y: 1e5 * y),
        "lr_too_low too_few_steps"),
    Fault("train_valid_mismatch", "mlp-wine", raw_inputs(0.01, ("valid",)), raw_inputs(sets=("valid",)),
        harmless=CHANCE),
    Fault("train_valid_mismatch", "mlp-digits", inputs(lambda x: 1 - x, ("valid",)),
        targets(lambda y: 9 - y, ("valid",))),
    Fault("train_valid_mismatch", "regression-diabetes", raw_inputs(0.02, ("valid",)), raw_targets(sets=("valid",)),
        harmless=CHANCE),
    Fault("label_noise", "mlp-digits", plants.wrong_labels(0.55, 10), plants.wrong_labels(0.75, 10)),
    Fault("label_noise", "mlp-moons", plants.wrong_labels(0.35, 2), plants.wrong_labels(0.45, 2)),
    Fault("label_noise", "rnn-waves", plants.wrong_labels(0.45, 3), plants.wrong_labels(0.55, 3)),
    Fault("shuffled_labels", "mlp-digits", plants.misaligned(0.7), plants.misaligned(1.0), "label_noise"),
    Fault("shuffled_labels", "regression-sine", plants.misaligned(0.6), plants.misaligned(1.0), "label_noise"),
    Fault("shuffled_labels", "transformer-majority", plants.misaligned(0.7), plants.misaligned(1.0), "label_noise"),
    Fault("constant_target", "mlp-wine", None, targets(lambda y: 0 * y, plants.LEARNT)),
    Fault("constant_target", "regression-diabetes", None, targets(lambda y: 0 * y + 1, plants.LEARNT)),
    Fault("constant_target", "mlp-moons", None, targets(lambda y: (0.6 * y).long().float(), plants.LEARNT)),
    Fault("class_imbalance", "mlp-digits", plants.rare([3, 5, 8], 8), plants.rare([3, 5, 8], 2)),
    Fault("class_imbalance", "mlp-moons", plants.rare(1, 10), plants.rare(1, 3)),
    Fault("class_imbalance", "cnn-digits", plants.rare([1, 2, 9], 8), plants.rare([1, 2, 9], 2)),
    Fault("unshuffled_data", "mlp-digits", plants.in_order(), both(plants.in_order(), recipe(lr=0.3))),
    Fault("unshuffled_data", "cnn-digits", both(plants.in_order(), recipe(lr=0.003)), plants.in_order()),
    Fault("unshuffled_data", "regression-sine/relu-momentum", both(plants.in_order(), recipe(batch_size=16)),
        both(plants.in_order(), recipe(batch_size=8))),
    Fault("nan_in_data", "mlp-wine", plants.holes(0.01, column=3), plants.holes(0.4, column=3),
        harmless={"mild": GATED}),
    Fault("nan_in_data", "regression-diabetes", plants.holes(0.01), plants.holes(0.3), harmless={"mild": GATED}),
    Fault("nan_in_data", "loop-digits", plants.holes(0.001, column=5), plants.holes(0.1, column=5)),
    Fault("duplicate_leak", "mlp-wine", plants.leak(0.5), plants.leak(1.0), harmless=HIDDEN),
    Fault("duplicate_leak", "regression-diabetes", plants.leak(0.5), plants.leak(1.0), harmless=HIDDEN),
    # loop
    Fault("missing_zero_grad", "loop-digits", habits(zero_grad="epoch"), habits(zero_grad="never"), "lr_too_high"),
    Fault("missing_zero_grad", "loop-sine", habits(zero_grad="epoch"), habits(zero_grad="never"), "lr_too_high"),
    Fault("parameters_not_optimized", "loop-digits", habits(optimized="stale"), habits(optimized="head"),
        harmless={"mild": "the body learns to suit a head that stays as it was drawn"}),
    Fault("parameters_not_optimized", "loop-sine", habits(optimized="head"), habits(optimized="first")),
    Fault("frozen_parameters", "regression-sine", net(init=plants.frozen), None),
    Fault("frozen_parameters", "cnn-digits", net(init=plants.frozen), net(init=lambda m: m.requires_grad_(False))),
    Fault("frozen_parameters", "loop-waves", habits(freeze="body"), None),
    Fault("detached_graph", "loop-sine", habits(detach="often"), habits(detach="loss")),
    Fault("detached_graph", "regression-sine", net(before_head=Detach), net(last=Detach), "frozen_parameters"),
    Fault("detached_graph", "rnn-waves", net(before_head=Detach), net(last=Detach), "frozen_parameters"),
    Fault("eval_mode_training", "loop-cnn", habits(train_mode="once"), habits(train_mode="never"),
        harmless={"mild": "the statistics of the first epoch serve"}),
    Fault("eval_mode_training", "loop-dropout", habits(train_mode="once"), habits(train_mode="never"),
        harmless="this net does as well without its dropout"),
    Fault("train_mode_eval", "loop-cnn", None, habits(eval_mode=False), harmless=FIGURES),
    Fault("train_mode_eval", "loop-dropout", both(net(dropout=0.1), habits(eval_mode=False)),
        habits(eval_mode=False), harmless=FIGURES),
    Fault("tiny_batch_norm", "cnn-digits-norm", recipe(batch_size=3, duration="1ep"),
        recipe(batch_size=2, duration="1ep"), "batch_too_small"),
    Fault("tiny_batch_norm", "loop-cnn", recipe(batch_size=3, duration="1ep"), recipe(batch_size=1, duration="1ep"),
        "batch_too_small"),
    Fault("accumulation_scale", "loop-digits/accumulated", habits(divide=False, accumulate=8),
        habits(divide=False, accumulate=32), "lr_too_high"),
    Fault("accumulation_scale", "loop-cnn/accumulated", habits(divide=False, accumulate=10),
        both(habits(divide=False, accumulate=25), recipe(duration="3ep")), "lr_too_high"),
    Fault("schedule_step_unit", "loop-digits/step-schedule", habits(schedule_every="step"),
        both(habits(schedule_every="step"), recipe(batch_size=16)), "bad_schedule lr_too_low"),
    Fault("schedule_step_unit", "loop-waves/exponential-schedule", habits(schedule_every="step"),
        both(habits(schedule_every="step"), recipe(batch_size=16, duration="8ep")), "bad_schedule lr_too_low"),
    Fault("amp_scale_collapse", "loop-digits/mixed-precision",
        both(habits(scaler=lambda: torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.9))),
        inputs(lambda x: 3e5 * x, ("train",))),
    Fault("amp_scale_collapse", "loop-sine/mixed-precision",
        habits(
            scaler=lambda: torch.amp.GradScaler("cpu", growth_interval=1, growth_factor=2.0**20, backoff_factor=0.9)),
        targets(lambda y: 1e25 * y, ("train",))),
    # number
    Fault("nan_source", "regression-sine", loss(losses.log_one_plus), loss(losses.log_ratio),
        "log_of_zero loss_mismatch"),
    Fault("nan_source", "mlp-moons", net(first=lambda: _Root()), net(before_head=lambda: _Normalise())),
    Fault("log_of_zero", "mlp-digits/keras-crossentropy",
        both(loss(losses.probabilities_of_labels), inputs(lambda x: 30 * x)),
        both(loss(losses.probabilities_of_labels), inputs(lambda x: 1000 * x)), "unscaled_input"),
    Fault("log_of_zero", "mlp-wine/one-hot-softmax-mse", both(loss(losses.one_hot_entropy), recipe(lr=1.0)),
        both(loss(losses.one_hot_entropy), raw_inputs(10.0)), "unscaled_input lr_too_high"),
    Fault("log_of_zero", "mlp-moons/handmade-bce", inputs(lambda x: 300 * x), inputs(lambda x: 1e4 * x),
        "unscaled_input"),
    Fault("epsilon_underflow", "mlp-moons/handmade-bce",
        both(loss(losses.binary_entropy_with_epsilon), net(init=plants.scaled(6.0))),
        both(loss(losses.entropy_with_tiny_epsilon), net(init=plants.scaled(20.0))), "log_of_zero bad_init"),
    Fault("epsilon_underflow", "mlp-digits",
        both(loss(losses.labels_entropy_with_epsilon), net(init=plants.scaled(8.0))),
        both(loss(losses.labels_entropy_with_epsilon), net(init=plants.scaled(16.0))), "log_of_zero bad_init"),
    # fit
    Fault("overfitting", "mlp-digits", both(plants.rows(60), recipe(duration="100ep", batch_size=20)),
        both(plants.rows(20), recipe(duration="200ep", batch_size=20))),
    Fault("overfitting", "regression-diabetes/adam",
        both(plants.rows(30), net(sizes=(10, 128, 128, 1)), recipe(duration="200ep")),
        both(plants.rows(14), net(sizes=(10, 256, 256, 1)), recipe(duration="200ep"))),
    Fault("underfitting", "regression-sine", net(sizes=(1, 2, 1)), net(sizes=(1, 1)), "bottleneck missing_activation"),
    Fault("underfitting", "mlp-moons", net(sizes=(2, 2, 1)), net(sizes=(2, 1)), "bottleneck missing_activation"),
    Fault("metric_mismatch", "mlp-digits", metric("accuracy", losses.elementwise_accuracy),
        metric("accuracy", losses.accuracy_over_rows), harmless=FIGURES),
    Fault("metric_mismatch", "regression-diabetes", metric("accuracy", losses.rounded_accuracy),
        metric("accuracy", losses.exact_accuracy), harmless=FIGURES),
    Fault("metric_mismatch", "mlp-moons", metric("accuracy", losses.broadcast_accuracy),
        metric("accuracy", losses.argmax_of_one), harmless=FIGURES),
    Fault("saddle", "mlp-autoencoder",
        both(net(activation=None, init=plants.scaled(0.05)), recipe(optimizer="sgd", lr=0.05)),
        both(net(activation=None, init=plants.scaled(0.001)), recipe(optimizer="sgd", lr=0.05)),
        "bad_init vanishing_gradient optimizer_mismatch"),
    Fault("saddle", "regression-sine", both(net(init=plants.normal(0.01)), recipe(optimizer="sgd", lr=0.05)),
        both(net(init=plants.normal(1e-4)), recipe(optimizer="sgd", lr=0.05)),
        "bad_init vanishing_gradient symmetric_init"),
    # a third kind of network for what two have above
    Fault("batch_too_small", "cnn-digits", recipe(batch_size=2, duration="2ep", schedule="constant"),
        recipe(batch_size=1, duration="1ep", schedule="constant"), "lr_too_high"),
    Fault("bottleneck", "rnn-waves", None, net(hidden=1), "underfitting"),
    Fault("class_imbalance", "rnn-waves", plants.rare(1, 2), plants.rare(1, 1)),
    Fault("duplicate_leak", "cnn-digits", plants.leak(0.5), plants.leak(1.0), harmless=HIDDEN),
    Fault("epsilon_underflow", "rnn-waves",
        both(loss(losses.labels_entropy_with_epsilon), net(init=plants.scaled(100.0, "head"))),
        both(loss(losses.labels_entropy_with_epsilon), net(init=plants.scaled(1000.0, "head"))),
        "log_of_zero bad_init"),
    Fault("exploding_gradient", "regression-diabetes", net(sizes=(10, 32, 32, 32, 1), init=plants.normal(1.0)),
        net(sizes=(10, 32, 32, 32, 1), init=plants.normal(3.0)), "bad_init lr_too_high"),
    Fault("log_of_zero", "cnn-digits",
        both(loss(losses.probabilities_of_labels, last=SOFTMAX), net(init=plants.scaled(6.0))),
        both(loss(losses.probabilities_of_labels, last=SOFTMAX), net(init=plants.scaled(20.0))), "bad_init"),
    Fault("loss_mismatch", "cnn-digits", both(plants.column(), net(classes=1), loss(nn.MSELoss())),
        loss(nn.NLLLoss()), "output_width output_activation"),
    Fault("metric_mismatch", "cnn-digits", metric("accuracy", losses.elementwise_accuracy),
        metric("accuracy", losses.accuracy_over_rows), harmless=FIGURES),
    Fault("sum_reduction", "cnn-digits-norm", loss(nn.CrossEntropyLoss(reduction="sum")),
        both(loss(nn.CrossEntropyLoss(reduction="sum")), recipe(batch_size=250)), "lr_too_high"),
    Fault("unscaled_target", "loop-sine", targets(lambda y: 100 * y + 300), targets(lambda y: 1e5 * y),
        "lr_too_low too_few_steps"),
    # several at once
    Fault("softmax_single_unit unscaled_input too_few_steps", "mlp-moons/sigmoid-bce", None,
        both(net(last=SOFTMAX), inputs(lambda x: 100 * x + 50), recipe(duration="2ep")), "output_activation"),
    Fault("unscaled_input lr_too_high", "mlp-wine/plain-sgd", None, both(raw_inputs(), recipe(lr=1.0))),
    Fault("missing_activation output_activation", "regression-sine", None, both(net(activation=None, last=nn.ReLU)),
        "underfitting"),
    Fault("loss_mismatch unscaled_input", "mlp-digits", both(_softmax_pair(10), raw_inputs()), None,
        "output_activation"),
    Fault("lr_too_low too_few_steps", "cnn-digits", None, both(recipe(lr=1e-5, duration="2ep"))),
    Fault("unscaled_target output_activation", "regression-diabetes/adam", None,
        both(raw_targets(), net(last=nn.Sigmoid))),
    Fault("double_softmax lr_too_low too_few_steps", "mlp-digits", None,
        both(net(last=SOFTMAX), recipe(lr=0.001, duration="3ep"))),
    Fault("missing_zero_grad double_softmax", "loop-digits", None, both(habits(zero_grad="never"), net(last=SOFTMAX))),
]  # fmt: skip


class _Root(nn.Module):
    """A feature made with a root of columns that can be negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x + 1.6)


class _Normalise(nn.Module):
    """Hidden units divided by their deviation over the batch, which is 0 for a unit that is off throughout."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / x.std(0)


PROGRAMS: list[Program] = together("calibration", HEALTHY, FAULTS)
