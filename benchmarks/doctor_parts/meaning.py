"""What the alarms of each tool mean in our identifiers of causes.

An alarm stands for every cause that the tool's own documentation, message or remedies name for it, in the widest
sense: where it says "check the learning rate, the optimizer and that targets match outputs", any of those is right.
What names no cause of ours stands for none, but counts as an alarm. ``ADVICE`` is about speed or style; it is no
alarm, so that nobody is charged for a hint about tensor cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Causes = tuple[str, ...]

_NUMBERS = ("nan_source", "log_of_zero", "epsilon_underflow", "nan_in_data")
_NOT_REACHED = ("detached_graph", "frozen_parameters", "parameters_not_optimized")
_SHAPES = ("output_width", "loss_mismatch", "shape_broadcast")
_HEAD = ("output_activation", "double_softmax", "softmax_single_unit")

ADVICE = {
    "torch-audit": {
        "TA000": "a validator crashed",
        "TA200": "sizes that are not multiples of 8",
        "TA201": "channels-last layout",
        "TA202": "device placement",
        "TA203": "mixed precision",
        "TA400": "a bias before a normalization costs memory",
        "TA404": "even kernels",
    },
}

MEANING: Mapping[str, Mapping[str, Causes]] = {
    "torchmortem": {
        "gradient_starvation": ("vanishing_gradient", "dead_units", "bad_init", "lr_too_low"),
        "instability_feedback_loop": ("exploding_gradient", "lr_too_high", "bad_init"),
        "representation_bottleneck": ("bottleneck", "underfitting", "regularization_too_strong"),
        "curvature_traps": ("lr_too_high", "bad_schedule", "saddle"),
        "Vanishing gradients detected": ("vanishing_gradient", "saturated_units", "bad_init"),
        "Exploding gradients detected": ("exploding_gradient", "lr_too_high", "bad_init"),
        "Gradient stalling": ("vanishing_gradient", "dead_units", "saturated_units", "bad_init", *_NOT_REACHED[:2]),
        "High gradient noise (low SNR)": ("batch_too_small", "lr_too_high"),
        "Training divergence detected": ("lr_too_high", "exploding_gradient", "bad_schedule", *_NUMBERS),
        "Loss plateau detected": ("saddle", "lr_too_low", "bad_schedule", "optimizer_mismatch"),
        "Dead units": ("dead_units", "lr_too_high", "bad_init"),
        "Activation saturation": ("saturated_units", "vanishing_gradient", "lr_too_high", "bad_init"),
        "Update ratio too low": ("lr_too_low", "vanishing_gradient", "optimizer_mismatch", "frozen_parameters"),
        "Update ratio too high": ("lr_too_high", "exploding_gradient", "bad_schedule", "optimizer_mismatch"),
        "Weight norm explosion": ("lr_too_high", "exploding_gradient"),
        "Stagnant weight norms": ("lr_too_low", "vanishing_gradient", *_NOT_REACHED),
        "Inter-layer weight norm imbalance": ("bad_init", "optimizer_mismatch"),
        "Rank collapse": ("bottleneck", "regularization_too_strong", "lr_too_high", "optimizer_mismatch"),
    },
    "torch-audit": {
        "TA100": ("lr_too_high", "amp_scale_collapse", "bad_init", "exploding_gradient", *_NUMBERS),
        "TA102": ("exploding_gradient", "lr_too_high"),
        "TA104": _NOT_REACHED[:2],
        "TA105": ("dead_units", "bad_init", "lr_too_high"),
        "TA301": ("unscaled_input", "train_valid_mismatch"),
        "TA302": ("unscaled_input",),
        "TA303": (),
        "TA304": ("tiny_batch_norm", "batch_too_small"),
        "TA305": (),
        "TA401": ("regularization_too_strong", "optimizer_mismatch"),
        "TA402": ("regularization_too_strong",),
        "TA403": ("regularization_too_strong",),
        "TA405": ("dead_units", "bad_init", "symmetric_init"),
        "TA500": ("parameters_not_optimized", "frozen_parameters"),
        "TA501": ("tiny_batch_norm", "train_mode_eval"),
    },
    "trainwatch": {
        "Loss variance spike": ("lr_too_high", "exploding_gradient", "batch_too_small", "bad_schedule", *_NUMBERS),
        "Possible memory leak": (),
        "Possible DataLoader bottleneck": (),
    },
    "mldoct": {
        "exploding_gradients": ("exploding_gradient", "lr_too_high"),
        "vanishing_gradients": ("vanishing_gradient", "saturated_units"),
        "high_variance_batch": ("batch_too_small",),
        "label_noise": ("label_noise", "shuffled_labels"),
        "lr_too_high": ("lr_too_high",),
        "lr_too_low": ("lr_too_low",),
        "missing_zero_grad": ("missing_zero_grad",),
        "overfitting": ("overfitting",),
        "underfitting": ("underfitting", "bottleneck", "regularization_too_strong", "lr_too_low"),
        "Vanishing Gradients": ("vanishing_gradient", "saturated_units", "dead_units"),
        "Exploding Gradients": ("exploding_gradient", "lr_too_high"),
        "Overfit Pinpointer": ("overfitting",),
        "High Loss Volatility": ("lr_too_high", "bad_schedule"),
    },
    "torchtest2": {
        "forward": _SHAPES,
        "output_finite": (*_NUMBERS, "bad_init", "exploding_gradient", "unscaled_input"),
        "output_varies": (
            "dead_units", "saturated_units", "symmetric_init", "bad_init", "shape_broadcast", "softmax_single_unit",
        ),
        "eval_determinism": ("train_mode_eval",),
        "loss": (*_SHAPES, *_HEAD, *_NUMBERS, *_NOT_REACHED[:2]),
        "initial_loss": ("bad_init", "unscaled_input", "duplicate_leak"),
        "optimizer_coverage": ("parameters_not_optimized", "frozen_parameters"),
        "gradient_flow": ("detached_graph", "frozen_parameters", "dead_units", "symmetric_init", "vanishing_gradient"),
        "gradient_magnitude": (
            "exploding_gradient", "bad_init", "unscaled_input", "unscaled_target", "lr_too_high", *_NUMBERS,
        ),
        "params_change": (*_NOT_REACHED, "lr_too_low", "vanishing_gradient", "dead_units", "symmetric_init"),
        "frozen_params": ("frozen_parameters",),
        "input_dependency": ("dead_units", "saturated_units", "symmetric_init", "unscaled_input"),
        "batch_independence": ("shape_broadcast", "eval_mode_training", "tiny_batch_norm", "softmax_single_unit"),
        "overfit_batch": (
            "lr_too_high", "lr_too_low", "optimizer_mismatch", "loss_mismatch", "output_width", *_HEAD, "bottleneck",
            "underfitting", "missing_activation", "too_few_steps", "nan_source",
        ),
    },
    "torchtest": {
        "VariablesChangeException": (*_NOT_REACHED, "lr_too_low", "vanishing_gradient", "dead_units", "symmetric_init"),
        "NaNTensorException": (*_NUMBERS, "exploding_gradient", "bad_init", "unscaled_input", "lr_too_high"),
        "InfTensorException": (*_NUMBERS, "exploding_gradient", "bad_init", "unscaled_input", "lr_too_high"),
        "raised": (*_SHAPES, *_NOT_REACHED[:2]),  # by the model, the loss or the backward pass
    },
    "torchdiag": {
        "all frozen": ("frozen_parameters",),
        "forward failed": _SHAPES,
        "loss failed": _SHAPES,
        "backward failed": _NOT_REACHED[:2],
        "loss not finite": (*_NUMBERS, "exploding_gradient", "bad_init", "unscaled_input"),
        "no parameters changed": (*_NOT_REACHED, "lr_too_low", "vanishing_gradient", "dead_units", "symmetric_init"),
        "gradient no_grad": _NOT_REACHED[:2],
        "gradient vanish": ("vanishing_gradient", "dead_units", "saturated_units", "symmetric_init"),
        "gradient explode": ("exploding_gradient", "lr_too_high", "bad_init"),
        "dead neurons": ("dead_units", "lr_too_high", "bad_init", "unscaled_input"),
    },
}  # fmt: skip

SEVERE = ("CRITICAL", "ERROR", "FATAL", "FAIL", "CONDITION", "ISSUE")
"""Levels at which a tool says that something is wrong, not only that it may be."""


def counted(tool: str, checks: Sequence[str]) -> list[str]:
    """The checks that are alarms, each once, in the tool's own order.

    >>> counted("torch-audit", ["TA200", "TA100", "TA100"])
    ['TA100']
    """
    return list(dict.fromkeys(check for check in checks if check not in ADVICE.get(tool, {})))


def right(tool: str, checks: Sequence[str], causes: Sequence[str]) -> bool:
    """Whether one of these checks stands for one of these causes; a check that is not in the table is an error.

    >>> right("mldoct", ["overfitting"], ["lr_too_high"])
    False
    """
    return any(cause in causes for check in checks for cause in MEANING[tool][check])
