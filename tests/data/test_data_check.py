"""The first batch: every misfit is refused with a remedy, every fit passes in silence, and nothing is disturbed."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fogline.data import Facts
from fogline.data.check import check_first_batch
from fogline.data.defaults import default_loss, default_metrics, default_model
from fogline.task import on_batch

X, LABELS = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
COLUMN = torch.linspace(-1, 1, 6)[:, None]
IMAGES = torch.randn(6, 3, 8, 8)
CLASSES = Facts("classification", (4,), outputs=3)
NUMBERS = Facts("regression", (4,))
CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()


class Returns(nn.Module):
    """A linear layer whose output goes through a function."""

    def __init__(self, function, outputs=3):
        super().__init__()
        self.layer, self.function = nn.Linear(4, outputs), function

    def forward(self, inputs):
        return self.function(self.layer(inputs))


def frozen():
    return nn.Linear(4, 3).requires_grad_(False)


def convolution():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))


MISFITS = {
    "tuple": (Returns(lambda y: (y, y)), CE, (X, LABELS), TypeError, r"returns one tensor .* a tuple of 2.*on_batch"),
    "dict": (Returns(lambda y: {"logits": y}), CE, (X, LABELS), TypeError, r"a dict with keys \['logits'\]"),
    "vector loss": (
        nn.Linear(4, 3),
        nn.CrossEntropyLoss(reduction="none"),
        (X, LABELS),
        ValueError,
        r'shape \(6,\); use reduction="mean"',
    ),
    "float loss": (
        nn.Linear(4, 3),
        lambda y, t: F.cross_entropy(y, t).item(),
        (X, LABELS),
        TypeError,
        r"without .item",
    ),
    "detached": (Returns(torch.Tensor.detach), CE, (X, LABELS), ValueError, r"look for .detach\(\)"),
    "whole loss": (
        nn.Linear(4, 3),
        lambda y, t: (y.argmax(1) != t).sum(),
        (X, LABELS),
        TypeError,
        r"floating-point number, received torch.int64",
    ),
    "too many labels": (
        nn.Linear(4, 2),
        CE,
        (X, LABELS),
        ValueError,
        r"labels from 0 to 1 .* labels 0, 1, 2; .* 3 out",
    ),
    "labels elsewhere": (
        nn.Linear(4, 2),
        CE,
        (X[:2], LABELS[:2]),
        ValueError,
        r"labels 0, 1 \(up to 2 in all the data",
    ),
    "negative labels": (nn.Linear(4, 3), CE, (X, LABELS - 1), ValueError, r"received labels -1, 0, 1"),
    "single output": (nn.Linear(4, 1), CE, (X, LABELS % 2), ValueError, r"one output per class.*BCEWithLogitsLoss"),
    "no class dimension": (Returns(lambda y: y[:, 0]), CE, (X, LABELS), ValueError, r"shape \(batch, classes\)"),
    "float labels": (nn.Linear(4, 3), CE, (X, LABELS.float()), ValueError, r"whole-number labels .* y.long\(\)"),
    "bool labels": (nn.Linear(4, 3), CE, (X, LABELS > 0), ValueError, r"int64 labels .* torch.bool; .*y.long\(\)"),
    "labels in a column": (nn.Linear(4, 3), CE, (X, LABELS[:, None]), ValueError, r"with y\[:, 0\]"),
    "one-hot labels": (nn.Linear(4, 3), CE, (X, F.one_hot(LABELS, 3)), ValueError, r"use y.argmax\(1\)"),
    "classes last": (
        Returns(lambda y: y[:, None].expand(6, 5, 3)),
        CE,
        (X, LABELS[:, None].expand(6, 5)),
        ValueError,
        r"the classes are dimension 1",
    ),
    "whole numbers to MSE": (
        nn.Linear(4, 3),
        MSE,
        (X, LABELS),
        ValueError,
        r"floating-point targets for MSELoss, .*int64",
    ),
    "broadcast": (
        nn.Linear(4, 1),
        MSE,
        (X, COLUMN[:, 0]),
        ValueError,
        r"outputs are \(6, 1\) and targets are \(6,\): would broadcast to \(6, 6\); reshape targets with y\[:, None\]",
    ),
    "broadcast by function": (
        nn.Linear(4, 1),
        F.l1_loss,
        (X, COLUMN[:, 0]),
        ValueError,
        r"would broadcast to \(6, 6\)",
    ),
    "broadcast the other way": (Returns(lambda y: y[:, 0]), MSE, (X, COLUMN), ValueError, r"y.squeeze\(-1\)"),
    "wrong width": (nn.Linear(4, 3), nn.L1Loss(), (X, torch.randn(6, 2)), ValueError, r"last layer have 2 outputs"),
    "binary labels": (
        nn.Linear(4, 1),
        nn.BCEWithLogitsLoss(),
        (X, 2 * (COLUMN > 0).float() - 1 + 1.5),
        ValueError,
        r"targets from 0 to 1",
    ),
    "no probabilities": (
        Returns(lambda y: 3 + y * 9, 1),
        nn.BCELoss(),
        (X, (COLUMN > 0).float()),
        ValueError,
        r"expected probabilities for BCELoss.*BCEWithLogitsLoss",
    ),
    "inputs too wide": (
        nn.Sequential(nn.Linear(20, 3)),
        CE,
        (X, LABELS),
        ValueError,
        r"Linear '0' expected inputs with 20 features .* shape \(6, 4\); set in_features=4",
    ),
    "single numbers": (nn.Linear(1, 3), CE, (X[:, 0], LABELS), ValueError, r"reshape the inputs with x\[:, None\]"),
    "not flattened": (
        nn.Sequential(nn.Linear(192, 3)),
        CE,
        (IMAGES, LABELS),
        ValueError,
        r"expected inputs with 192 features .*; put nn.Flatten\(\) before it",
    ),
    "whole inputs": (nn.Linear(4, 3), CE, (X.long(), LABELS), ValueError, r"received torch.int64; .* x.float\(\)"),
    "channels": (convolution(), CE, (IMAGES[:, :1], LABELS), ValueError, r"Conv2d '0' expected .* with 3 channels"),
    "no channel": (convolution(), CE, (IMAGES[:, 0], LABELS), ValueError, r"\(batch, channels, height, width\)"),
    "lonely norm": (
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
        CE,
        (X[:1], LABELS[:1]),
        ValueError,
        r"BatchNorm1d '1' expected more than one value per channel .* batch size above 1",
    ),
    "norm width": (nn.BatchNorm1d(5), CE, (X, LABELS), ValueError, r"expected 5 channels, received shape \(6, 4\)"),
    "float tokens": (nn.Embedding(5, 3), CE, (X[:, 0], LABELS), ValueError, r"expected whole numbers, .* x.long\(\)"),
    "unknown tokens": (
        nn.Embedding(2, 3),
        CE,
        (LABELS, LABELS),
        ValueError,
        r"from 0 to 1, received 0 to 2; set num_e",
    ),
    "own module": (
        Returns(lambda y: y @ torch.ones(7)),
        CE,
        (X, LABELS),
        ValueError,
        r"the model Returns failed in Returns on one tensor of shape \(6, 4\)",
    ),
    "two arguments": (nn.Bilinear(4, 4, 3), CE, (X, LABELS), TypeError, r"the model Bilinear failed"),
    "no parameters": (nn.Flatten(), CE, (X, LABELS), ValueError, r"model with parameters to train, received Flatten"),
    "frozen": (frozen(), CE, (X, LABELS), ValueError, r"require a gradient, received 2 frozen ones"),
    "lazy": (nn.LazyLinear(3), CE, (X, LABELS), ValueError, r"call model\(inputs\) once"),
    "no pair": (nn.Linear(4, 3), CE, X, TypeError, r"received one tensor of shape \(6, 4\); .*on_batch"),
    "three parts": (nn.Linear(4, 3), CE, (X, X, LABELS), TypeError, r"received a tuple of 3"),
    "own loss": (
        nn.Linear(4, 3),
        lambda y, t: y @ t,
        (X, LABELS.float()),
        ValueError,
        r"<lambda> failed on outputs one tensor of shape \(6, 3\)",
    ),
    "on_batch vector": (nn.Linear(4, 3), on_batch(lambda m, b: m(b)), X, ValueError, r"on_batch function .* \(6, 3\)"),
    "on_batch failure": (nn.Linear(5, 3), on_batch(lambda m, b: m(b).mean()), X, ValueError, r"with 5 features"),
    "on_batch key": (nn.Linear(4, 3), on_batch(lambda m, b: m(b["y"])), {"x": X}, ValueError, r"keys \['x'\]: 'y'"),
    "other parameters": (
        nn.Linear(4, 3),
        lambda y, t: torch.ones(3, requires_grad=True).sum(),
        (X, LABELS),
        ValueError,
        r"depends on none of them",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_are_refused_with_a_remedy(case):
    model, loss, batch, error, message = MISFITS[case]
    facts = NUMBERS if loss is MSE else CLASSES
    with pytest.raises(error, match=message):
        check_first_batch(model, loss, batch, {}, facts)


FITS = {
    "labels": (nn.Linear(4, 3), CE, (X, LABELS)),
    "probabilities": (nn.Linear(4, 3), CE, (X, torch.rand(6, 3).softmax(1))),
    "ignored label": (nn.Linear(4, 3), CE, (X, torch.where(LABELS == 1, -100, LABELS))),
    "pixels": (nn.Conv2d(3, 3, 1), CE, (IMAGES, torch.zeros(6, 8, 8, dtype=torch.int64))),
    "columns": (nn.Linear(4, 1), MSE, (X, COLUMN)),
    "flat": (Returns(lambda y: y[:, 0]), nn.HuberLoss(), (X, COLUMN[:, 0])),
    "binary": (nn.Linear(4, 1), nn.BCEWithLogitsLoss(), (X, (COLUMN > 0).float())),
    "sigmoid": (Returns(torch.sigmoid, 1), nn.BCELoss(), (X, (COLUMN > 0).float())),
    "double data": (nn.Linear(4, 1), MSE, (X.double(), COLUMN.double())),
    "double model": (nn.Linear(4, 1).double(), MSE, (X, COLUMN)),
    "own loss on a tuple": (Returns(lambda y: (y, y)), lambda y, t: (y[0] - y[1] + y[0]).mean(), (X, LABELS)),
    "on_batch": (nn.Linear(4, 4), on_batch(lambda model, batch: (model(batch["x"]) - batch["x"]).mean()), {"x": X}),
    "tokens": (nn.Embedding(3, 3), CE, (LABELS, LABELS)),
    "normalised": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout()), CE, (X, LABELS)),
}


@pytest.mark.parametrize("case", FITS)
def test_fits_pass_in_silence(case):
    model, loss, batch = FITS[case]
    facts = CLASSES if loss is CE else NUMBERS
    assert check_first_batch(model, loss, batch, {}, facts) == ()


def test_shared_weights_pass():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert check_first_batch(model, MSE, (X, X), {}, NUMBERS) == ()


class Meddler(nn.Module):
    """Does in its forward pass everything that could be left behind."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, inputs):
        with torch.no_grad():
            self.layer.weight.clamp_(-0.01, 0.01)
        self.seen += 1
        self.drop.eval()
        random.random()
        np.random.rand()
        return self.norm(self.layer(inputs)) + torch.rand(3)


def bits(model):
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    identity = [id(tensor) for tensor in tensors]
    flags = [module.training for module in model.modules()]
    states = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())
    return [tensor.detach().numpy().tobytes() for tensor in tensors], identity, flags, states


@pytest.mark.parametrize("loss", [CE, on_batch(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))])
def test_nothing_is_disturbed(loss):
    model = Meddler()
    model.norm.eval()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = bits(model)
    check_first_batch(model, loss, (X, LABELS), {"accuracy": lambda y, t: (y.argmax(1) == t).float().mean()}, CLASSES)
    assert bits(model) == before
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        check_first_batch(model, CE, (X, LABELS + 1), {}, CLASSES)
    assert bits(model) == before
    assert not model._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def test_what_is_odd_is_said():
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "spare": nn.Linear(2, 2)})
    notes = check_first_batch(model, on_batch(lambda m, b: m["used"](b).mean()), X, {}, CLASSES)
    assert notes == (
        "the loss does not depend on these parameters, which will not be trained: spare.weight, spare.bias",
    )
    broken = X.clone()
    broken[2, 1] = float("nan")
    notes = check_first_batch(nn.Linear(4, 3), CE, (broken, LABELS), {}, CLASSES)
    assert notes == ("the loss of the first batch is nan: its rows [2] hold NaN or infinity",)
    notes = check_first_batch(nn.Linear(4, 1), lambda y, t: (y * 0).log().mean(), (X, COLUMN), {}, NUMBERS)
    assert notes == ("the loss of the first batch is -inf before any step, though its data is finite",)


def test_metrics_return_one_number():
    def check(metric):
        check_first_batch(nn.Linear(4, 3), CE, (X, LABELS), {"mine": metric}, CLASSES)

    check(lambda y, t: 1)
    check(lambda y, t: np.float32(0.5))
    check(lambda y, t: y.mean()[None])
    with pytest.raises(TypeError, match=r"metric 'mine' to return one number, received a tensor of shape \(6,\)"):
        check(lambda y, t: y.argmax(1) == t)
    with pytest.raises(TypeError, match="received NoneType"):
        check(lambda y, t: None)
    with pytest.raises(ValueError, match=r"metric 'mine' to take \(outputs, targets\), but it failed"):
        check(lambda y, t: y @ t)


def test_mistakes_in_names_are_left_as_they_are():
    with pytest.raises(NameError):
        check_first_batch(Returns(lambda y: undefined), CE, (X, LABELS), {}, CLASSES)  # noqa: F821


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 1, 5), (3, 100, 30), (3, 256, 256)])
def test_the_built_in_model_for_images_fits_every_size(shape):
    facts = Facts("classification", shape, outputs=4)
    model = default_model(facts)()
    batch = (torch.randn(2, *shape), torch.tensor([0, 3]))
    assert check_first_batch(model, default_loss(facts), batch, default_metrics(facts), facts) == ()


@pytest.mark.parametrize("width", [1, 7, 300])
def test_the_built_in_model_for_numbers_works_in_the_units_of_the_data(width):
    facts = Facts(
        "regression",
        (width,),
        outputs=2,
        input_mean=(1e4,) * width,
        input_scale=(10.0,) * width,
        target_mean=(150.0, -2.0),
        target_scale=(70.0, 0.1),
        held_out_variance=(4900.0, 0.01),
    )
    model = default_model(facts)()
    outputs = model(torch.full((5, width), 1e4))
    assert torch.allclose(outputs, torch.tensor([150.0, -2.0]).expand(5, 2), atol=70)
    assert bool(((outputs - torch.tensor([150.0, -2.0])).abs() < torch.tensor([70.0, 0.1])).all())
    metrics = default_metrics(facts)
    targets = outputs.detach()
    assert metrics["r2"](targets, targets) == 1
    assert float(metrics["r2"](targets + torch.tensor([70.0, 0.1]), targets)) == pytest.approx(0, abs=1e-3)


def test_default_metrics_are_means_over_examples():
    targets, outputs = torch.randn(10, 1), torch.randn(10, 1)
    facts = Facts("regression", (1,), held_out_variance=(float(targets.var(correction=0)),))
    for metric in default_metrics(facts).values():
        parts = [metric(outputs[:4], targets[:4]) * 4, metric(outputs[4:], targets[4:]) * 6]
        assert float(sum(parts) / 10) == pytest.approx(float(metric(outputs, targets)), rel=1e-5)
    residual, total = (outputs - targets).square().sum(), (targets - targets.mean()).square().sum()
    assert float(default_metrics(facts)["r2"](outputs, targets)) == pytest.approx(float(1 - residual / total), rel=1e-5)


def test_accuracy_of_every_kind_of_output():
    def score(facts, outputs, targets):
        return float(default_metrics(facts)["accuracy"](torch.tensor(outputs), torch.tensor(targets)))

    assert score(CLASSES, [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]], [1, 1]) == 0.5
    assert score(CLASSES, [[1.0, 2.0], [3.0, 0.0]], [[0.1, 0.9], [0.2, 0.8]]) == 0.5
    assert score(Facts("classification"), [[0.3], [-0.3]], [[1.0], [1.0]]) == 0.5
    assert score(Facts("classification", threshold=0.5), [[0.3], [0.7]], [[1.0], [1.0]]) == 0.5
    assert default_metrics(Facts("other")) == {}


def test_no_model_or_loss_for_unknown_work():
    for facts in (Facts("other", (4,)), Facts("regression", (4, 4))):
        with pytest.raises(ValueError, match="pass model="):
            default_model(facts)
    with pytest.raises(ValueError, match="number of classes is known"):
        default_model(Facts("classification", (4,), outputs=0))
    with pytest.raises(ValueError, match=r"pass x\[:, None\]"):
        default_model(Facts("regression", ()))
    with pytest.raises(ValueError, match="pass loss="):
        default_loss(Facts("other"))
