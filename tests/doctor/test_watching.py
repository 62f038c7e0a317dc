"""Faults of somebody else's loop are found from what passes by; sound loops are left in peace."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline.run import Run

STEPS = 16
Batches = list[tuple[Tensor, Tensor]]


def data(steps: int = STEPS, rows: int = 16) -> Batches:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(steps):
        x = torch.randn(rows, 4, generator=generator)
        found.append((x, x.sum(1, keepdim=True)))
    return found


def mlp(*, mode: bool = False, outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    inner = [nn.BatchNorm1d(8), nn.Dropout(0.1)] if mode else []
    return nn.Sequential(nn.Linear(4, 8), *inner, nn.ReLU(), nn.Linear(8, outputs))


def causes(run: Run) -> list[str]:
    return run.findings["cause"].tolist()


def finding(run: Run, cause: str) -> dict[str, Any]:
    found: dict[str, Any] = next(json.loads(row["data"]) for row in run.findings if row["cause"] == cause)
    return found


class Loop:
    """One loop with switches for its faults."""

    def __init__(self, tmp_path: Path, model: nn.Module | None = None, **given: Any) -> None:
        self.model = model or mlp()
        self.loss_fn = given.pop("loss_fn", nn.MSELoss())
        make = given.pop("optimizer", lambda p: torch.optim.SGD(p, lr=0.01))
        self.optimizer = make(self.model.parameters())
        self.scheduler = given.pop("scheduler", lambda _: None)(self.optimizer)
        self.runs = tmp_path

    def watch(self) -> Any:
        return fogline.watch(
            self.model, self.optimizer, loss_fn=self.loss_fn, scheduler=self.scheduler, runs=self.runs, share=0.5
        )

    def run(
        self,
        batches: Batches | None = None,
        *,
        zero: bool = True,
        between: Callable[[int], object] = lambda _: None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Run:
        with self.watch() as run:
            for k, (x, y) in enumerate(batches or data()):
                if zero:
                    self.optimizer.zero_grad()
                value = (loss or self.loss_fn)(self.model(x), y)
                value.backward()
                self.optimizer.step()
                run.log(value)
                between(k)
            self.watched = run
        return run


# -- gradients that are not cleared --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_gradients_that_are_never_cleared(optimizer: Any, tmp_path: Path) -> None:
    run = Loop(tmp_path, optimizer=lambda p: optimizer(p, lr=0.001)).run(zero=False)
    assert causes(run) == ["missing_zero_grad"]
    found = finding(run, "missing_zero_grad")
    assert found["confidence"] > 0.9
    assert any("value.backward()" in str(item["value"]) for item in found["evidence"])
    assert [row["kind"] for row in run.events] == ["finding"]
    assert next(iter(run.findings))["step"] < 5  # said at once


def zero_by_hand(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()


@pytest.mark.parametrize("way", ["to none", "in place", "by hand", "at the end", "before backward", "model.zero_grad"])
def test_ways_to_clear_gradients(way: str, tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clear: dict[str, Callable[[], object]] = {
        "in place": lambda: optimizer.zero_grad(set_to_none=False),
        "by hand": lambda: zero_by_hand(model),
        "model.zero_grad": model.zero_grad,
    }
    zero = clear.get(way, optimizer.zero_grad)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for x, y in data():
            if way not in ("at the end", "before backward"):
                zero()
            loss = F.mse_loss(model(x), y)
            if way == "before backward":
                zero()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            if way == "at the end":
                zero()
            run.log(loss)
    assert not causes(run)


def test_two_networks_against_each_other(tmp_path: Path) -> None:
    """The generator's loss leaves gradients in the critic, which clears them before its own."""
    critic, maker = mlp(), nn.Linear(2, 4)
    first, second = torch.optim.Adam(critic.parameters(), lr=1e-3), torch.optim.Adam(maker.parameters(), lr=1e-3)
    loss_fn = nn.BCEWithLogitsLoss()
    with fogline.watch(critic, first, loss_fn=loss_fn, runs=tmp_path) as run:
        for x, _ in data():
            made = maker(torch.randn(16, 2))
            first.zero_grad()
            real = loss_fn(critic(x), torch.ones(16, 1))
            real.backward()
            fake = loss_fn(critic(made.detach()), torch.zeros(16, 1))
            fake.backward()
            first.step()
            run.log(real + fake)
            second.zero_grad()
            loss_fn(critic(made), torch.ones(16, 1)).backward()
            second.step()
    assert not causes(run)


def evaluate(model: nn.Module, x: Tensor, y: Tensor, clearing: torch.optim.Optimizer | None) -> Tensor:
    if clearing is not None:
        clearing.zero_grad()
    loss = F.mse_loss(model(x), y)
    loss.backward()
    return loss


def test_a_closure_that_does_not_clear(tmp_path: Path) -> None:
    for clears in (True, False):
        model = mlp()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
        with fogline.watch(model, optimizer, runs=tmp_path) as run:
            for x, y in data(6):
                optimizer.step(partial(evaluate, model, x, y, optimizer if clears else None))
        assert causes(run) == ([] if clears else ["missing_zero_grad"])


# -- accumulation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_accumulated_losses(divided: bool, optimizer: str, tmp_path: Path) -> None:
    model, loss_fn = mlp(), nn.MSELoss()
    opt = getattr(torch.optim, optimizer)(model.parameters(), lr=0.001)
    with fogline.watch(model, opt, loss_fn=loss_fn, runs=tmp_path) as run:
        for k, (x, y) in enumerate(data(40)):
            loss = loss_fn(model(x), y)
            (loss / 4 if divided else loss).backward()
            if k % 4 == 3:
                opt.step()
                opt.zero_grad()
            run.log(loss)
    assert causes(run) == ([] if divided or optimizer == "Adam" else ["accumulation_scale"])


# -- parameters ----------------------------------------------------------------------------------------------------


class Listed(nn.Module):
    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, 4) for _ in range(3)]
        self.layers = nn.ModuleList(layers) if registered else layers
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.last(x)


@pytest.mark.parametrize("registered", [True, False])
def test_layers_in_a_plain_list(registered: bool, tmp_path: Path) -> None:
    run = Loop(tmp_path, Listed(registered=registered)).run()
    assert causes(run) == ([] if registered else ["parameters_not_optimized"])


def test_parameters_that_another_optimizer_moves(tmp_path: Path) -> None:
    for second in (True, False):
        model = mlp()
        one = torch.optim.SGD(model[2].parameters(), lr=0.01)
        two = torch.optim.SGD(model[0].parameters(), lr=0.01)
        with fogline.watch(model, one, runs=tmp_path) as run:
            for x, y in data():
                one.zero_grad()
                two.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()
                one.step()
                if second:
                    two.step()
                run.log(loss)
        assert causes(run) == ([] if second else ["parameters_not_optimized"])


def test_a_backbone_that_is_frozen_on_purpose(tmp_path: Path) -> None:
    model = mlp(mode=True)
    with torch.no_grad():
        model[0].weight.mul_(2)  # not as it was drawn: trained by somebody
    model[0].requires_grad_(False)
    run = Loop(tmp_path, model, optimizer=lambda p: torch.optim.SGD([q for q in p if q.requires_grad], lr=0.01)).run()
    assert not causes(run)


def test_a_part_that_is_frozen_as_it_was_drawn(tmp_path: Path) -> None:
    model = mlp(mode=True)
    model[0].requires_grad_(False)
    run = Loop(tmp_path, model, optimizer=lambda p: torch.optim.SGD([q for q in p if q.requires_grad], lr=0.01)).run()
    assert causes(run) == ["frozen_parameters"]


class Cut(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.body, self.head, self.spare = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.head(self.body(x))
        hidden = torch.relu(self.body(x))
        if self.how == "unused head":
            self.spare(hidden)
        return self.head(hidden.detach() if self.how == "detach" else hidden)


@pytest.mark.parametrize("how", ["detach", "whole", "sound", "unused head"])
def test_a_graph_that_is_cut(how: str, tmp_path: Path) -> None:
    if how != "whole":
        run = Loop(tmp_path, Cut(how)).run()
        assert causes(run) == (["detached_graph"] if how == "detach" else [])
        return
    run = Loop(tmp_path, Cut("sound")).run(loss=lambda o, y: F.mse_loss(o.detach(), y).requires_grad_())
    assert causes(run) == ["detached_graph"]
    assert finding(run, "detached_graph")["severity"] == "fatal"


# -- modes ---------------------------------------------------------------------------------------------------------


def evaluating(model: nn.Module, run: Any, *, back: bool = True, evaluate: bool = True) -> None:
    if evaluate:
        model.eval()
    with torch.no_grad():
        loss = F.mse_loss(model(torch.ones(8, 4)), torch.ones(8, 1))
    run.log(valid=loss)
    if back:
        model.train()


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("back", [True, False])
def test_training_goes_on_in_evaluation_mode(mode: bool, back: bool, tmp_path: Path) -> None:
    loop = Loop(tmp_path, mlp(mode=mode))
    with loop.watch() as run:
        for k, (x, y) in enumerate(data(24)):
            loop.optimizer.zero_grad()
            loss = loop.loss_fn(loop.model(x), y)
            loss.backward()
            loop.optimizer.step()
            run.log(loss)
            if k % 6 == 5:
                evaluating(loop.model, run, back=back)
    assert causes(run) == (["eval_mode_training"] if mode and not back else [])


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("evaluate", [True, False])
def test_validation_in_training_mode(mode: bool, evaluate: bool, tmp_path: Path) -> None:
    loop = Loop(tmp_path, mlp(mode=mode))
    with loop.watch() as run:
        for k, (x, y) in enumerate(data(24)):
            loop.optimizer.zero_grad()
            loss = loop.loss_fn(loop.model(x), y)
            loss.backward()
            loop.optimizer.step()
            run.log(loss)
            if k % 6 == 5:
                evaluating(loop.model, run, evaluate=evaluate)
    assert causes(run) == (["train_mode_eval"] if mode and not evaluate else [])


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("rows", [2, 16])
def test_batch_normalisation_of_few_rows(rows: int, image: bool, tmp_path: Path) -> None:
    pixels = [
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 1),
    ]
    run = Loop(tmp_path, nn.Sequential(*pixels) if image else mlp(mode=True)).run(data(rows=rows))
    assert causes(run) == (["tiny_batch_norm"] if rows == 2 else [])


# -- outputs and loss ----------------------------------------------------------------------------------------------


def labels(batches: Batches) -> Batches:
    return [(x, (x[:, 0] > 0).long()) for x, _ in batches]


def ones(batches: Batches) -> Batches:
    return [(x, (x[:, :1] > 0).float()) for x, _ in batches]


def flat(batches: Batches) -> Batches:
    return [(x, y[:, 0]) for x, y in batches]


class AsFunction:
    """A loss that no hook can see."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.function(outputs, targets)


PAIRINGS: dict[str, tuple[Callable[[], nn.Module], Any, Callable[[Batches], Batches], str | None]] = {
    "softmax twice": (
        lambda: nn.Sequential(mlp(outputs=2), nn.Softmax(1)), nn.CrossEntropyLoss(), labels, "double_softmax",
    ),
    "softmax twice, function": (
        lambda: nn.Sequential(mlp(outputs=2), nn.Softmax(1)), AsFunction(F.cross_entropy), labels, "double_softmax",
    ),
    "logits": (lambda: mlp(outputs=2), nn.CrossEntropyLoss(), labels, None),
    "log-softmax and nll": (
        lambda: nn.Sequential(mlp(outputs=2), nn.LogSoftmax(1)), nn.NLLLoss(), labels, None,
    ),
    "softmax and nll": (
        lambda: nn.Sequential(mlp(outputs=2), nn.Softmax(1)), nn.NLLLoss(), labels, "loss_mismatch",
    ),
    "one unit": (lambda: nn.Sequential(mlp(), nn.Softmax(1)), nn.BCELoss(), ones, "softmax_single_unit"),
    "sigmoid and bce": (lambda: nn.Sequential(mlp(), nn.Sigmoid()), nn.BCELoss(), ones, None),
    "sigmoid twice": (
        lambda: nn.Sequential(mlp(), nn.Sigmoid()), nn.BCEWithLogitsLoss(), ones, "output_activation",
    ),
    "sigmoid on numbers": (lambda: nn.Sequential(mlp(), nn.Sigmoid()), nn.MSELoss(), lambda b: b, "output_activation"),
    "function broadcast": (mlp, AsFunction(lambda o, y: ((o - y) ** 2).mean()), flat, "shape_broadcast"),
    "module sound": (mlp, nn.MSELoss(), lambda b: b, None),
    "pairs on purpose": (
        mlp, AsFunction(lambda o, y: F.softplus(-(o - o.mT) * (y - y.mT).sign()).mean()), lambda b: b, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRINGS)
def test_outputs_and_loss(name: str, tmp_path: Path) -> None:
    make, loss_fn, rows, cause = PAIRINGS[name]
    run = Loop(tmp_path, make(), loss_fn=loss_fn).run(rows(data()))
    assert causes(run) == ([] if cause is None else [cause])
    if cause is not None:
        assert next(iter(run.findings))["step"] == 0 or isinstance(loss_fn, AsFunction)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_module_that_broadcasts(tmp_path: Path) -> None:
    run = Loop(tmp_path).run(flat(data()))
    assert causes(run) == ["shape_broadcast"]
    assert "(16, 1)" in finding(run, "shape_broadcast")["explanation"]


# -- schedules -----------------------------------------------------------------------------------------------------


def scheduled(
    tmp_path: Path, scheduler: Callable[[Any], Any], when: Callable[[int], bool], steps: int = 80, epoch: int = 40
) -> Run:
    loop = Loop(tmp_path, scheduler=scheduler)
    with loop.watch() as run:
        for k, (x, y) in enumerate(data(steps)):
            loop.optimizer.zero_grad()
            loss = loop.loss_fn(loop.model(x), y)
            loss.backward()
            loop.optimizer.step()
            run.log(loss)
            if when(k):
                loop.scheduler.step()
            if k % epoch == epoch - 1:
                evaluating(loop.model, run)
    return run


lr_scheduler = torch.optim.lr_scheduler
SCHEDULES: dict[str, tuple[Callable[[Any], Any], Callable[[int], bool], bool]] = {
    "steps by epoch": (lambda o: lr_scheduler.StepLR(o, 1), lambda k: k % 40 == 39, False),
    "steps by batch": (lambda o: lr_scheduler.StepLR(o, 5), lambda k: True, True),
    "slowly by batch": (lambda o: lr_scheduler.ExponentialLR(o, 0.85), lambda k: True, True),
    "cosine over the run": (lambda o: lr_scheduler.CosineAnnealingLR(o, 80), lambda k: True, False),
    "cosine of two epochs by batch": (lambda o: lr_scheduler.CosineAnnealingLR(o, 2), lambda k: True, True),
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=80), lambda k: k < 79, False),
    "one cycle by epoch": (lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=80), lambda k: k % 40 == 39, True),
    "never": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), lambda k: False, True),
    "warm-up by batch": (lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=10), lambda k: True, False),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_unit_of_a_schedule(name: str, tmp_path: Path) -> None:
    scheduler, when, faulty = SCHEDULES[name]
    assert causes(scheduled(tmp_path, scheduler, when)) == (["schedule_step_unit"] if faulty else [])


@pytest.mark.parametrize(("name", "either"), [("slowly by batch", True), ("never", False)])
def test_a_schedule_that_is_too_quick_may_be_meant_so(name: str, either: bool, tmp_path: Path) -> None:
    scheduler, when, _ = SCHEDULES[name]
    found = scheduled(tmp_path, scheduler, when).diagnose().findings
    first = next(f for f in found if f.cause == "schedule_step_unit")
    others = [f for f in found if f.instead_of]
    assert [(f.cause, f.instead_of) for f in others] == ([("bad_schedule", "schedule_step_unit")] if either else [])
    assert all(f.confidence < first.confidence and f.remedy is None for f in others)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_schedule_that_steps_first(tmp_path: Path) -> None:
    loop = Loop(tmp_path, scheduler=lambda o: lr_scheduler.StepLR(o, 100))
    with loop.watch() as run:
        for x, y in data():
            loop.optimizer.zero_grad()
            loss = loop.loss_fn(loop.model(x), y)
            loss.backward()
            loop.scheduler.step()
            loop.optimizer.step()
            run.log(loss)
    assert causes(run) == ["schedule_step_unit"]


# -- numbers -------------------------------------------------------------------------------------------------------


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.log(torch.relu(self.body(x)) + x.abs().amax(1, keepdim=True)))


def test_the_operation_of_the_first_nan_is_named(tmp_path: Path) -> None:
    batches = data()
    batches[5][0][3] = 0.0  # log(0) in the fourth row of the sixth batch, unless a unit is active
    model = Root()
    with torch.no_grad():
        model.body.bias.fill_(-9.0)
    run = Loop(tmp_path, model).run(batches)
    assert causes(run) == ["log_of_zero"]
    found = finding(run, "log_of_zero")
    assert "log" in found["explanation"]
    assert next(iter(run.findings))["step"] == 5


def test_rows_with_nan_are_named(tmp_path: Path) -> None:
    batches = data()
    batches[4][0][7, 1] = torch.nan
    run = Loop(tmp_path).run(batches)
    assert causes(run) == ["nan_in_data"]
    assert any(item["value"] == "7" for item in finding(run, "nan_in_data")["evidence"])


def test_a_scaler_that_skips_for_ever(tmp_path: Path) -> None:
    for bad in (True, False):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with fogline.watch(model, optimizer, runs=tmp_path) as run:
            for k, (x, y) in enumerate(data(60)):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.float16):
                    loss = F.mse_loss(model(x), y) * (torch.inf if bad and k % 3 else 1.0)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                if torch.isfinite(loss):
                    run.log(loss)
        assert causes(run) == (["amp_scale_collapse"] if bad else [])


# -- nothing is disturbed ------------------------------------------------------------------------------------------


def everything(model: nn.Module) -> Iterator[Tensor]:
    yield from model.state_dict().values()
    yield from (p.grad for p in model.parameters() if p.grad is not None)
    yield torch.get_rng_state()


def test_a_faulty_loop_ends_with_the_same_bits(tmp_path: Path) -> None:
    ends = []
    for watched in (True, False):
        loop = Loop(tmp_path, nn.Sequential(mlp(mode=True, outputs=2), nn.Softmax(1)), loss_fn=nn.CrossEntropyLoss())
        batches = labels(data())
        batches[12][0][0, 0] = torch.nan
        if watched:
            run = loop.run(batches, zero=False)
            assert set(causes(run)) == {"double_softmax", "missing_zero_grad", "nan_in_data"}
        else:
            for x, y in batches:
                loop.loss_fn(loop.model(x), y).backward()
                loop.optimizer.step()
        ends.append([value.clone() for value in everything(loop.model)])
        assert not any(m._forward_hooks for m in loop.model.modules())
        assert not any(p._backward_hooks for p in loop.model.parameters())
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*ends, strict=True))


# -- scales of the first batch, where the loop learned nothing ---------------------------------------------------------


def scaled(times: float = 1.0, shift: float = 0.0, inputs: float = 1.0) -> Batches:
    return [(x * inputs, y * times + shift) for x, y in data(60, rows=32)]


@pytest.mark.parametrize(("times", "shift"), [(1e4, 0.0), (10.0, 500.0)])
def test_targets_far_from_the_outputs_explain_a_loop_that_learned_nothing(
    tmp_path: Path, times: float, shift: float
) -> None:
    loop = Loop(tmp_path, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    run = loop.run(scaled(times, shift))
    assert causes(run) == ["unscaled_target"]
    assert run.info["loss_over_constant"] > 0.5
    assert run.diagnose().verdict == "faulty"


def test_inputs_far_from_one_explain_a_loop_that_learned_nothing(tmp_path: Path) -> None:
    loop = Loop(tmp_path, optimizer=lambda p: torch.optim.SGD(p, lr=1e-9))
    assert "unscaled_input" in causes(loop.run(scaled(inputs=1e3)))


def test_scales_are_no_fault_where_the_loop_learned_all_the_same(tmp_path: Path) -> None:
    loop = Loop(tmp_path, nn.Linear(4, 1), optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    run = loop.run(scaled(1e4, 0.0) * 5)
    assert run.info["loss_over_constant"] < 0.1
    assert causes(run) == []


def test_a_loop_that_ends_no_better_than_the_best_constant_is_not_called_healthy(tmp_path: Path) -> None:
    loop = Loop(tmp_path, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    generator = torch.Generator().manual_seed(1)
    run = loop.run([(x, torch.randn(len(x), 1, generator=generator)) for x, _ in data(400, rows=32)])
    assert run.info["loss_over_constant"] == pytest.approx(1, abs=0.2)
    report = run.diagnose()
    assert report.verdict != "healthy"
    assert "best answer that does not look at the inputs" in str(report)
