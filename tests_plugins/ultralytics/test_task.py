"""YOLO trained by our own engine: resumed bit for bit, with Ultralytics' loss, optimizer and validator."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fogline
from fogline.plugins.ultralytics import evaluate, find_lr, recipe, task
from fogline.plugins.ultralytics.images import image_losses
from fogline.plugins.ultralytics.task import ImageLoss, as_theirs, collate

BATCH = 8
Make = Callable[[str], Any]
Given = Callable[..., dict[str, Any]]


def settings(given: Given, data: str = "boxes.yaml", **more: Any) -> dict[str, Any]:
    """Of a task: without what only a training of theirs has."""
    found = given(data, **more)
    return {name: value for name, value in found.items() if name not in ("project", "name", "verbose")}


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("yolo26n", "boxes.yaml"),
        ("yolo11n", "boxes.yaml"),
        ("yolo26n-seg", "outlines.yaml"),
        ("yolo26n-cls", "classes"),
    ],
)
def test_the_loss_is_theirs_of_an_image_and_the_gradient_theirs_of_all(
    make: Make, given: Given, model: str, data: str
) -> None:
    found = task(make(model), **settings(given, data, mosaic=0.0, nbs=2 * BATCH))
    torch.manual_seed(0)
    network: Any = found.model()
    batch = next(iter(found.train))
    loss = found.loss.function(network, batch)
    copied: Any = found.model
    torch.manual_seed(0)
    again = copied()
    theirs, _ = again.loss(as_theirs(batch))
    expected = theirs.sum().detach() / (1 if model.endswith("cls") else len(batch["img"]))
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    theirs.sum().backward()
    for (name, p), q in zip(network.named_parameters(), again.parameters(), strict=True):
        if q.grad is not None:  # two batches make an update, of whose gradients the engine takes the mean
            torch.testing.assert_close(p.grad, 2 * q.grad, msg=name)


def test_the_weight_of_the_branches_is_a_function_of_the_epoch(make: Make, given: Given) -> None:
    network: Any = task(make("yolo26n"), **settings(given)).model()
    loss = ImageLoss(11, summed=True)
    network.args.epochs = 11
    theirs = network.init_criterion()
    for epoch in range(12):
        ours = loss.criterion(network, torch.tensor(epoch))
        assert float(ours.o2m) == pytest.approx(theirs.o2m)
        assert float(ours.o2o) == pytest.approx(theirs.o2o)
        theirs.update()


def test_an_image_has_the_loss_that_it_has_alone(make: Make, given: Given) -> None:
    found = task(make("yolo26n"), **settings(given))
    network: Any = found.model().eval()
    examples = [found.valid.dataset[k] for k in range(3)]
    together = image_losses(network, collate(examples))
    alone = torch.cat([image_losses(network, collate([example])) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["AdamW", "MuSGD"])
def test_a_run_that_was_left_goes_on_bit_for_bit(make: Make, given: Given, tmp_path: Path, optimizer: str) -> None:
    """Over the end of the mosaics, in the middle of an epoch."""
    told = settings(given, epochs=3, close_mosaic=1, optimizer=optimizer)
    how = recipe(make("yolo26n"), **told).replace(lr=0.002)
    whole = fogline.fit(task(make("yolo26n"), **told), how, runs=tmp_path, name="whole")
    for step in fogline.descend(task(make("yolo26n"), **told), how, runs=tmp_path, name="left"):
        if step.number == 2:
            break
    resumed = fogline.resume(tmp_path / "left", task(make("yolo26n"), **told))
    assert len(whole.steps) == len(resumed.steps) == 6
    assert whole.steps["loss"].tobytes() == resumed.steps["loss"].tobytes()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_recipe_is_what_their_trainer_would_take(make: Make, given: Given) -> None:
    found = recipe(make("yolo26n"), **settings(given, nbs=32, optimizer="MuSGD", epochs=5))
    assert (found.optimizer, found.accumulate, found.batch_size, found.duration) == ("musgd", 4, 32, "5ep")
    assert found.clip == 10
    assert set(found.lr_scale.values()) == {3.0}
    assert recipe(make("yolo26n"), **settings(given)).optimizer == "adamw"
    with pytest.raises(ValueError, match="expected AdamW, SGD or MuSGD"):
        recipe(make("yolo26n"), **settings(given, optimizer="RMSprop"))


def test_musgd_takes_the_steps_of_theirs(make: Make, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs without its rounding to half precision."""
    from fogline.descent.optimizers import build, set_lr
    from fogline.plugins.ultralytics.setting import setting

    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    told = settings(given, optimizer="MuSGD", lr0=0.01)
    found = setting(make("yolo26n"), told["data"], {k: v for k, v in told.items() if k != "data"})
    torch.manual_seed(0)
    one = found.model()
    torch.manual_seed(0)
    other = found.model()
    theirs, how = found.optimizer(one), recipe(make("yolo26n"), **told)
    ours = build(other, "musgd", 0.01, weight_decay=how.weight_decay, options=how.options, lr_scale=how.lr_scale)
    set_lr(ours, 0.01)
    for step in range(3):
        draws = torch.Generator().manual_seed(step)
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=draws) * 0.01 if p.requires_grad else None
            q.grad = None if p.grad is None else p.grad.clone()
        theirs.step()
        ours.step()
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.detach(), p.detach(), rtol=0, atol=4e-5, msg=name)


def test_a_rate_is_found_and_nothing_is_disturbed(make: Make, given: Given) -> None:
    yolo = make("yolo26n")
    before = {name: value.clone() for name, value in yolo.model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    rate = find_lr(yolo, **settings(given, epochs=10))
    assert 1e-4 < rate.value < 1
    assert rate.cost_steps <= 60
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert not torch.are_deterministic_algorithms_enabled()
    for name, value in yolo.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_their_validator_judges_our_model_and_leaves_it_alone(make: Make, given: Given) -> None:
    yolo = make("yolo26n")
    network = task(yolo, **settings(given)).model()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert set(evaluate(yolo, network, **settings(given))) >= {"mAP50(B)", "mAP50-95(B)", "fitness"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_is_not_known_here_is_refused(make: Make, given: Given) -> None:
    with pytest.raises(ValueError, match="detect, segment, classify, received one for 'pose'"):
        task(make("yolo26n-pose"), **settings(given))
    with pytest.raises(ValueError, match="expected no multi_scale"):
        task(make("yolo26n"), **settings(given, multi_scale=0.5))
    with pytest.raises(TypeError, match=r"expected an ultralytics\.YOLO"):
        task(torch.nn.Linear(1, 1), data="x")
