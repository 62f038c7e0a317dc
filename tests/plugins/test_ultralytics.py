"""The plug-in of Ultralytics around a trainer of the same frame; the real one is in tests_plugins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fake_yolo import BATCH, IMAGES, Trainer, Yolo, images
from fogline.plugins.ultralytics import findings, watch
from fogline.plugins.ultralytics.guard import PATIENCE
from fogline.verdict import Verdict


def trained(tmp_path: Path, watched: dict[str, Any] | None = None, **given: Any) -> tuple[Trainer, Any]:
    """A training that is watched, and its run."""
    yolo = Yolo()
    watching = watch(yolo, runs=tmp_path, **(watched or {}))
    yolo.train(**given)
    return yolo.trainer, watching.run


def plain(**given: Any) -> Trainer:
    yolo = Yolo()
    yolo.train(**given)
    trainer: Trainer = yolo.trainer
    return trainer


def same_bits(one: Trainer, other: Trainer) -> None:
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def causes(run: Any) -> dict[str, str]:
    return {row["cause"]: row["severity"] for row in run.findings}


def test_a_training_leaves_a_run(tmp_path: Path) -> None:
    trainer, run = trained(tmp_path, epochs=3)
    assert len(run.steps) == 9
    assert run.verdict is not Verdict.INTERRUPTED
    assert run.steps["examples"].tolist() == list(range(0, 9 * BATCH, BATCH))  # images, not boxes
    assert np.isfinite(run.steps["loss"]).all()
    assert run.steps["loss"][-1] == pytest.approx(float(trainer.loss.detach()) / BATCH)


def test_scores_are_taken_once_an_epoch_and_the_held_out_losses_added_up(tmp_path: Path) -> None:
    _, run = trained(tmp_path)
    found = [(row["step"], row["name"], row["value"]) for row in run.scores]
    assert found == [(2, "loss", 3.0), (2, "mAP50(B)", 0.5), (5, "loss", 3.0), (5, "mAP50(B)", 0.5)]


def test_nothing_is_disturbed(tmp_path: Path) -> None:
    same_bits(trained(tmp_path)[0], plain())
    same_bits(trained(tmp_path, {"guard": True}, nbs=2 * BATCH)[0], plain(nbs=2 * BATCH))


def test_the_norm_is_that_before_the_clip(tmp_path: Path) -> None:
    batches = [batch | {"goal": 100 * batch["goal"] + 50} for batch in images()]
    _, run = trained(tmp_path, batches=batches, epochs=7)
    assert (run.steps["grad_norm"] > 10).any()


@pytest.mark.parametrize("nbs", [BATCH, 3 * BATCH])
def test_a_bad_batch_is_left_out_as_if_it_had_not_been(tmp_path: Path, nbs: int) -> None:
    guarded, run = trained(tmp_path, {"guard": True}, batches=images(bad=(11,)), nbs=nbs)
    without = images()
    del without[1]
    if nbs == BATCH:
        same_bits(guarded, plain(batches=without, nbs=nbs))
    else:  # three batches an update, of which two are left
        twin = plain(batches=without, nbs=2 * BATCH)
        same_bits(guarded, twin)
    (event, *_) = [row for row in run.events if row["kind"] == "refused"]
    assert "image-11.png" in event["message"]
    assert causes(run)["nan_in_data"] == "serious"
    assert np.isfinite(run.steps["loss"]).all()


def test_without_the_guard_it_ends_in_nan_and_says_so(tmp_path: Path) -> None:
    trainer, run = trained(tmp_path, batches=images(bad=(11,)))
    assert run.verdict is Verdict.NONFINITE
    assert "nan_in_data" in causes(run)
    assert not torch.isfinite(trainer.model.body[1].running_mean).all()


def test_a_loss_that_is_finite_with_a_gradient_that_is_not(tmp_path: Path) -> None:
    class Rooted(torch.nn.Module):
        """The gradient of the root is infinite at zero, where the value is fine."""

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values + (values * 0).sqrt()

    yolo = Yolo()
    watching = watch(yolo, runs=tmp_path, guard=True)

    def spoil(trainer: Trainer) -> None:
        trainer.model.body.append(Rooted())

    yolo.add_callback("on_pretrain_routine_end", spoil)
    yolo.train(epochs=1)
    fresh = Trainer(Yolo().callbacks, {})
    for name, value in yolo.trainer.model.state_dict().items():
        assert torch.equal(value, fresh.model.state_dict()[name]), name
    assert len([row for row in watching.run.events if row["kind"] == "refused"]) == 3


def test_where_every_batch_is_bad_it_ends_in_its_first_epoch(tmp_path: Path) -> None:
    batches = images(bad=tuple(range(IMAGES))) * 10
    trainer, run = trained(tmp_path, {"guard": True}, batches=batches, epochs=4)
    assert trainer.epoch == 0
    assert trainer.stop
    assert trainer.taken_at == []
    assert [row for row in run.events if row["kind"] == "ended"]
    assert len([row for row in run.events if row["kind"] == "refused"]) == PATIENCE
    assert torch.isfinite(trainer.model.body[1].running_mean).all()


def test_the_guard_and_a_compiled_model_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compile=False"):
        trained(tmp_path, {"guard": True}, compile=True)


@pytest.mark.parametrize(("batches", "warmup", "full"), [(12, 0, 1), (12, 12, 16), (12, 5, 4), (30, 4, 3), (7, 0, 8)])
def test_the_updates_that_are_planned_are_those_that_are_taken(batches: int, warmup: int, full: int) -> None:
    trainer = plain(batches=(images() * 10)[:batches], warmup=warmup, nbs=full * BATCH, epochs=1)
    assert findings.planned_updates(batches, warmup, full) == len(trainer.taken_at)


def test_what_the_settings_cost_is_told_before_the_first_batch(tmp_path: Path) -> None:
    _, run = trained(tmp_path, nbs=16 * BATCH, warmup=4, lr0=0.5)
    found = causes(run)
    assert (found["too_few_steps"], found["bad_schedule"]) == ("serious", "serious")
    assert found["optimizer_mismatch"] == "serious"
    assert set(run.findings["step"][:3].tolist()) == {0}


def test_a_usual_training_has_none_of_these(tmp_path: Path) -> None:
    _, run = trained(tmp_path, epochs=8)
    assert causes(run) == {}


def test_a_short_warmup_is_only_a_remark(tmp_path: Path) -> None:
    assert causes(trained(tmp_path, epochs=8, warmup=2)[1]) == {"bad_schedule": "minor"}


def test_a_clip_that_always_acts_is_told_with_its_reason() -> None:
    assert findings.always_clipped([20.0] * 9 + [1.0], 10, 9, 8).cause == "sum_reduction"  # type: ignore[union-attr]
    assert findings.always_clipped([20.0] * 8 + [1.0] * 2, 10, 9, 8) is None


def test_a_rate_is_set_whatever_the_optimizer_and_ratios_are_kept(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, {"lr": 0.002}, two_rates=True)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.006, 0.002])
    assert trainer.scheduler.base_lrs == pytest.approx([0.006, 0.002])
    assert trainer.taken_at == pytest.approx([0.002] * 6)


def test_a_training_that_raises_leaves_an_interrupted_run(tmp_path: Path) -> None:
    yolo = Yolo()
    watching = watch(yolo, runs=tmp_path)
    with pytest.raises(KeyError):
        yolo.train(raises=KeyError("lost"))
    assert watching.run.verdict is Verdict.INTERRUPTED
    assert "exception" in watching.run.events["kind"].tolist()


def test_a_resumed_training_is_called_what_it_is(tmp_path: Path) -> None:
    _, run = trained(tmp_path, resume=True)
    assert "not bit for bit" in run.events["message"][0]


def test_processes_of_its_own_are_not_watched_and_said_so(tmp_path: Path) -> None:
    yolo = Yolo()
    watching = watch(yolo, runs=tmp_path)
    with pytest.warns(UserWarning, match="on one device"):
        yolo.train(ddp=True)
    with pytest.raises(ValueError, match=r"call yolo\.train"):
        watching.run  # noqa: B018


def test_the_stop_button_ends_the_training(tmp_path: Path) -> None:
    yolo = Yolo()
    watching = watch(yolo, runs=tmp_path, name="one")
    yolo.add_callback("on_train_start", lambda _: (tmp_path / "one" / "stop").touch())
    yolo.train(epochs=50)
    assert yolo.trainer.epoch < 49
    assert watching.run.verdict is not None


def test_every_training_is_a_run_until_it_is_stopped(tmp_path: Path) -> None:
    yolo = Yolo()
    watching = watch(yolo, runs=tmp_path, name="one")
    yolo.train()
    yolo.train()
    watching.stop()
    yolo.train()
    assert [run.folder.name for run in watching.runs_made] == ["one", "one-2"]


def test_what_is_no_yolo_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected an ultralytics\.YOLO, received Linear"):
        watch(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="positive learning rate"):
        watch(Yolo(), lr=-1.0)


def test_nothing_of_it_is_imported() -> None:
    assert "ultralytics" not in sys.modules
