"""Causes between the last layer and the loss."""

from __future__ import annotations

from fogline.doctor.causes.output.dealt import compared_with_other_rows
from fogline.doctor.causes.output.ends import output_activation, silent_output
from fogline.doctor.causes.output.mismatch import loss_mismatch, numbers_for_labels
from fogline.doctor.causes.output.pairings import wrongly_paired
from fogline.doctor.causes.output.reduction import sum_reduction, summed_and_short
from fogline.doctor.causes.output.shape import output_width, shape_broadcast
from fogline.doctor.causes.output.softmax import double_softmax, softmax_single_unit
from fogline.doctor.causes.output.survival import risk_sets
from fogline.doctor.causes.output.tables import made_into_tables

ON_ONE_BATCH = (
    double_softmax, softmax_single_unit, output_activation, loss_mismatch, output_width, shape_broadcast,
    made_into_tables, compared_with_other_rows, sum_reduction, wrongly_paired, risk_sets,
)  # fmt: skip
IN_MOTION = (silent_output, numbers_for_labels, summed_and_short)
