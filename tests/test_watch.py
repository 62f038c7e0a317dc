"""``watch`` sees what happens in a loop of any shape, and changes nothing in it."""

from __future__ import annotations

import copy
import io
import random
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.run import Run
from fogline.verdict import Verdict

BATCH, STEPS = 16, 12


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))


def batches(count: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(BATCH, 4, generator=generator)
        yield x, x.sum(dim=1, keepdim=True)


def plain_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    log: Callable[[Tensor], object] = Tensor.detach,
    steps: int = STEPS,
) -> list[float]:
    """The loop of every tutorial; gives the losses."""
    losses = []
    for x, y in batches(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        log(loss)
        losses.append(loss.item())
    return losses


def closure_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, log: Callable[[Tensor], object] = Tensor.detach
) -> None:
    for x, y in batches(4):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def left_by(error: BaseException, runs: Path) -> Run:
    """The run of a loop that this error leaves."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = fogline.watch(model, optimizer, runs=runs)

    def loop() -> None:
        with run:
            plain_loop(model, optimizer, run.log)
            raise error

    with pytest.raises(type(error)) as caught:
        loop()
    assert caught.value is error
    return run


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Everything a loop leaves behind, copied."""
    kept = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    kept += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    return [value.detach().clone() for value in kept] + [torch.get_rng_state()]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_watched_loop_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    loop = closure_loop if kind == "lbfgs" else plain_loop
    ends = []
    for watched in (False, True):
        model = make_model()
        optimizer = OPTIMIZERS[kind](model.parameters())
        before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.is_grad_enabled())  # type: ignore[union-attr]
        if watched:
            with fogline.watch(model, optimizer, runs=tmp_path, share=0.9) as run:
                loop(model, optimizer, run.log)
            assert len(run.steps) == (4 if kind == "lbfgs" else STEPS)
            assert len(run.layers)  # there were probes
        else:
            loop(model, optimizer)
        assert before == (random.getstate(), np.random.get_state()[1].tobytes(), torch.is_grad_enabled())  # type: ignore[union-attr]
        assert all(module.training for module in model.modules())
        ends.append(state_of(model, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_signals_are_those_of_the_closed_form(tmp_path: Path) -> None:
    """w -> (1 - lr) w on w^2/2: every signal is known."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 8.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.9) as run:
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.ones(3, 1, dtype=torch.float64)).square().mean() / 2
            loss.backward()
            optimizer.step()
            run.log(loss)
    steps = run.steps
    assert steps["loss"].tolist() == [32.0, 8.0, 2.0, 0.5]
    assert steps["grad_norm"].tolist() == [8.0, 4.0, 2.0, 1.0]
    assert steps["lr"].tolist() == [0.5] * 4
    assert steps["examples"].tolist() == [0, 3, 6, 9]
    second = list(steps)[1]
    assert second["update_norm"] == 2.0
    assert second["update_ratio"] == 0.5
    assert second["step_cosine"] == 1.0
    assert second["overshoot"] == -0.5
    layer = next(iter(run.layers))
    assert (layer["step"], layer["weight_norm"], layer["grad_norm"], layer["update_norm"]) == (1, 4.0, 4.0, 2.0)
    assert layer["activation_rms"] == 4.0


@pytest.mark.parametrize("where", ["after the step", "before the step", "on the loss module", "by the closure"])
def test_a_loss_belongs_to_the_step_its_forward_pass_was_for(where: str, tmp_path: Path) -> None:
    model, loss_fn = make_model(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    wanted = plain_loop(copy.deepcopy(model), torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.0))[:1]
    losses = []
    with fogline.watch(model, optimizer, loss_fn=loss_fn if "module" in where else None, runs=tmp_path) as run:
        for x, y in batches():
            loss = loss_fn(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            if where == "before the step":
                run.log(loss)
            if where == "by the closure":
                optimizer.step(lambda loss=loss: loss)
            else:
                optimizer.step()
            if where == "after the step":
                run.log(loss.item())
    assert len(wanted) == 1
    assert run.steps["loss"].tolist() == losses


@pytest.mark.parametrize("first", [True, False])
def test_losses_of_accumulated_batches_are_averaged(first: bool, tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for k, (x, y) in enumerate(batches()):
            loss = nn.functional.mse_loss(model(x), y)
            losses.append(loss.item())
            (loss / 3).backward()
            if first:
                run.log(loss)
            if k % 3 == 2:
                optimizer.step()
                optimizer.zero_grad(set_to_none=k % 2 == 0)
            if not first:
                run.log(loss)
    assert np.allclose(run.steps["loss"], np.array(losses).reshape(-1, 3).mean(axis=1), rtol=1e-12)
    assert run.steps["examples"].tolist() == [0, 48, 96, 144]
    assert not len(run.events)


def test_forward_passes_without_gradient_are_not_training(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def validate(_: Tensor) -> None:
        with torch.no_grad():
            model(torch.randn(100, 4))

    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        losses = plain_loop(model, optimizer, lambda loss: (validate(loss), run.log(loss)))
    assert run.steps["loss"].tolist() == losses
    assert run.steps["examples"].tolist() == [BATCH * k for k in range(STEPS)]


def test_the_learning_rate_is_that_of_the_step(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with fogline.watch(model, optimizer, scheduler=scheduler, runs=tmp_path) as run:
        plain_loop(model, optimizer, lambda loss: (scheduler.step(), run.log(loss)), steps=4)
    assert run.steps["lr"].tolist() == [1.0, 0.5, 0.25, 0.125]
    assert run.info["mechanics"]["scheduler"] == "ExponentialLR"
    assert run.recipe.lr == 1.0
    assert run.recipe.optimizer == "sgd"


def test_held_out_scores(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        run.log(valid=2.0)
        plain_loop(model, optimizer, run.log)
        run.log(valid=torch.tensor(0.5), accuracy=0.75)
        run.log(valid={"loss": 0.25}, step=STEPS)
    found = [(row["step"], row["name"], row["value"]) for row in run.scores]
    assert found == [(0, "loss", 2.0), (11, "accuracy", 0.75), (11, "loss", 0.5), (12, "loss", 0.25)]
    assert run.final_scores() == {"loss": 0.25, "accuracy": 0.75}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("placed", ["zero first", "zero last"])
def test_a_step_that_the_gradient_scaler_skips_is_an_event(fused: bool, placed: str, tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    norms, losses = [], []
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.9) as run:
        for k, (x, y) in enumerate(batches()):
            if placed == "zero first":
                optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            bad = k in (3, 4)
            scaler.scale(loss * (torch.inf if bad else 1)).backward()
            if not bad:
                losses.append(loss.item())
                scale = scaler.get_scale()
                squares = sum(
                    (p.grad.double() / scale).square().sum() for p in model.parameters() if p.grad is not None
                )
                norms.append(float(squares) ** 0.5)
            scaler.step(optimizer)
            scaler.update()
            if placed == "zero last":
                optimizer.zero_grad()
            run.log(loss)
    assert run.steps["step"].tolist() == list(range(STEPS - 2))
    assert run.steps["loss"].tolist() == losses
    assert np.allclose(run.steps["grad_norm"], norms, rtol=1e-5)
    assert [row["kind"] for row in run.events] == ["amp_skip", "amp_skip"]
    assert [row["step"] for row in run.events] == [3, 3]
    assert run.info["skipped"] == 2
    assert len(run.layers)


def test_two_networks_that_drop_each_others_gradients_are_no_skips(tmp_path: Path) -> None:
    model, other = make_model(), nn.Linear(1, 1)
    optimizer, second = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, other))
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for x, y in batches():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            run.log(loss)
            second.zero_grad()
            other(model(x)).mean().backward()
            second.step()
    assert not len(run.events)
    assert len(run.steps) == STEPS


@pytest.mark.parametrize("given", ["compiled", "plain", "in place"])
def test_compiled_models_are_not_compiled_again(given: str, tmp_path: Path) -> None:
    graphs = 0

    def backend(module: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return module.forward

    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    compiled: Any = model
    if given == "in place":
        model.compile(backend=backend, fullgraph=True)
    else:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched: nn.Module = compiled if given == "compiled" else model
    with fogline.watch(watched, optimizer, runs=tmp_path, share=0.9) as run:
        losses = plain_loop(compiled, optimizer, run.log)
    assert graphs == 1
    assert run.steps["loss"].tolist() == losses
    assert run.info["task"]["model"] == "Sequential"
    assert set(run.layers["layer"]) == {"0", "2"}
    plain_loop(compiled, optimizer)
    assert graphs <= 2


def test_a_nan_is_named_and_judged(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for k, (x, y) in enumerate(batches(40)):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y) * (torch.nan if k >= 20 else 1.0)
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert run.verdict is Verdict.NONFINITE
    event, finding = sorted(run.events, key=lambda row: row["kind"], reverse=True)
    assert (event["step"], event["kind"]) == (20, "nonfinite")
    assert "step 20" in event["message"]
    assert (finding["step"], finding["kind"]) == (20, "finding")
    assert run.findings["cause"].tolist() == ["nan_source"]
    assert "refused" not in run.info["verdict"]["message"]


def test_steps_without_a_logged_loss_are_not_held_against_the_run(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    count = 0

    with fogline.watch(model, optimizer, runs=tmp_path, share=0.9) as run:

        def log(loss: Tensor) -> None:
            nonlocal count
            if count % 10 == 0:
                run.log(loss)
            count += 1

        plain_loop(model, optimizer, log, steps=300)
    assert np.isfinite(run.steps["loss"]).sum() == 30
    assert run.verdict in (Verdict.IMPROVING, Verdict.NOISE_FLOOR)
    assert not len(run.events)


@pytest.mark.parametrize(("lr", "verdict"), [(0.003, Verdict.IMPROVING), (0.1, Verdict.NOISE_FLOOR), (9.0, None)])
def test_verdicts(lr: float, verdict: Verdict | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for x, y in batches(200):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y + 0.3 * torch.randn_like(y))
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert run.verdict in ((verdict,) if verdict else (Verdict.DIVERGED, Verdict.NONFINITE))


def test_an_exception_goes_through_and_is_noted(tmp_path: Path) -> None:
    run = left_by(KeyError("theirs"), tmp_path)
    assert len(run.steps) == STEPS
    assert [row["kind"] for row in run.events] == ["exception"]
    assert "KeyError" in next(iter(run.events))["message"]
    assert run.verdict is Verdict.INTERRUPTED


def test_ctrl_c_closes_the_run_as_interrupted(tmp_path: Path) -> None:
    run = left_by(KeyboardInterrupt(), tmp_path)
    assert run.verdict is Verdict.INTERRUPTED
    assert len(run.steps) == STEPS
    assert [row["kind"] for row in run.events] == ["interrupted"]
    assert "resume" not in run.info["verdict"]["message"]


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    parameters = sum(len(getattr(p, "_post_accumulate_grad_hooks", None) or ()) for p in model.parameters())
    return modules + parameters + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_hooks_are_taken_away(tmp_path: Path) -> None:
    model, loss_fn = make_model(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, name="mine")
    assert (
        hooks_of(model, optimizer) == 4 + 2
    )  # one on each linear layer, until it is clear that no examples are logged
    plain_loop(model, optimizer, run.log, steps=1)
    assert hooks_of(model, optimizer) == 4
    plain_loop(model, optimizer, run.log, steps=STEPS - 1)
    run.note("half way", learning="well")
    run.close()
    run.close()
    assert hooks_of(model, optimizer) == 0
    assert not loss_fn._forward_hooks
    plain_loop(model, optimizer, run.log)
    assert len(run.steps) == STEPS
    opened = fogline.Run.open(tmp_path / "mine")
    assert opened.verdict is run.verdict
    assert [row["message"] for row in opened.events] == ["half way"]
    assert 0 < run.info["watching"]["share"] < 1
    assert run.info["watching"]["budget"] == 0.02


def test_a_folder_that_cannot_be_written_ends_the_watching_and_not_the_training(tmp_path: Path) -> None:
    model, calls = make_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = fogline.watch(model, optimizer, runs=tmp_path)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))  # somebody else's, called after ours
    run._store._connection.execute("pragma query_only=on")

    def log(loss: Tensor) -> None:
        run.log(loss)
        run._recorder._flushed = 0.0  # it is time to write

    with pytest.warns(RuntimeWarning, match=r"watching ended at step \d+, training goes on: .* cannot be written"):
        plain_loop(model, optimizer, log)
    assert len(calls) == STEPS
    with pytest.warns(RuntimeWarning, match="could not be closed"):
        run.close()
    assert hooks_of(model, optimizer) == 1


def test_copies_of_a_watched_model_are_not_watched(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        average = torch.optim.swa_utils.AveragedModel(model)
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        plain_loop(model, optimizer, run.log)
        for twin in (average, loaded, copy.deepcopy(model)):
            twin(torch.randn(50, 4))
    assert run.steps["examples"].tolist() == [BATCH * k for k in range(STEPS)]


def test_trainable_parameters_outside_the_optimizer_are_noted(tmp_path: Path) -> None:
    model = make_model()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.01)
    optimizer.add_param_group({"params": model[4].parameters(), "lr": 0.02})
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        plain_loop(model, optimizer, run.log)
    (note,) = run.info["notes"]
    assert "1.weight, 1.bias" in note
    assert "0.weight" not in note


def test_nothing_to_judge_is_said(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with (
        pytest.warns(UserWarning, match=r"no loss was seen.*run\.log"),
        fogline.watch(model, optimizer, runs=tmp_path) as run,
    ):
        plain_loop(model, optimizer)
    assert len(run.steps) == STEPS
    assert run.verdict is None
    with pytest.warns(UserWarning, match="no step was seen"), fogline.watch(model, optimizer, runs=tmp_path):
        pass


def test_sparse_gradients(tmp_path: Path) -> None:
    model = nn.Sequential(nn.EmbeddingBag(10, 4, sparse=True, mode="sum"), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.9) as run:
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.tensor([[1, 1, 2], [3, 4, 1]])).square().mean()
            loss.backward()
            wanted = sum(float(p.grad.to_dense().square().sum()) for p in model.parameters() if p.grad is not None)
            optimizer.step()
            run.log(loss)
    assert np.isclose(run.steps["grad_norm"][-1], wanted**0.5)
    assert set(run.layers["layer"]) == {"0", "1"}


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    other = torch.optim.SGD(make_model().parameters(), lr=0.01)
    for arguments, error, words in (
        ((print, optimizer), TypeError, "expected a torch.nn.Module"),
        ((model, model), TypeError, "expected a torch.optim.Optimizer"),
        ((model, [optimizer]), TypeError, "watch each optimizer on its own"),
        ((nn.Linear(1, 1).requires_grad_(False), other), ValueError, "model with trainable parameters"),
    ):
        with pytest.raises(error, match=words):
            fogline.watch(*arguments, runs=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share of the time"):
        fogline.watch(model, optimizer, runs=tmp_path, share=1.5)
    with pytest.raises(ValueError, match="plain folder name"):
        fogline.watch(model, optimizer, runs=tmp_path, name="a/b")
    assert not list(tmp_path.iterdir())
    assert hooks_of(model, optimizer) == 0
    with fogline.watch(model, optimizer, runs=tmp_path, name="one") as run:
        plain_loop(model, optimizer, run.log)
        with pytest.raises(ValueError, match=r"received a tensor of shape \(2,\); take its mean"):
            run.log(torch.ones(2))
        with pytest.raises(TypeError, match="received str"):
            run.log("0.5")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"\(11 or 12\), received step=5"):
            run.log(0.5, step=5)
    with pytest.raises(FileExistsError, match="take another name"):
        fogline.watch(model, optimizer, runs=tmp_path, name="one")


def test_the_report_of_a_watched_run(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    seen = []
    with fogline.watch(model, optimizer, runs=tmp_path, progress=seen.append) as run:
        losses = plain_loop(model, optimizer, run.log)
    assert (seen[-1].step, seen[-1].lr) == (STEPS, 0.01)
    assert seen[-1].loss == losses[-1]
    assert "AdamW" in run.report(tmp_path / "run.html").read_text()


@pytest.mark.parametrize("where", ["after the step", "before the step", "accumulated"])
def test_sparse_rows_hold_the_values_of_their_steps(where: str, tmp_path: Path) -> None:
    """Where steps are too fast for a row each, the hooks come and go; what is recorded stays right."""
    model, loss_fn = make_model(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, norms = [], []
    every = 2 if where == "accumulated" else 1
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.9) as run:
        run._recorder.stride = 4
        for k, (x, y) in enumerate(batches(40)):
            loss = loss_fn(model(x), y)
            losses.append(loss.item())
            loss.backward()
            if where == "before the step":
                run.log(loss)
            if k % every == every - 1:
                norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))  # type: ignore[misc]
                optimizer.step()
                optimizer.zero_grad()
            if where != "before the step":
                run.log(loss)
    steps = run.steps
    assert steps["step"].tolist() == list(range(0, 40 // every, 4))
    assert np.allclose(steps["loss"], np.array(losses).reshape(-1, every).mean(axis=1)[::4], rtol=1e-12)
    assert np.allclose(steps["grad_norm"], norms[::4], rtol=1e-5)
    assert steps["examples"].tolist() == [BATCH * every * k for k in steps["step"]]
    assert set(run.layers["step"]) <= set(steps["step"])
    assert len(run.layers)
    assert run.info["steps"] == 40 // every
    assert hooks_of(model, optimizer) == 0


def test_the_loss_of_a_skipped_step_is_dropped_where_no_forward_pass_was_seen(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for k, (x, y) in enumerate(batches()):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model.forward(x), y) * (torch.inf if k == 3 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            run.log(loss)
            losses.append(loss.item())
    assert run.steps["loss"].tolist() == losses[:3] + losses[4:]


@pytest.mark.parametrize("where", ["after the step", "before the step"])
def test_sparse_rows_keep_their_steps_where_a_scaler_skips(where: str, tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.9) as run:
        run._recorder.stride = 4
        for k, (x, y) in enumerate(batches(40)):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            bad = k in (9, 10, 21)
            scaler.scale(loss * (torch.inf if bad else 1)).backward()
            if not bad:
                losses.append(loss.item())
            if where == "before the step":
                run.log(loss)
            scaler.step(optimizer)
            scaler.update()
            if where == "after the step":
                run.log(loss)
    assert run.steps["step"].tolist() == list(range(0, 37, 4))
    assert run.steps["loss"].tolist() == losses[::4]
    assert [row["step"] for row in run.events] == [9, 9, 19]


def test_a_loss_module_is_looked_at_where_the_loop_logs_now_and_then(tmp_path: Path) -> None:
    model, loss_fn = make_model(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path) as run:
        for k, (x, y) in enumerate(batches()):
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if k % 10 == 0:
                run.log(loss)
    found = run.steps["loss"]
    assert np.isfinite(found).sum() >= STEPS - 1  # until it is noticed that a loss was not logged
    assert all(a == b for a, b in zip(found.tolist(), losses, strict=True) if np.isfinite(a))


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "your_own_loop.py"), run_name="__main__")
    assert "held-out accuracy 0.9" in capsys.readouterr().out


def test_a_norm_told_before_the_clip_is_the_one_that_is_recorded(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    told = []
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for x, y in batches():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            told.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3).item())
            run.before_clipping(told[-1])
            optimizer.step()
            run.log(loss)
    assert run.steps["grad_norm"].tolist() == pytest.approx(told)


def test_what_others_find_and_refuse_is_in_the_run(tmp_path: Path) -> None:
    from fogline.doctor.finding import Evidence, Finding

    found = Finding("nan_in_data", "serious", 0.9, (Evidence("image", "a.png"),), "One image is not finite.")
    model = make_model()
    with fogline.watch(model, torch.optim.SGD(model.parameters(), lr=0.01), runs=tmp_path) as run:
        run.found(found)
        run.found(found)
        run.refuse("left out", file="a.png")
    assert run.findings["cause"].tolist() == ["nan_in_data"]
    assert [row["data"] for row in run.events if row["kind"] == "refused"] == ['{"file": "a.png"}']
    assert run.verdict is Verdict.NONFINITE  # nothing but what was refused
    assert run.info["refused"] == 1


def test_a_dict_is_as_long_as_its_largest_tensor(tmp_path: Path) -> None:
    class OnDict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.inner(batch["img"]).square().mean()

    model = OnDict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for _ in range(2):
            loss = model({"boxes": torch.zeros(9, 1), "img": torch.ones(5, 4)})
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert run.steps["examples"].tolist() == [0, 5]
