"""Units of inputs: which numbers of a row share one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fogline.doctor.scaling import scales_of


@pytest.mark.parametrize(
    ("first", "shape"),
    [
        (nn.Conv1d(3, 8, 5), (1, 3)),  # which the model gets after it has moved the axes
        (nn.Conv1d(40, 8, 5), (40, 1)),
        (nn.GRU(3, 8), (1, 3)),
        (nn.Linear(3, 8), (1, 3)),
        (nn.Linear(120, 8), (1, 1)),
    ],
)
def test_features_of_a_sequence(first: nn.Module, shape: tuple[int, ...]) -> None:
    rows = torch.randn(200, 40, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 1e4])
    found = scales_of(rows, first)
    assert tuple(found.shape) == shape
    if shape == (1, 3):
        torch.testing.assert_close(found.deviation.float(), torch.tensor([1.0, 100.0, 1e4]), rtol=0.1, atol=0)
