"""A reshape where a transpose was meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor.axes import Reshape
from fogline.doctor.case import open_case
from fogline.doctor.causes.flow.reshaped import reshaped
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion

RECIPE = fogline.Recipe(optimizer="adam", lr=0.02, batch_size=32, duration="12ep")
TIME, FEATURES = 10, 3


class Series(nn.Module):
    """A recurrent network that has time first, after ``turn``."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.head, self.turn = nn.GRU(FEATURES, 16), nn.Linear(16, 2), turn

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.gru(self.turn(x))[0].mean(0))
        return found


class Image(nn.Module):
    """A convolution of images with their channels last, after ``turn``."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.turn = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), turn

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv(self.turn(x)).relu().mean((2, 3)))
        return found


class Heads(nn.Module):
    """Attention with heads, after ``turn`` from (b, t, h, d) to (b, h, t, d)."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head, self.turn = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 2), turn

    def forward(self, x: Tensor) -> Tensor:
        rows, time = x.shape[:2]
        q, k, v = (self.turn(one.reshape(rows, time, 2, 4)) for one in self.qkv(self.embed(x)).chunk(3, -1))
        mixed = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        found: Tensor = self.head(mixed.transpose(1, 2).reshape(rows, time, 8).mean(1))
        return found


class HeadsAmongRows(nn.Module):
    """Attention with time first, as PyTorch's own: 8 heads of 5 numbers are taken for more rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(FEATURES, 40), nn.Linear(40, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.transpose(0, 1))
        time, rows, width = h.shape
        q = h.reshape(time, 8 * rows, 5).transpose(0, 1)
        mixed = ((q @ q.transpose(1, 2)).softmax(-1) @ q).transpose(0, 1).contiguous()
        found: Tensor = self.head(mixed.view(time, rows, width).mean(0))
        return found


class BothWays(nn.Module):
    """A recurrent network in both directions, and ``join`` of its last states, (2, b, h) to (b, 2 h)."""

    def __init__(self, join: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(FEATURES, 8, batch_first=True, bidirectional=True)
        self.head, self.join = nn.Linear(16, 2), join

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.join(self.gru(x)[1]))
        return found


def series(count: int = 300) -> tuple[Tensor, Tensor]:
    """Two classes that differ in the mean of the first feature."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(count, TIME, FEATURES, generator=source)
    y = torch.randint(0, 2, (count,), generator=source)
    x[..., 0] += 2.0 * y[:, None] - 1
    return x, y


def images(side: int = 8) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(200, side, side, 3, generator=source)
    return x, (x[..., 0].mean((1, 2)) > 0).long()


def exam_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Examination:
    return Examination(open_case(fogline.Task(model, nn.CrossEntropyLoss(), data), RECIPE))


def found_in(model: nn.Module, data: tuple[Tensor, Tensor]) -> Suspicion | None:
    return reshaped(exam_of(model, data))


def time_first(x: Tensor) -> Tensor:
    return x.view(x.shape[1], x.shape[0], -1)


def channels_first(x: Tensor) -> Tensor:
    return x.reshape(len(x), 3, x.shape[1], x.shape[2])


def heads_first(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[2], x.shape[1], x.shape[3])


def mended(model: nn.Module, found: Suspicion) -> nn.Module:
    edit = found.remedies[0].on_model
    assert edit is not None
    return edit(model)


@pytest.mark.parametrize(
    ("planted", "healthy", "data", "cause"),
    [
        (Series(time_first), Series(lambda x: x.transpose(0, 1)), series(), "shuffled_labels"),
        (
            BothWays(lambda h: h.view(h.shape[1], -1)),
            BothWays(lambda h: h.transpose(0, 1).flatten(1)),
            series(),
            "shuffled_labels",
        ),
        (
            Series(lambda x: x.flatten(1).view(TIME, -1, FEATURES)),
            Series(lambda x: x.transpose(0, 1)),
            series(),
            "shuffled_labels",
        ),
        (Image(channels_first), Image(lambda x: x.permute(0, 3, 1, 2)), images(), "shape_broadcast"),
        (Heads(heads_first), Heads(lambda x: x.transpose(1, 2)), series(), "shape_broadcast"),
    ],
)  # fmt: skip
def test_a_reshape_for_a_transpose_is_seen_and_mended(
    planted: nn.Module, healthy: nn.Module, data: tuple[Tensor, Tensor], cause: str
) -> None:
    found = found_in(planted, data)
    assert found is not None
    assert found.cause == cause
    assert not found.proof
    for rows in (1, 7, TIME, 64):  # as many rows as times, too, where the shape says nothing
        torch.testing.assert_close(mended(planted, found)(data[0][:rows]), healthy(data[0][:rows]))
    assert found_in(healthy, data) is None
    assert reshaped(exam_of(mended(planted, found), data)) is None


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (Series(lambda x: x.reshape(x.shape[0], x.shape[1], -1).transpose(0, 1)), series()),
        (Image(lambda x: x.reshape(len(x), 1, *x.shape[1:]).view(len(x), -1, 8, 8)[:, :3]), images()),
        # What was transposed right before, as channels are shuffled, may be meant.
        (Series(lambda x: x.transpose(1, 2).reshape(x.shape).transpose(0, 1)), series()),
        (Series(lambda x: x.transpose(1, 2).contiguous().view(x.shape).transpose(0, 1)), series()),
        # Both directions are taken apart, or a mean is taken over them.
        (BothWays(lambda h: h.view(1, 2, h.shape[1], -1)[-1].permute(1, 0, 2).reshape(h.shape[1], -1)), series()),
        (BothWays(lambda h: h.view(2, -1).view(2, h.shape[1], -1).mean(0).repeat(1, 2)), series()),
        # Axes of one number are nowhere in particular.
        (Image(lambda x: x[..., :1].reshape(len(x), 1, 8, 8).expand(-1, 3, -1, -1)), images()),
        # With 5 rows it is the same axes in another order, by chance.
        (HeadsAmongRows(), series()),
    ],
)  # fmt: skip
def test_sound_reshapes_are_left_alone(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    assert found_in(model, data) is None


@pytest.mark.parametrize(
    ("given", "made", "axes"),
    [
        ((5, 7, 3), (7, 5, 3), (1, 0, 2)),
        ((5, 8, 8, 3), (5, 3, 8, 8), (0, 3, 1, 2)),
        ((5, 4, 2, 4), (5, 2, 4, 4), (0, 2, 1, 3)),
        ((5, 7, 3), (5, 7, 3), None),
        ((5, 1, 7), (5, 7, 1), None),
        ((5, 7, 6), (5, 21, 2), None),
        ((5, 7, 3), (5, 21), None),
    ],
)
def test_axes_in_another_order(given: tuple[int, ...], made: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    assert Reshape("view", given, made).axes == axes


def test_the_order_of_weights_is_anybodys() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(2, FEATURES, TIME)), nn.Linear(TIME, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head((x[:, :2] @ self.weight.view(2, TIME, FEATURES)[0].T).mean(1))
            return found

    assert found_in(Weights(), series()) is None


def test_a_trial_shows_it() -> None:
    report = fogline.diagnose(fogline.Task(Series(time_first), nn.CrossEntropyLoss(), series()), RECIPE)
    assert [finding.cause for finding in report.findings] == ["shuffled_labels"]
    assert "transpose" in report.remedies[0].title
    healthy = Series(lambda x: x.transpose(0, 1))
    assert not fogline.diagnose(fogline.Task(healthy, nn.CrossEntropyLoss(), series()), RECIPE).findings


class Turned(nn.Module):
    """Channels first, and then rows: what is cut after that is of other rows."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.first = nn.Conv1d(FEATURES, 8, 3, padding=1), nn.Linear(8 * TIME, 2), first

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x.transpose(1, 2)).relu()
        found: Tensor = self.head((maps.permute(1, 0, 2) if self.first else maps.transpose(1, 2)).reshape(len(x), -1))
        return found


class Letters(nn.Module):
    """Scores (b, letters, t), in rows of letters."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.conv, self.last = nn.Embedding(6, 8), nn.Conv1d(8, 6, 3, padding=1), last

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.conv(self.embed(x).transpose(1, 2))
        return scores.transpose(1, 2).reshape(-1, 6) if self.last else scores.reshape(-1, 6)


def test_a_reshape_after_a_turn_deals_out_rows() -> None:
    x = torch.randn(64, TIME, FEATURES, generator=torch.Generator().manual_seed(0))
    task = fogline.Task(Turned(first=True), nn.CrossEntropyLoss(), (x, (x[:, 0, 0] > 0).long()))
    found = reshaped(Examination(open_case(task, RECIPE)))
    assert found is not None
    assert found.cause == "shuffled_labels"
    task = fogline.Task(Turned(first=False), nn.CrossEntropyLoss(), (x, (x[:, 0, 0] > 0).long()))
    assert reshaped(Examination(open_case(task, RECIPE))) is None


def test_channels_are_cut_as_if_they_were_last() -> None:
    x = torch.randint(6, (64, TIME), generator=torch.Generator().manual_seed(0))

    def loss(scores: Tensor, letters: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores, letters.reshape(-1))

    found = reshaped(Examination(open_case(fogline.Task(Letters(last=False), loss, (x, x)), RECIPE)))
    assert found is not None
    assert found.cause == "shape_broadcast"
    assert "movedim(1, -1)" in found.remedies[0].patch
    mended = found.remedies[0].on_model
    assert mended is not None
    assert torch.equal(mended(Letters(last=False))(x), Letters(last=True)(x))
    assert reshaped(Examination(open_case(fogline.Task(Letters(last=True), loss, (x, x)), RECIPE))) is None
