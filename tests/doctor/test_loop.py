"""The causes of the group "loop": on programs where they are planted, and silent on sound twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes import loop
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.inventory import frozen_as_drawn
from fogline.doctor.trial import Laboratory
from fogline.recipe import Recipe
from fogline.task import Task


def rows(count: int = 200, *, image: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 1, 6, 6) if image else (count, 4)
    x = torch.randn(shape, generator=generator)
    return x, (x.flatten(1)[:, :1] > 0).float()


def exam(model: Any, *, image: bool = False, loss: Any = None, count: int = 200, **recipe: Any) -> Examination:
    task = Task(model=model, loss=loss or nn.BCEWithLogitsLoss(), train=rows(count, image=image))
    return Examination(open_case(task, Recipe(**{"optimizer": "adam", "lr": 0.01, "duration": "2ep"} | recipe)))


def supposed(found: Examination) -> dict[str, Suspicion]:
    every = (cause(found) for cause in loop.ON_ONE_BATCH)
    return {s.cause: s for s in every if s is not None}


class Net(nn.Module):
    """A small net with switches for its faults."""

    def __init__(self, *, fault: str = "", image: bool = False, width: int = 32) -> None:
        super().__init__()
        self.fault, self.image = fault, image
        first: nn.Module = nn.Conv2d(1, width, 3) if image else nn.Linear(4, width)
        middle = [nn.Linear(width, width) for _ in range(2)]
        self.first = first
        self.middle: Any = middle if fault == "list" else nn.ModuleList(middle)
        if fault == "teacher":
            self.teacher = [nn.Linear(4, 1)]
        self.norm = nn.BatchNorm1d(width)
        self.spare = nn.Linear(width, 1) if fault == "spare" else nn.Identity()
        self.head = nn.Linear(width, 1)
        if fault == "frozen":
            for module in (self.first, self.middle):
                module.requires_grad_(False)
        if fault == "all frozen":
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        if self.fault == "eval":
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        hidden = hidden.mean((2, 3)) if self.image else hidden
        if self.fault == "detach":
            hidden = hidden.detach()
        if self.fault == "data":
            hidden = hidden.data
        if self.fault == "no_grad":
            with torch.no_grad():
                hidden = self.middle[0](hidden)
        for layer in self.middle:
            hidden = torch.relu(layer(hidden))
        hidden = self.norm(hidden)
        if self.fault == "dropout":
            hidden = F.dropout(hidden, 0.5)
        if self.fault == "sound dropout":
            hidden = F.dropout(hidden, 0.5, training=self.training)
        if self.fault == "teacher":
            with torch.no_grad():
                self.teacher[0](x)
        output = self.head(hidden)
        if self.fault == "output detach":
            return output.detach()
        if self.fault == "numpy":
            return torch.tensor(output.detach().numpy())
        return output


def net(**given: Any) -> Callable[[], nn.Module]:
    return lambda: Net(**given)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("fault", ["", "spare", "sound dropout"])
def test_sound_programs(fault: str, image: bool) -> None:
    found = exam(net(fault=fault, image=image), image=image)
    assert not supposed(found)


def test_a_program_on_batches() -> None:
    loss = fogline.on_batch(lambda model, batch: F.mse_loss(model(batch[0]), batch[1]))
    assert not supposed(exam(net(), loss=loss))
    cut = fogline.on_batch(lambda model, batch: F.mse_loss(model(batch[0]).detach(), batch[1]))
    found = supposed(exam(net(), loss=cut))["detached_graph"]
    assert found.blocks
    assert found.remedies


@pytest.mark.parametrize("image", [False, True])
def test_frozen_layers_that_nobody_trained(image: bool) -> None:
    found = supposed(exam(net(fault="frozen", image=image), image=image))
    assert list(found) == ["frozen_parameters"]
    assert not found["frozen_parameters"].blocks
    edited = found["frozen_parameters"].remedies[0].on_model
    assert edited is not None
    assert all(p.requires_grad for p in edited(Net(fault="frozen")).parameters())


def test_random_features_of_which_nothing_is_learned_leave_no_doubt() -> None:
    """Frozen for most of the weights, where a classical learner has no trouble; of some such a network learns well."""

    found = exam(Net(fault="frozen"))
    assert not supposed(found)["frozen_parameters"].proof
    found.observed = Laboratory(found.case, 1e6).observe(found.program, 20)
    for best, proof in ((0.0, True), (0.6, False)):
        found.observed.best = best
        assert supposed(found)["frozen_parameters"].proof is proof


def test_nothing_asks_for_a_gradient() -> None:
    found = supposed(exam(net(fault="all frozen")))["frozen_parameters"]
    assert found.blocks
    assert found.proof
    report = fogline.diagnose(
        Task(model=net(fault="all frozen"), loss=nn.BCEWithLogitsLoss(), train=rows()),
        Recipe(lr=0.01, duration="2ep"),
        0,
    )
    assert [f.cause for f in report.findings] == ["frozen_parameters"]


def test_a_backbone_that_was_trained_is_fine_tuning() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, y = rows()
    for _ in range(40):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()
    model.first.requires_grad_(False)
    model.middle.requires_grad_(False)
    model.head.reset_parameters()
    assert not supposed(exam(model))


@pytest.mark.parametrize(("behind", "likely"), [(1, True), (64, False)])
def test_frozen_weights_of_ones_own_are_likelier_the_more_they_are(behind: int, likely: bool) -> None:
    """What PyTorch did not draw may have been trained before; where the rest does not learn it may not."""
    X = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    y = X @ torch.randn(16, 1, generator=torch.Generator().manual_seed(1))

    def model() -> nn.Module:
        torch.manual_seed(0)
        first = nn.Linear(16, 2)
        nn.init.normal_(first.weight, std=0.05)
        return nn.Sequential(first.requires_grad_(False), nn.ReLU(), nn.Linear(2, behind), nn.Linear(behind, 1))

    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="10ep")
    found = Examination(open_case(Task(model, nn.MSELoss(), (X, y)), recipe))
    assert loop.frozen_parameters(found) is None  # before it was watched
    found.observed = Laboratory(found.case, 1e6).observe(found.program, 60)
    suspicion = loop.frozen_parameters(found)
    assert suspicion is not None
    assert (suspicion.strength >= 0.5) is likely


def test_layers_in_a_list() -> None:
    found = supposed(exam(net(fault="list")))
    assert list(found) == ["parameters_not_optimized"]
    assert found["parameters_not_optimized"].proof
    edited = found["parameters_not_optimized"].remedies[0].on_model
    assert edited is not None
    model = Net(fault="list")
    before = len(list(model.parameters()))
    assert len(list(edited(model).parameters())) == before + 4
    assert not supposed(exam(net(fault="teacher")))


@pytest.mark.parametrize("fault", ["detach", "data", "no_grad", "output detach"])
def test_cuts_in_the_graph(fault: str) -> None:
    found = supposed(exam(net(fault=fault)))
    assert list(found) == ["detached_graph"]
    suspicion = found["detached_graph"]
    assert suspicion.blocks == (fault == "output detach")
    edited = suspicion.remedies[0].on_model
    assert edited is not None
    model = edited(Net(fault=fault))
    model(rows()[0]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_module_that_detaches() -> None:
    class Detach(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Detach(), nn.Linear(8, 1))

    found = supposed(exam(make))["detached_graph"]
    assert "'2'" in found.remedies[0].title
    edited = found.remedies[0].on_model
    assert edited is not None
    assert isinstance(edited(make())[2], nn.Identity)


def test_no_way_back_to_the_graph() -> None:
    found = supposed(exam(net(fault="numpy")))["detached_graph"]
    assert found.blocks
    assert not found.remedies
    assert "argmax" in found.advice


class ByNumbers(nn.Module):
    """What comes of the inputs is made into numbers, and a tensor of these; or it is made and not used."""

    def __init__(self, *, used: bool) -> None:
        super().__init__()
        self.before, self.after, self.used = nn.Linear(4, 4), nn.Linear(4, 1), used

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.tensor(self.before(x).tolist())
        found: Tensor = self.after(numbers if self.used else x)
        return found


def test_a_part_that_gradients_do_not_come_back_to() -> None:
    found = supposed(exam(lambda: ByNumbers(used=True)))["detached_graph"]
    assert "before.weight" in str(found.evidence[0].value)
    assert found.proof
    assert not found.blocks  # the rest learns
    assert not supposed(exam(lambda: ByNumbers(used=False)))


def test_rounding_has_no_slope() -> None:
    found = supposed(exam(net(), loss=lambda o, y: F.mse_loss(o.round(), y)))["detached_graph"]
    assert found.blocks
    assert "round()" in found.remedies[0].title
    straight = supposed(exam(net(), loss=lambda o, y: F.mse_loss(o + (o.round() - o).detach(), y)))
    assert "detached_graph" not in straight  # a straight-through estimator


def test_a_loss_that_detaches() -> None:
    found = supposed(exam(net(), loss=lambda o, y: F.mse_loss(o.detach(), y)))["detached_graph"]
    edited = found.remedies[0].on_loss
    assert edited is not None
    x, y = rows()
    assert edited(lambda o, y: F.mse_loss(o.detach(), y))(Net()(x), y).requires_grad


def test_normalisation_that_stays_in_evaluation_mode() -> None:
    found = supposed(exam(net(fault="eval")))
    assert list(found) == ["eval_mode_training"]
    edited = found["eval_mode_training"].remedies[0].on_model
    assert edited is not None
    model = edited(Net(fault="eval")).train()
    model(rows()[0])
    assert int(model.wrapped_model.norm.num_batches_tracked) == 1
    model.eval()(rows()[0])
    assert int(model.wrapped_model.norm.num_batches_tracked) == 1


def test_dropout_that_does_not_know_the_mode() -> None:
    found = supposed(exam(net(fault="dropout")))
    assert list(found) == ["train_mode_eval"]
    edited = found["train_mode_eval"].remedies[0].on_model
    assert edited is not None
    x = rows()[0]
    model = edited(Net(fault="dropout")).eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("batch", "count", "faulty"), [(2, 200, True), (16, 200, False), (4, 201, True), (16, 193, True)]
)
def test_normalisation_of_few_rows(batch: int, count: int, faulty: bool) -> None:
    found = supposed(exam(net(), batch_size=batch, count=count))
    assert list(found) == (["tiny_batch_norm"] if faulty else [])
    if faulty and batch == 16:
        assert found["tiny_batch_norm"].blocks
        recipe = found["tiny_batch_norm"].remedies[0].on_recipe
        assert recipe is not None
        assert recipe(Recipe(batch_size=16)).batch_size == 17
    if faulty:
        edited = found["tiny_batch_norm"].remedies[1].on_model
        assert edited is not None
        assert edited(Net())(rows(1)[0]).shape == (1, 1)


def test_statistics_that_do_not_settle() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(4, momentum=0.001), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    x, y = rows()
    task = Task(model=make, loss=nn.BCEWithLogitsLoss(), train=(100 * x + 500, y))
    report = fogline.diagnose(task, Recipe(optimizer="adam", lr=0.01, batch_size=20, duration="10ep"))
    assert [f.cause for f in report.findings] == ["train_mode_eval"]


def test_a_forward_pass_that_overflows_in_float16() -> None:
    X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = (X[:, 0] > 0).long()

    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs * 3e4) / 3e4

    def seen(model: Callable[[], nn.Module], precision: str) -> Suspicion | None:
        recipe = fogline.Recipe(precision=precision, lr=0.01, duration="2ep")
        return loop.amp_scale_collapse(Examination(open_case(Task(model, nn.CrossEntropyLoss(), (X, y)), recipe)))

    found = seen(Overflows, "fp16")
    assert found is not None
    assert found.proof
    assert found.remedies[0].on_recipe is not None
    assert found.remedies[0].on_recipe(fogline.Recipe(precision="fp16")).precision == "float32"
    assert seen(Overflows, "float32") is None
    assert seen(lambda: nn.Linear(4, 2), "fp16") is None


@pytest.mark.parametrize("trained", [False, True])
def test_a_cut_before_recurrent_layers_as_they_were_drawn_leaves_no_doubt(trained: bool) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.rnn, self.head = nn.Embedding(9, 4), nn.GRU(4, 8, batch_first=True), nn.Linear(8, 2)
            if trained:
                for parameter in self.rnn.parameters():
                    nn.init.normal_(parameter)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.rnn(self.table(tokens))[0].data[:, -1])

    tokens = torch.randint(0, 9, (60, 5), generator=torch.Generator().manual_seed(0))
    task = Task(Cut, nn.CrossEntropyLoss(), (tokens, tokens[:, 0] % 2))
    found = supposed(Examination(open_case(task, Recipe(optimizer="adam", lr=0.01, duration="2ep"))))["detached_graph"]
    assert found.proof == (not trained)


@pytest.mark.parametrize("always", [False, True])
def test_noise_that_goes_on_in_evaluation(always: bool) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + torch.randn_like(x) if always or self.training else x)

    found = supposed(exam(Noisy)).get("train_mode_eval")
    assert (found is not None) == always
    if found is not None:
        assert not found.proof  # it may be meant
        edit = found.remedies[0].on_model
        assert edit is not None
        model, X = edit(Noisy()), rows()[0]
        assert torch.equal(model.eval()(X), model(X))
        assert not torch.equal(model.train()(X), model(X))


def test_a_threshold_in_the_loss_is_softened() -> None:
    def overlap(outputs: Tensor, targets: Tensor) -> Tensor:
        said = (torch.sigmoid(outputs) > 0.5).float()
        return 1 - 2 * (said * targets).sum() / (said.sum() + targets.sum())

    found = supposed(exam(nn.Linear(4, 1), loss=overlap))["detached_graph"]
    assert "threshold" in found.remedies[0].title
    edit = found.remedies[0].on_loss
    assert edit is not None
    outputs = torch.tensor([[2.0], [-2.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(edit(overlap)(outputs, torch.tensor([[1.0], [0.0]])), outputs)
    assert slope[0] < 0 < slope[1]


def test_a_share_of_wrong_answers_is_replaced_by_the_usual_loss() -> None:
    def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs[:, 0] > 0).float() != targets[:, 0]).float().mean()

    found = supposed(exam(nn.Linear(4, 1), loss=wrong))["detached_graph"]
    assert "BCEWithLogits" in found.remedies[0].title


def test_batch_normalisation_of_a_single_row() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    found = supposed(exam(model, batch_size=1))["tiny_batch_norm"]
    assert found.blocks
    assert found.remedies
    assert "tiny_batch_norm" not in supposed(exam(model, batch_size=32))


class Stepwise(nn.Module):
    """A cell that is run over a sequence; its state may be detached at every step."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head, self.cut = nn.GRUCell(1, 8), nn.Linear(8, 1), cut

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 8)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step : step + 1], state.detach() if self.cut else state)
        found: Tensor = self.head(state)
        return found


@pytest.mark.parametrize("cut", [True, False])
def test_a_state_that_is_detached_at_every_step(cut: bool) -> None:
    given = exam(Stepwise(cut=cut))
    given.observed = Laboratory(given.case, 1000).observe(given.program, 10)
    found = loop.cut_inside(given)
    assert (found is not None) == cut
    if found is not None:
        edit = found.remedies[0].on_model
        assert edit is not None
        x, y = rows(8)
        slopes = []
        for model in (edit(Stepwise(cut=True)), Stepwise(cut=False)):
            F.mse_loss(model(x), y).backward()
            slopes.append(next(model.parameters()).grad)
        torch.testing.assert_close(*slopes)


def test_a_frozen_table_of_embeddings_that_was_drawn() -> None:
    table = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    drawn, learned = (nn.Embedding.from_pretrained(t) for t in (table, 0.4 * table))
    assert frozen_as_drawn(nn.Sequential(drawn, nn.Linear(8, 1))) == ["0"]
    assert frozen_as_drawn(nn.Sequential(learned, nn.Linear(8, 1))) == []


@pytest.mark.parametrize("keeps", [True, False])
def test_batch_normalisation_that_keeps_no_statistics(keeps: bool) -> None:
    norm = nn.BatchNorm1d(8, track_running_stats=keeps)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 1))
    found = supposed(exam(model)).get("train_mode_eval")
    assert (found is not None) == (not keeps)
    if found is not None:
        edit = found.remedies[0].on_model
        assert edit is not None
        x, _ = rows(6)
        edited = edit(model).eval()
        torch.testing.assert_close(edited(x)[:1], edited(x[:1]))


@pytest.mark.parametrize("sampled", [False, True])
def test_a_sample_of_a_distribution_is_no_noise(sampled: bool) -> None:
    """Noise that is multiplied by deviations, number by number, and such of one size."""

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mean, self.spread, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            mean, spread = self.mean(x), self.spread(x).exp()
            found: Tensor = self.head(2 * mean + torch.randn_like(spread) * (spread if sampled else 0.1))
            return found

    assert ("train_mode_eval" in supposed(exam(Encoded))) != sampled
