"""No cause raises, whatever the batch and the model are, and healthy ones are left in peace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor import causes, first_look
from fogline.doctor.case import open_case
from fogline.doctor.causes import fit, flow, number, step
from fogline.doctor.examination import Examination
from fogline.doctor.trial import Laboratory, planned_steps

GROUPS = (flow, step, number, fit)
RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=16, duration="3ep")


class Named(nn.Module):
    """Takes a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7, 2)

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([given["a"], given["b"]], 1))


class Bare(nn.Module):
    """No layers, only parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Tagger(nn.Module):
    """A label for each token."""

    def __init__(self, cell: Callable[..., nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(9, 8), cell(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0]).transpose(1, 2)


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x)))


def next_token(model: nn.Module, batch: Any) -> Tensor:
    tokens = batch[0] if isinstance(batch, (tuple, list)) else batch
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def fails(outputs: Tensor, targets: Tensor) -> Tensor:
    raise RuntimeError("not today")


def rows(count: int = 48) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


def tokens(count: int = 48) -> Tensor:
    return torch.randint(9, (count, 6), generator=torch.Generator().manual_seed(0))


class Pairs(torch.utils.data.Dataset[Any]):
    """Examples with a dictionary of inputs."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, k: int) -> Any:
        x = rows()[k]
        return {"a": x, "b": x[:3]}, int(x[0] > 0)


PROGRAMS: dict[str, Callable[[], tuple[fogline.Task, fogline.Recipe]]] = {
    "dictionaries": lambda: (fogline.Task(Named(), nn.CrossEntropyLoss(), Pairs()), RECIPE),
    "no layers": lambda: (fogline.Task(Bare(), nn.MSELoss(), (rows(), rows()[:, :1])), RECIPE),
    "a label a token": lambda: (fogline.Task(Tagger(), nn.CrossEntropyLoss(), (tokens(), tokens() % 3)), RECIPE),
    "gru": lambda: (fogline.Task(Tagger(nn.GRU), nn.CrossEntropyLoss(), (tokens(), tokens() % 3)), RECIPE),
    "language": lambda: (fogline.Task(Attentive(), fogline.on_batch(next_token), (tokens(), tokens())), RECIPE),
    "several columns": lambda: (fogline.Task(nn.Linear(4, 3), nn.MSELoss(), (rows(), rows()[:, :3])), RECIPE),
    "one row": lambda: (fogline.Task(nn.Linear(4, 1), nn.MSELoss(), (rows(1), rows(1)[:, :1])), RECIPE),
    "a loss that fails": lambda: (fogline.Task(nn.Linear(4, 1), fails, (rows(), rows()[:, :1])), RECIPE),
    "shapes that do not fit": lambda: (fogline.Task(nn.Linear(5, 1), nn.MSELoss(), (rows(), rows()[:, :1])), RECIPE),
    "frozen": lambda: (
        fogline.Task(nn.Linear(4, 1).requires_grad_(False), nn.MSELoss(), (rows(), rows()[:, :1])),
        RECIPE,
    ),
    "double precision": lambda: (
        fogline.Task(nn.Linear(4, 1).double(), nn.MSELoss(), (rows().double(), rows()[:, :1].double())),
        RECIPE,
    ),
    "lbfgs": lambda: (
        fogline.Task(nn.Linear(4, 1), nn.MSELoss(), (rows(), rows()[:, :1])),
        RECIPE.replace(optimizer="lbfgs", lr=1.0, batch_size="full", schedule="constant"),
    ),
    "a class of optimizer": lambda: (
        fogline.Task(nn.Linear(4, 1), nn.MSELoss(), (rows(), rows()[:, :1])),
        RECIPE.replace(optimizer=torch.optim.SGD),
    ),
    "everything by itself": lambda: (
        fogline.Task(nn.Linear(4, 1), nn.MSELoss(), (rows(), rows()[:, :1])),
        fogline.Recipe(),
    ),
    "a time": lambda: (
        fogline.Task(nn.Linear(4, 1), nn.MSELoss(), (rows(), rows()[:, :1])),
        RECIPE.replace(duration="5min"),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_cause_raises(name: str) -> None:
    torch.manual_seed(0)
    task, recipe = PROGRAMS[name]()
    exam = Examination(open_case(task, recipe))
    first = [found for group in GROUPS for cause in group.ON_ONE_BATCH if (found := cause(exam))]
    steps = min(12, planned_steps(exam.program.recipe, exam.case))
    exam.observed = Laboratory(exam.case, 1e6).observe(exam.program, steps)
    found = first + [found for group in GROUPS for cause in group.IN_MOTION if (found := cause(exam))]
    assert not any(suspicion.proof for suspicion in found)
    for remedy in (remedy for suspicion in found for remedy in suspicion.remedies):
        if remedy.on_model is not None:
            assert Examination(exam.case, (remedy,)).anatomy.stage == exam.anatomy.stage
        if remedy.on_recipe is not None:
            assert isinstance(remedy.on_recipe(recipe), fogline.Recipe)


def test_a_crawl_over_single_rows() -> None:
    """Every next row has another slope, so that the slope after a step says nothing of the step's length."""
    X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = X.prod(dim=1, keepdim=True)
    torch.manual_seed(0)
    task = fogline.Task(nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()), nn.BCELoss(), (X, y))
    report = fogline.diagnose(task, fogline.Recipe(optimizer="sgd", lr=0.001, batch_size=1, duration="50ep"))
    assert report.findings[0].cause == "lr_too_low"


class _Variational(nn.Module):
    """Keeps the divergence of its last forward pass for the loss, as examples of PyTorch do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.body(x).chunk(2, dim=1)
        self.kept = {"divergence": 0.5 * (mean.square() + spread.exp() - spread - 1).sum(dim=1)}
        outputs: Tensor = self.head(mean + torch.randn_like(spread) * (spread / 2).exp())
        return outputs


def _elbo(model: nn.Module, batch: Any) -> Tensor:
    x, _ = batch
    return F.mse_loss(model(x), x) + 0.01 * model.kept["divergence"].mean()  # type: ignore[index,union-attr]


def test_a_model_that_keeps_tensors_of_its_forward_pass(tmp_path: Path) -> None:
    X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 6)
    task = fogline.Task(_Variational, fogline.on_batch(_elbo), (X, torch.zeros(200)))
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="10ep")
    run = fogline.fit(task, recipe, runs=tmp_path)
    assert run.steps["loss"][-1] < run.steps["loss"][0]
    trained = fogline.Task(run.model, fogline.on_batch(_elbo), (X, torch.zeros(200)))
    assert fogline.diagnose(trained, recipe).findings == ()


class _Padded(nn.Module):
    """A transformer whose evaluation is on nested tensors, of rows of unequal length."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layers(self.words(x), src_key_padding_mask=x == 0)[:, 0])
        return outputs


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_that_leaves_out_what_is_padded(tmp_path: Path) -> None:
    X = torch.randint(1, 20, (500, 6), generator=torch.Generator().manual_seed(0))
    y = (X[:, 1] > 10).long()
    X[::3, 4:] = 0
    task = fogline.Task(_Padded, nn.CrossEntropyLoss(), (X[100:], y[100:]), valid=(X[:100], y[:100]))
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="10ep")
    run = fogline.fit(task, recipe, runs=tmp_path)
    assert run.steps["loss"][-1] < run.steps["loss"][0]
    faulty = replace(task, model=lambda: nn.Sequential(_Padded(), nn.Softmax(1)))
    assert fogline.diagnose(faulty, recipe).findings[0].cause == "double_softmax"


def test_a_program_that_fails_on_rows_it_was_not_examined_on() -> None:
    """It is a finding or an open question, and no error of the doctor's."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 12:
                raise RuntimeError("the size of tensor a must match the size of tensor b")
            found: Tensor = self.head(x)
            return found

    x = torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    task = fogline.Task(Fixed, nn.MSELoss(), (x[:120], x[:120, :1]), valid=(x[120:], x[120:, :1]))
    report = fogline.diagnose(task, fogline.Recipe(optimizer="adam", lr=0.01, batch_size=12, duration="5ep"))
    assert report.verdict in ("faulty", "undecided")


def test_a_program_that_stops_with_an_error_has_not_reached_the_limit_of_its_data() -> None:
    words = torch.randint(0, 9, (120, 4), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(16, 2))
    report = fogline.diagnose(model, (words, words[:, 0] % 2), loss=nn.CrossEntropyLoss(), duration="2ep")
    assert report.verdict == "undecided"
    assert "error" in str(report)


@pytest.mark.parametrize(
    ("loss", "cause"),
    [
        (lambda outputs, targets: (outputs.argmax(1) != targets).sum(), "detached_graph"),  # whole numbers
        (lambda outputs, targets: F.cross_entropy(outputs, targets).item(), "detached_graph"),
        (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"), "loss_mismatch"),
    ],
)
def test_losses_that_are_no_number_to_descend(loss: Any, cause: str) -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="10ep")
    task = fogline.Task(lambda: nn.Linear(4, 2), loss, (x, (x[:, 0] > 0).long()))
    report = fogline.diagnose(task, recipe)
    assert report.findings[0].cause == cause
    assert report.healed is not None
    assert report.healed > 0.8


def test_lazy_layers_are_refused_as_they_are_by_fit() -> None:
    x = torch.randn(50, 4)
    with pytest.raises(ValueError, match="lazy"):
        fogline.diagnose(nn.Sequential(nn.LazyLinear(2)), (x, x[:, :2]), loss=nn.MSELoss())


def test_numbers_of_people_for_labels_are_told_in_time() -> None:
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    labels = 10**6 * (x[:, 0] > 0).long()
    report = fogline.diagnose(nn.Linear(4, 2), (x, labels), loss=nn.CrossEntropyLoss(), duration="2ep")
    assert report.findings[0].cause == "output_width"


def ignored(value: int) -> tuple[Tensor, Tensor]:
    """Labels of three classes, and of some rows that have none."""
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.where(torch.arange(120) % 5 == 0, value, x[:, :3].argmax(1))


def yes_or_no() -> tuple[Tensor, Tensor]:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, 0] > 0


TARGETS: dict[str, Any] = {
    "bool, one output": (1, lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.float()), yes_or_no()),
    "bool, two outputs": (2, lambda o, t: F.cross_entropy(o, t.long()), yes_or_no()),
    "uint8": (3, lambda o, t: F.cross_entropy(o, t.long()), (yes_or_no()[0], yes_or_no()[1].to(torch.uint8))),
    "255 for none": (3, nn.CrossEntropyLoss(ignore_index=255), ignored(255)),
    "-1 for none": (3, nn.CrossEntropyLoss(ignore_index=-1), ignored(-1)),
    "complex": (
        2,
        lambda o, t: (torch.view_as_complex(o) - t).abs().mean(),
        (yes_or_no()[0], torch.view_as_complex(yes_or_no()[0][:, :2].contiguous())),
    ),
    "no column": (2, lambda o, t: o.square().mean(), (yes_or_no()[0], torch.zeros(120, 0))),
}


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_any_kind_are_fitted_and_diagnosed(name: str, tmp_path: Path) -> None:
    outputs, loss, data = TARGETS[name]
    task = fogline.Task(lambda: nn.Linear(4, outputs), loss, data, data)
    run = fogline.fit(task, RECIPE, runs=tmp_path, progress=False)
    assert len(run.steps) == 24
    assert not [event for event in run.events if "failed" in event["message"]]
    report = fogline.diagnose(task, RECIPE)
    assert not [note for note in report.notes if "could not be looked at" in note]


def test_a_cause_that_fails_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Examination) -> None:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(causes, "ON_ONE_BATCH", (broken, *causes.ON_ONE_BATCH))
    x, y = yes_or_no()
    model = lambda: nn.Sequential(nn.Linear(4, 2), nn.Softmax(1))  # noqa: E731
    task = fogline.Task(model, nn.CrossEntropyLoss(), (x, y.long()))
    report = fogline.diagnose(task, RECIPE)
    assert "could not be looked at: broken (ZeroDivisionError: of nothing)" in report.notes
    assert "double_softmax" in [found.cause for found in report.findings]


def test_a_run_goes_on_without_a_first_look_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> None:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(first_look, "first_look", broken)
    x, y = yes_or_no()
    task = fogline.Task(lambda: nn.Linear(4, 2), nn.CrossEntropyLoss(), (x, y.long()))
    run = fogline.fit(task, RECIPE, runs=tmp_path, progress=False)
    assert len(run.steps) == 24
    assert any("ZeroDivisionError: of nothing" in event["message"] for event in run.events)


class _Texts(torch.utils.data.Dataset[Any]):
    """Words of good and of bad reviews: the model itself makes numbers of them."""

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> tuple[str, int]:
        return ("dull", "fine", "flat", "rich")[index % 4], index % 2


class _OfTexts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters, self.head = nn.EmbeddingBag(128, 8), nn.Linear(8, 2)

    def forward(self, words: Sequence[str]) -> Tensor:
        numbers = [torch.tensor([ord(letter) for letter in word]) for word in words]
        return self.head(self.letters(torch.stack(numbers)))


class _Lengths(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        source = torch.Generator().manual_seed(index)
        return torch.randn(3 + index % 5, 4, generator=source) + index % 2, index % 2


def _padded(examples: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    rows, labels = zip(*examples, strict=True)
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(list(rows)), lengths, torch.tensor(labels)  # positions first


class _Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reads, self.head = nn.GRU(4, 8), nn.Linear(8, 2)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(rows, lengths, enforce_sorted=False)
        said: Tensor = self.head(self.reads(packed)[1][-1])
        return said


def _of_texts(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _of_lengths(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0], batch[1]), batch[2])


@pytest.mark.parametrize("kind", ["texts", "lengths"])
def test_batches_that_are_no_rows_are_fitted_and_diagnosed(kind: str, tmp_path: Path) -> None:
    loader: Any
    if kind == "texts":
        loader = torch.utils.data.DataLoader(_Texts(), batch_size=12, shuffle=True)
        task = fogline.Task(_OfTexts, fogline.on_batch(_of_texts), loader)
    else:
        loader = torch.utils.data.DataLoader(_Lengths(), batch_size=12, shuffle=True, collate_fn=_padded)
        task = fogline.Task(_Packed, fogline.on_batch(_of_lengths), loader)
    recipe = fogline.Recipe(optimizer="adam", lr=0.03, duration="6ep")
    run = fogline.fit(task, recipe.replace(accumulate=3), runs=tmp_path)
    assert run.steps["loss"][-1] < 0.3
    report = fogline.diagnose(task, recipe.replace(lr=1e-6))
    assert not report.notes
    assert "lr_too_low" in [finding.cause for finding in report.findings]


class _Filter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bands, self.head = nn.Parameter(torch.ones(4, dtype=torch.complex64)), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.head(torch.fft.irfft(torch.fft.rfft(x) * self.bands, n=6))
        return said


@pytest.mark.parametrize("changes", [{"clip": 1.0}, {"optimizer": "rmsprop"}, {"optimizer": "sgd"}])
def test_weights_that_are_complex_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    recipe = fogline.Recipe(optimizer="adam", duration="20ep", batch_size=20).replace(**changes)
    task = fogline.Task(_Filter, nn.MSELoss(), (X, X.roll(1, 1)[:, :1]))
    run = fogline.fit(task, recipe, runs=tmp_path)
    assert run.steps["loss"][-1] < 0.01
    assert fogline.diagnose(task, recipe.replace(lr=0.02)).notes == ()


@pytest.mark.parametrize(("rows", "size", "other"), [(33, 8, 9), (13, 2, 5), (3, 2, 3)])
def test_a_last_batch_of_one_row_is_refused_before_it_is_reached(
    rows: int, size: int, other: int, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    X = torch.randn(rows, 4)
    with pytest.raises(ValueError, match=rf"last batch of one row.*take batch_size={other},"):
        fogline.fit(model, (X, X[:, :1]), loss=nn.MSELoss(), runs=tmp_path, batch_size=size)
