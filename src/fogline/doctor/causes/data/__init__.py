"""Causes that lie in the rows: their units, order, labels, gaps, and how they were split."""

from __future__ import annotations

from fogline.doctor.causes.data.columns import loud_column
from fogline.doctor.causes.data.dense import rare_at_places, targets_of_other_rows
from fogline.doctor.causes.data.gaps import constant_target, nan_in_data
from fogline.doctor.causes.data.images import dealt_out
from fogline.doctor.causes.data.labels import label_noise, shuffled_labels, unrelated_labels, wrong_numbers
from fogline.doctor.causes.data.order import class_imbalance, unshuffled_data
from fogline.doctor.causes.data.outliers import far_off_targets
from fogline.doctor.causes.data.several import outweighed_targets
from fogline.doctor.causes.data.split import duplicate_leak, train_valid_mismatch
from fogline.doctor.causes.data.units import unscaled_input, unscaled_target

ON_ONE_BATCH = (
    nan_in_data, constant_target, unscaled_input, unscaled_target, loud_column, unshuffled_data, train_valid_mismatch,
    duplicate_leak, shuffled_labels, dealt_out,
)  # fmt: skip
IN_MOTION = (
    class_imbalance, label_noise, far_off_targets, wrong_numbers, unrelated_labels, targets_of_other_rows,
    rare_at_places, outweighed_targets,
)  # fmt: skip
