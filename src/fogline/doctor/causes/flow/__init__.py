"""Causes in what flows through the layers and what flows back: activations, first weights, widths."""

from __future__ import annotations

from fogline.doctor.causes.flow.activations import dead_units, missing_activation, saturated_units
from fogline.doctor.causes.flow.attention import saturated_attention
from fogline.doctor.causes.flow.drowned import drowned
from fogline.doctor.causes.flow.gradients import exploding_gradient, vanishing_gradient
from fogline.doctor.causes.flow.invariant import invariant
from fogline.doctor.causes.flow.masks import mask_turned
from fogline.doctor.causes.flow.reshaped import reshaped
from fogline.doctor.causes.flow.rows import rows_mixed
from fogline.doctor.causes.flow.unseen import missed_inputs, unseen_inputs
from fogline.doctor.causes.flow.weights import bad_init, symmetric_init
from fogline.doctor.causes.flow.width import bottleneck

ON_ONE_BATCH = (
    symmetric_init, bad_init, dead_units, saturated_units, saturated_attention, missing_activation, reshaped,
    rows_mixed, mask_turned, unseen_inputs, drowned,
)  # fmt: skip
IN_MOTION = (vanishing_gradient, exploding_gradient, dead_units, bottleneck, missed_inputs, invariant)
