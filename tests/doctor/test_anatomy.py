"""One batch taken apart: what stands at the end, between the layers and in the loss; nothing is changed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline.doctor.anatomy import dissect
from fogline.doctor.surgery import Wrapped, replaced

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Functional(nn.Module):
    """Everything by function: nothing but the layers can be seen among the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.softmax(self.second(torch.tanh(self.first(inputs))), dim=1)


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), ("softmax",)),
        (Functional(), ("softmax",)),
        (nn.Linear(4, 3), ()),
        (nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), ("log_softmax",)),
        (nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), ("sigmoid",)),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten()), ("relu",)),
    ],
)
def test_head(model: nn.Module, head: tuple[str, ...]) -> None:
    anatomy = dissect(model, nn.CrossEntropyLoss(), (X, Y))
    assert anatomy.head == head
    assert "log_softmax" in anatomy.in_loss
    assert not anatomy.error


@pytest.mark.parametrize(
    ("model", "pairs"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), [("0", "1")]),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), []),
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)), [("0", "3")]),
        (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)), []),
        (Functional(), []),
        (nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(4, 3)), [("1", "3")]),
    ],
)
def test_layers_with_nothing_that_bends_between(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    assert dissect(model, nn.CrossEntropyLoss(), (X, Y)).pairs == pairs


def test_attention_is_no_missing_bend() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Unflatten(0, (4, 4)), layer, nn.Flatten(0, 1), nn.Linear(8, 3))
    anatomy = dissect(model, nn.CrossEntropyLoss(), (X, Y))
    assert not anatomy.error
    assert [pair for pair in anatomy.pairs if pair[1].startswith("2.")] == []


def test_gradients_and_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    anatomy = dissect(model, nn.CrossEntropyLoss(), (X, Y))
    assert anatomy.frozen == ["0.weight"]
    assert set(anatomy.gradients) == {"0.bias", "2.weight", "2.bias"}
    assert [layer.name for layer in anatomy.layers] == ["0", "1", "2"]
    assert anatomy.layers[-1].gradient is not None
    expected = F.cross_entropy(model(X), Y)
    assert anatomy.loss == pytest.approx(expected.item())


def test_nothing_of_the_model_is_touched() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    dissect(model, nn.CrossEntropyLoss(), (X, Y))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("model", "loss", "stage"),
    [
        (nn.Linear(5, 3), nn.CrossEntropyLoss(), "forward"),
        (nn.Linear(4, 3), nn.BCELoss(), "loss"),
        (nn.Linear(4, 3), lambda outputs, targets: outputs.argmax(1).float().mean(), "backward"),
        (nn.Linear(4, 3), nn.CrossEntropyLoss(reduction="none"), "backward"),
    ],
)
def test_a_program_that_fails_says_where(model: nn.Module, loss: object, stage: str) -> None:
    anatomy = dissect(model, loss, (X, Y))
    assert anatomy.stage == stage
    assert anatomy.error


def test_names_are_those_inside_the_wrappers() -> None:
    inside = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    batch = (torch.ones(5, 3), torch.zeros(5, 1))
    plain = dissect(inside, nn.MSELoss(), batch)
    wrapped = dissect(Wrapped(inside, before=nn.Identity(), after=nn.Identity()), nn.MSELoss(), batch)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in wrapped.layers]
    for name, _ in wrapped.model.named_parameters():
        gradient = wrapped.gradients.get(name)
        assert gradient is not None
        assert torch.equal(gradient, plain.gradients[name.removeprefix("wrapped_model.")])  # type: ignore[arg-type]
    assert wrapped.model.get_submodule("2") is wrapped.layers[-1].module
    edited = replaced(wrapped.model, "2", lambda _: nn.Linear(4, 7))
    assert edited(torch.ones(5, 3)).shape == (5, 7)
