"""Causes in the loop: what is not trained, in which mode, on how many rows at a time.

A recipe's own loop clears gradients, divides accumulated losses and counts its schedule in steps, so the causes
``missing_zero_grad``, ``accumulation_scale`` and ``schedule_step_unit`` belong to loops that are watched; see
:mod:`fogline.doctor.watching`.
"""

from __future__ import annotations

from fogline.doctor.causes.loop.cut import cut_inside, detached_graph
from fogline.doctor.causes.loop.learned import frozen_parameters, loose_weights, parameters_not_optimized
from fogline.doctor.causes.loop.modes import eval_mode_training, stale_statistics, train_mode_eval
from fogline.doctor.causes.loop.normalisation import tiny_batch_norm
from fogline.doctor.causes.loop.scale import amp_scale_collapse
from fogline.doctor.causes.loop.slopes import slopes_without_graph

ON_ONE_BATCH = (
    amp_scale_collapse,
    frozen_parameters,
    parameters_not_optimized,
    detached_graph,
    slopes_without_graph,
    eval_mode_training,
    train_mode_eval,
    tiny_batch_norm,
)
IN_MOTION = (frozen_parameters, loose_weights, cut_inside, stale_statistics)
