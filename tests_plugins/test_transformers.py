"""The callback and the learning rate finder in the Trainer of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, Trainer
from transformers import TrainingArguments as Arguments

from fogline.plugins.transformers import FoglineCallback, find_lr
from fogline.verdict import Verdict

ROWS, BATCH, EPOCHS = 96, 16, 2


def sentences(count: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    words = torch.randint(5, 40, (count, 8), generator=torch.Generator().manual_seed(seed))
    labels = (words < 12).any(dim=1).long()
    return [{"input_ids": row, "labels": label} for row, label in zip(words, labels, strict=True)]


def classifier() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=2, max_position_embeddings=8, **sizes))


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=1, n_head=2))


def trainer(model: nn.Module | None = None, kind: type[Trainer] = Trainer, **given: Any) -> Trainer:
    quiet = {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    options = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3}
    data = {"train_dataset": sentences(), "eval_dataset": sentences(32, 1)}
    data = {key: given.pop(key, value) for key, value in data.items()}
    return kind(classifier() if model is None else model, Arguments("out", **quiet | options | given), **data)


def watched(made: Trainer, **given: Any) -> FoglineCallback:
    callback = FoglineCallback(made, **given)
    made.add_callback(callback)
    return callback


@pytest.mark.parametrize("accumulated", [1, 2])
def test_weights_are_bitwise_what_they_are_without_it(accumulated: int) -> None:
    plain = trainer(gradient_accumulation_steps=accumulated)  # which sets the seed
    plain.train()
    other = trainer(gradient_accumulation_steps=accumulated)
    watched(other)
    other.train()
    for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("model", [classifier, language_model])
@pytest.mark.parametrize("accumulated", [1, 2, 4])
def test_losses_norms_and_rates_are_the_trainers_own(accumulated: int, model: Any) -> None:
    data = sentences()
    if model is language_model:
        data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in data]
    made = trainer(model(), gradient_accumulation_steps=accumulated, train_dataset=data, max_grad_norm=1e6)
    callback = watched(made)
    made.train()
    logged = [entry for entry in made.state.log_history if "grad_norm" in entry]
    steps = callback.run.steps
    assert len(steps) == made.state.global_step == len(logged)
    assert steps["loss"].tolist() == pytest.approx([entry["loss"] for entry in logged], rel=1e-5)
    assert steps["grad_norm"].tolist() == pytest.approx([entry["grad_norm"] for entry in logged], rel=1e-4)
    assert steps["lr"].tolist() == pytest.approx([entry["learning_rate"] for entry in logged])
    batches = ROWS // BATCH
    assert steps["examples"][-1] == EPOCHS * ROWS - BATCH * (batches - accumulated * ((batches - 1) // accumulated))


def test_evaluations_are_scores() -> None:
    made = trainer(eval_strategy="epoch")
    made.compute_metrics = lambda told: {"accuracy": float((told.predictions.argmax(1) == told.label_ids).mean())}
    callback = watched(made)
    made.train()
    scores = list(callback.run.scores)
    assert {row["name"] for row in scores} == {"loss", "accuracy"}
    assert sorted({row["step"] for row in scores}) == [5, 11]


@pytest.mark.parametrize("workers", [0, 1])
def test_every_example_has_its_own_number(workers: int) -> None:
    made = trainer(dataloader_num_workers=workers)
    callback = watched(made)
    made.train()
    table = callback.run.examples
    assert table["epochs"].tolist() == [EPOCHS] * ROWS
    assert table["target"].tolist() == [int(row["labels"]) for row in sentences()]
    assert {"margin", "confidence", "gradient_norm"} <= set(table.columns)


def test_a_language_model_is_watched_without_examples() -> None:
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in sentences()]
    made = trainer(language_model(), train_dataset=data)
    callback = watched(made)
    made.train()
    assert len(callback.run.examples) == 0
    assert len(callback.run.steps) == made.state.global_step


def test_losses_that_are_added_whole_are_noticed() -> None:
    """BERT for classification takes num_items_in_batch and does not use it: the loss is as many times too large."""
    runs = []
    for divided in (False, True):
        made = trainer(gradient_accumulation_steps=3, optim="sgd", max_grad_norm=1e6)
        made.model_accepts_loss_kwargs = made.model_accepts_loss_kwargs and not divided
        callback = watched(made)
        made.train()
        runs.append(callback.run)
    assert list(runs[0].findings["cause"]) == ["accumulation_scale"]
    assert "accumulation_scale" not in list(runs[1].findings["cause"])
    assert runs[0].steps["loss"][0] == pytest.approx(3 * runs[1].steps["loss"][0], rel=1e-4)
    assert runs[0].steps["grad_norm"][0] == pytest.approx(3 * runs[1].steps["grad_norm"][0], rel=1e-3)


def test_an_exception_anywhere_ends_the_run_as_interrupted() -> None:
    class Failing(Trainer):
        def get_batch_samples(self, *given: Any, **named: Any) -> Any:
            if self.state.global_step == 3:
                raise OSError("the disk is gone")
            return super().get_batch_samples(*given, **named)

    made = trainer(kind=Failing)
    callback = watched(made)
    with pytest.raises(OSError, match="the disk is gone"):
        made.train()
    assert callback.run.verdict is Verdict.INTERRUPTED
    assert len(callback.run.steps) == 3
    assert any("the disk is gone" in event["message"] for event in callback.run.events)


def test_a_resumed_training_says_from_which_step() -> None:
    made = trainer(save_strategy="steps", save_steps=4)
    watched(made)
    made.train()
    again = trainer()
    callback = watched(again)
    again.train(resume_from_checkpoint="out/checkpoint-8")
    assert len(callback.run.steps) == 4
    assert any("its step 8" in event["message"] for event in callback.run.events)


def test_a_stop_that_was_asked_for_ends_the_training() -> None:
    class Stopped(Trainer):
        def compute_loss(self, *given: Any, **named: Any) -> Tensor:
            if self.state.global_step == 2:
                (callback.run.folder / "stop").touch()
            return super().compute_loss(*given, **named)

    made = trainer(kind=Stopped, num_train_epochs=5000)
    callback = watched(made)
    made.train()
    assert made.state.global_step < 5000  # it is looked for a few times a second


def test_each_training_has_its_run() -> None:
    made = trainer(num_train_epochs=1)
    callback = watched(made, name="twice")
    made.train()
    made.train()
    assert [run.name for run in callback.runs] == ["twice", "twice-2"]
    assert all(run.verdict is not None for run in callback.runs)


def test_the_rate_disturbs_nothing_and_learns() -> None:
    made = trainer(num_train_epochs=6)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    state = torch.get_rng_state()
    rate = find_lr(made)
    assert rate.cost_steps <= 60
    assert made.optimizer is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in made.model.state_dict().items())
    made.args.learning_rate = rate.value
    callback = watched(made)
    made.train()
    assert callback.run.steps["lr"][0] == pytest.approx(rate.value)


def test_two_rates_in_a_row_are_the_same() -> None:
    assert find_lr(trainer()).value == find_lr(trainer()).value
