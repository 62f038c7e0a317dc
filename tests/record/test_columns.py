"""The columns of an example against the obvious way to compute them: one example at a time, by autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.descent.objective import Objective
from fogline.record.columns import Columns, Shown, plan, shown_by

ROWS, FEATURES = 7, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def columns_of(model: nn.Module, loss: Any, batch: Any, *, labels: bool = False) -> tuple[Columns, dict[str, Tensor]]:
    """What a forward pass shows of the batch."""
    objective = Objective(model, loss)
    columns = plan(objective, batch, labels)
    assert isinstance(columns, Columns), columns
    with columns.watching() as hidden:
        forward = objective.forward(batch)
    shown = shown_by(forward, batch, hidden[-1] if hidden else None)
    assert columns.fits(shown)
    return columns, dict(zip(columns.names, columns(shown), strict=True))


def net(outputs: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs))


def head_gradient_norms(model: nn.Sequential, loss: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """Norm of the gradient of each example's loss with respect to weight and bias of the last layer."""
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        gradients = torch.autograd.grad(loss(model(x[None]), y[None]), list(model[-1].parameters()))
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
    return torch.stack(norms)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(reduction="sum")])
def test_labels(loss: Any) -> None:
    model, inputs, labels = net(4), drawn(ROWS, FEATURES), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    columns, found = columns_of(model, loss, (inputs, labels))
    logits = model(inputs).detach()
    rows = torch.arange(ROWS)
    rivals = logits.scatter(1, labels[:, None], -torch.inf)
    assert columns.kind == "classification"
    assert columns.names == ("loss", "margin", "confidence", "correct", "predicted", "gradient_norm")
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(found["margin"], logits[rows, labels] - rivals.amax(1))
    torch.testing.assert_close(found["confidence"], logits.softmax(1)[rows, labels])
    assert torch.equal(found["predicted"], logits.argmax(1).float())
    assert torch.equal(found["correct"], (logits.argmax(1) == labels).float())
    torch.testing.assert_close(found["gradient_norm"], head_gradient_norms(model, loss, inputs, labels))


def test_a_sure_example_keeps_the_digits_of_its_gradient() -> None:
    head = nn.Linear(1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [1.0]]))
        head.bias.zero_()
    _, found = columns_of(head, nn.CrossEntropyLoss(), (torch.tensor([[20.0]]), torch.tensor([1])))
    wrong = torch.tensor(20.0, dtype=torch.float64).neg().sigmoid()
    expected = (2**0.5 * wrong * (20.0**2 + 1) ** 0.5).float()
    torch.testing.assert_close(found["gradient_norm"][0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3, 4])), nn.NLLLoss()])
def test_losses_that_are_no_plain_cross_entropy(loss: Any) -> None:
    model = nn.Sequential(net(4), nn.LogSoftmax(1)) if isinstance(loss, nn.NLLLoss) else net(4)
    inputs, labels = drawn(ROWS, FEATURES), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    _, found = columns_of(model, loss, (inputs, labels))
    each = torch.stack([loss(model(x[None]), y[None]) for x, y in zip(inputs, labels, strict=True)])
    weight = loss.weight[labels] if loss.weight is not None else 1.0
    torch.testing.assert_close(found["loss"], (weight * each).detach())


def test_soft_targets() -> None:
    model, inputs, soft = net(3), drawn(ROWS, FEATURES), drawn(ROWS, 3, seed=2).softmax(1)
    _, found = columns_of(model, nn.CrossEntropyLoss(), (inputs, soft))
    logits, labels = model(inputs).detach(), soft.argmax(1)
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, soft, reduction="none"))
    assert torch.equal(found["correct"], (logits.argmax(1) == labels).float())
    torch.testing.assert_close(found["gradient_norm"], head_gradient_norms(model, F.cross_entropy, inputs, soft))


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_single_logit(shape: tuple[int, ...], probabilities: bool) -> None:
    inputs, targets = drawn(ROWS, FEATURES), torch.tensor([0.0, 1, 1, 0, 1, 0, 1]).reshape(shape)
    linear = net(1)
    layers: list[nn.Module] = [linear, *([nn.Sigmoid()] if probabilities else []), nn.Unflatten(0, (-1,))]
    model = nn.Sequential(*layers) if len(shape) == 2 else nn.Sequential(*layers[:-1], nn.Flatten(0))
    loss = nn.BCELoss() if probabilities else nn.BCEWithLogitsLoss()
    columns, found = columns_of(model, loss, (inputs, targets))
    logits, yes = linear(inputs).detach().flatten(), targets.flatten() > 0.5
    assert columns.classes == 2
    torch.testing.assert_close(found["margin"], torch.where(yes, logits, -logits))
    torch.testing.assert_close(found["confidence"], torch.where(yes, logits, -logits).sigmoid())
    assert torch.equal(found["predicted"], (logits > 0).float())
    expected = head_gradient_norms(linear, lambda o, t: F.binary_cross_entropy_with_logits(o.flatten(), t.flatten()),
                                   inputs, targets)  # fmt: skip
    torch.testing.assert_close(found["gradient_norm"], expected)


def test_classes_of_pixels_are_averaged_over_those_that_count() -> None:
    model, inputs = nn.Conv2d(2, 3, 1), drawn(4, 2, 3, 3)
    labels = torch.randint(3, (4, 3, 3), generator=torch.Generator().manual_seed(3))
    labels[0, 0, 0] = labels[1] = -100
    columns, found = columns_of(model, nn.CrossEntropyLoss(), (inputs, labels))
    logits = model(inputs).detach()
    counted = labels != -100
    each = F.cross_entropy(logits, labels, reduction="none")
    assert columns.names == ("loss", "margin", "confidence", "correct")  # no linear layer, no single prediction
    torch.testing.assert_close(found["loss"][0], each[0][counted[0]].mean())
    assert torch.isnan(found["loss"][1])
    right = (logits.argmax(1) == labels).float()
    torch.testing.assert_close(found["correct"][2:], right[2:].flatten(1).mean(1))


def test_the_gradient_norm_of_tokens_is_averaged() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(FEATURES, 4)

        def forward(self, x: Tensor) -> Tensor:  # (rows, tokens, features) -> (rows, classes, tokens)
            scores: Tensor = self.head(x).transpose(1, 2)
            return scores

    model, inputs = Tokens(), drawn(3, 2, FEATURES)
    labels = torch.tensor([[0, 1], [2, 3], [1, 1]])
    _, found = columns_of(model, nn.CrossEntropyLoss(), (inputs, labels))
    wrong = model.head(inputs).softmax(-1) - F.one_hot(labels, 4)
    expected = (wrong.norm(dim=-1) * (inputs.square().sum(-1) + 1).sqrt()).mean(1)
    torch.testing.assert_close(found["gradient_norm"], expected.detach())


@pytest.mark.parametrize("outputs", [1, 3])
def test_numbers(outputs: int) -> None:
    model, inputs, targets = net(outputs), drawn(ROWS, FEATURES), drawn(ROWS, outputs, seed=2)
    columns, found = columns_of(model, nn.L1Loss(), (inputs, targets))
    off = (model(inputs) - targets).detach()
    assert columns.names == ("loss", "residual", "gradient_norm")
    torch.testing.assert_close(found["loss"], off.abs().mean(1))
    torch.testing.assert_close(found["residual"], off[:, 0] if outputs == 1 else off.square().mean(1).sqrt())
    half_square = lambda o, t: (o - t).square().sum() / 2  # noqa: E731
    torch.testing.assert_close(found["gradient_norm"], head_gradient_norms(model, half_square, inputs, targets))


def test_a_loss_of_ones_own_is_taken_example_by_example() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).pow(4).sum(1).mean()

    model, inputs, targets = net(2), drawn(ROWS, FEATURES), drawn(ROWS, 2, seed=2)
    _, found = columns_of(model, loss, (inputs, targets))
    torch.testing.assert_close(found["loss"], (model(inputs) - targets).pow(4).sum(1).detach())


def test_a_loss_that_is_no_mean_over_examples_has_no_parts() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.mean() - targets.mean()).square() + outputs.var()

    _, found = columns_of(net(2), loss, (drawn(ROWS, FEATURES), drawn(ROWS, 2, seed=2)))
    assert bool(torch.isnan(found["loss"]).all())
    assert bool(torch.isfinite(found["residual"]).all())


def test_a_layer_before_the_last_is_no_head() -> None:
    model = nn.Sequential(net(4), nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten())
    columns, _ = columns_of(model, nn.CrossEntropyLoss(), (drawn(3, FEATURES), torch.tensor([0, 1, 2])))
    assert columns.head is None


def test_several_questions_are_averaged() -> None:
    model, inputs, targets = net(3), drawn(ROWS, FEATURES), (drawn(ROWS, 3, seed=2) > 0).float()
    columns, found = columns_of(model, nn.BCEWithLogitsLoss(), (inputs, targets))
    logits = model(inputs).detach()
    assert "predicted" not in columns.names
    torch.testing.assert_close(found["correct"], ((logits > 0) == (targets > 0)).float().mean(1))


def test_the_losses_of_a_batch_function() -> None:
    model = net(2)
    loss = fogline.on_batch(lambda module, batch: (module(batch) - 1).square().sum(1))
    inputs = drawn(ROWS, FEATURES)
    columns, found = columns_of(model, loss, inputs)
    assert columns.names == ("loss",)
    torch.testing.assert_close(found["loss"], (model(inputs) - 1).square().sum(1).detach())
    torch.testing.assert_close(Objective(model, loss)(inputs).detach(), found["loss"].mean())
    one = fogline.on_batch(lambda module, batch: (module(batch) - 1).square().mean())
    assert "one loss per example" in str(plan(Objective(model, one), inputs, False))


def steps_of_a_scale(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the answer is above 0, 1, 2 and 3: four outputs for five labels."""
    return F.binary_cross_entropy_with_logits(outputs, (targets[:, None] > torch.arange(4)).float())


def those_that_count(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(outputs, targets.clamp(min=0), reduction="none")
    return (each * (targets != -100)).sum() / (targets != -100).sum()


def test_more_labels_than_outputs_are_no_classes(tmp_path: Path) -> None:
    inputs, targets = drawn(ROWS, FEATURES), torch.arange(ROWS) % 5
    columns, found = columns_of(net(4), steps_of_a_scale, (inputs, targets), labels=True)
    assert columns.names == ("loss",)
    expected = [steps_of_a_scale(net(4)(x[None]), y[None]).item() for x, y in zip(inputs, targets, strict=True)]
    assert found["loss"].tolist() == pytest.approx(expected)
    # Labels that the first batch has none of are known from the data.
    many = torch.cat([targets.clamp(max=3), targets])
    data = drawn(2 * ROWS, FEATURES), many
    task = fogline.Task(lambda: net(4), steps_of_a_scale, data, (drawn(ROWS, FEATURES), targets))
    run = fogline.fit(task, fogline.Recipe(duration="2ep", batch_size=ROWS, shuffle=False), runs=tmp_path)
    assert sorted(run.examples.columns) == ["epochs", "example", "loss", "target"]
    assert run.examples["target"].tolist() == many.tolist()


def test_the_highest_of_too_few_outputs_is_no_answer(tmp_path: Path) -> None:
    data = drawn(ROWS, FEATURES), torch.arange(ROWS) % 5
    run = fogline.fit(
        fogline.Task(lambda: net(4), steps_of_a_scale, data, data), fogline.Recipe(duration="1ep"), runs=tmp_path
    )
    assert {row["name"] for row in run.scores} == {"loss"}


def test_labels_beyond_the_outputs_do_not_count() -> None:
    """As of data that is read row by row, of which only the first batch was seen."""
    columns, _ = columns_of(net(4), nn.CrossEntropyLoss(), (drawn(ROWS, FEATURES), torch.arange(ROWS) % 4))
    outputs, targets = drawn(ROWS, 4), torch.arange(ROWS) % 5
    shown = Shown(outputs, targets, torch.ones(ROWS), torch.ones(ROWS))
    table = dict(zip(columns.names, columns(shown), strict=True))
    assert table["margin"].isnan().tolist() == (targets == 4).tolist()


def test_tokens_whose_loss_is_known_by_the_row() -> None:
    torch.manual_seed(0)
    model = nn.Conv1d(FEATURES, 3, 1)
    targets = torch.arange(ROWS * 4).reshape(ROWS, 4) % 3
    targets[:, 2:] = -100
    inputs = drawn(ROWS, FEATURES, 4)
    _, found = columns_of(model, those_that_count, (inputs, targets))
    expected = [those_that_count(model(x[None]), y[None]).item() for x, y in zip(inputs, targets, strict=True)]
    assert found["loss"].tolist() == pytest.approx(expected, rel=1e-5)
    assert not found["margin"].isnan().any()
