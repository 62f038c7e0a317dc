"""The whole examination: what is wrong is found and proven, what is sound left in peace, and nothing disturbed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fogline
from fogline.doctor.ablations import ablations
from fogline.doctor.bench import Bench
from fogline.doctor.case import apply_to, open_case, program
from fogline.doctor.examination import Examination
from fogline.doctor.examine import _Doctor
from fogline.doctor.finding import CAUSES, Remedy, Rows, Suspicion, Trial
from fogline.doctor.interventions import Interventions
from fogline.doctor.standing import descends
from fogline.doctor.trial import SEEDS, Laboratory, compared, planned_steps

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="20ep")


def spirals(rows: int = 400) -> tuple[Tensor, Tensor]:
    """Two classes that no line separates."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(rows, 2, generator=generator)
    return X, (X[:, 0] * X[:, 1] > 0).long()


def network(*end: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2), *end)


def task(*end: nn.Module) -> fogline.Task:
    return fogline.Task(network(*end), nn.CrossEntropyLoss(), spirals(), metrics={"accuracy": accuracy})


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def test_a_fault_is_found_and_mended() -> None:
    given = task(nn.Softmax(dim=1))
    report = fogline.diagnose(given, RECIPE)
    assert report.verdict == "faulty"
    assert report.findings[0].cause == "double_softmax"
    mended, recipe = report.apply(given, RECIPE)
    assert callable(mended.model)
    assert not any(isinstance(module, nn.Softmax) for module in mended.model().modules())
    assert mended.metrics == given.metrics
    assert mended.train is given.train
    assert recipe == RECIPE
    assert any(isinstance(module, nn.Softmax) for module in given.model().modules())  # type: ignore[operator]


def test_a_sound_program_is_left_in_peace() -> None:
    report = fogline.diagnose(task(), RECIPE)
    assert (report.verdict, report.findings) == ("healthy", ())
    assert report.apply(task(), RECIPE)[1] == RECIPE


def test_two_examinations_say_the_same() -> None:
    first, second = (fogline.diagnose(task(nn.Softmax(dim=1)), RECIPE) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_nothing_is_disturbed(tmp_path: object) -> None:
    model = network(nn.Softmax(dim=1))().eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[index, union-attr]
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    X, y = spirals()
    copies = X.clone(), y.clone()
    fogline.diagnose(model, (X, y), loss=nn.CrossEntropyLoss(), optimizer="adam", lr=0.01, duration="5ep")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(X, copies[0])
    assert torch.equal(y, copies[1])
    assert not model.training
    assert bool((model[0].weight.grad == 1).all())  # type: ignore[index, union-attr]


def test_without_a_budget_nothing_is_trained() -> None:
    report = fogline.diagnose(task(nn.Softmax(dim=1)), RECIPE, budget=0)
    assert report.cost_steps == 0
    assert report.findings[0].cause == "double_softmax"
    assert report.findings[0].trial is None


@pytest.mark.parametrize("budget", [-1.0, float("nan"), "much", True])
def test_budgets_that_are_none(budget: object) -> None:
    with pytest.raises(ValueError, match="budget: expected a number of at least 0"):
        fogline.diagnose(task(), RECIPE, budget=budget)  # type: ignore[arg-type]


def test_the_page_and_its_twin() -> None:
    report = fogline.diagnose(task(nn.Softmax(dim=1)), RECIPE)
    page, twin = str(report), json.loads(report.to_json())
    assert twin["verdict"] == "faulty"
    finding = twin["findings"][0]
    assert finding["cause"] in page
    assert finding["remedy"]["title"] in page
    assert set(finding) == {
        "cause", "severity", "confidence", "evidence", "explanation", "trial", "remedy", "advice", "instead_of",
        "page",
    }  # fmt: skip
    assert finding["trial"]["seeds"] == list(SEEDS)
    low, high = finding["trial"]["interval"]
    assert low <= finding["trial"]["effect"] <= high


def test_causes_are_those_of_the_contract() -> None:
    names = [cause for group in CAUSES.values() for cause in group]
    assert len(names) == len(set(names)) == 50
    with pytest.raises(ValueError, match="unknown cause"):
        Suspicion("bad_luck", 1.0, (), "")


def test_a_control_against_itself_is_no_different() -> None:
    case = open_case(task(), RECIPE)
    laboratory = Laboratory(case, 1e9)
    once, again = (laboratory.run(program(case), 30) for _ in range(2))
    assert [d.score for d in once] == [d.score for d in again]
    trial = compared([], "itself", once, again, seeds=SEEDS, metric="", steps=30)
    assert (trial.effect, trial.error, trial.accepted) == (0.0, 0.0, False)
    assert laboratory.spent == 2 * len(SEEDS) * 30


def test_a_trial_is_accepted_beyond_the_noise_of_the_seeds_only() -> None:
    def descents(scores: list[float]) -> list[object]:
        from fogline.doctor.descended import Descended

        return [Descended(score, torch.zeros(1).numpy(), torch.zeros(1).numpy()) for score in scores]

    def accepted(first: list[float], second: list[float]) -> bool:
        return compared(
            [], "", descents(first), descents(second), seeds=SEEDS, metric="", steps=1  # type: ignore[arg-type]
        ).accepted  # fmt: skip

    assert accepted([0.8, 0.8, 0.79], [0.3, 0.31, 0.3])
    assert not accepted([0.8, 0.2, 0.3], [0.3, 0.3, 0.3])  # one lucky seed
    assert not accepted([0.33, 0.34, 0.33], [0.3, 0.31, 0.3])  # sure, and too little to matter
    assert not accepted([0.1, 0.1, 0.1], [0.3, 0.31, 0.3])


def test_what_is_wrong_beyond_doubt_is_mended_by_any_gain_beyond_the_noise() -> None:
    case = open_case(task(), RECIPE)
    bench = Bench(Laboratory(case, 0), Examination(case), (), steps=30)

    def suffices(first: tuple[float, ...], *, costs: bool) -> bool:
        trial = Trial("", "", SEEDS, "", first, (0.3, 0.31, 0.3), 30, 90, accepted=False)
        return bench.suffices(trial, Remedy("", "", costs=costs))

    assert suffices((0.32, 0.33, 0.32), costs=True)
    assert not suffices((0.3, 0.31, 0.3), costs=True)  # no gain
    assert not suffices((0.5, 0.2, 0.3), costs=True)  # one lucky seed
    assert suffices((0.3, 0.31, 0.3), costs=False)
    assert not suffices((0.1, 0.1, 0.1), costs=False)


def test_remedies_of_rows_know_them_by_their_place() -> None:
    X, y = spirals(100)
    X[7] = torch.nan
    drop = Remedy("drop row 7", "", on_rows=without(7))
    given = fogline.Task(network(), nn.CrossEntropyLoss(), (X, y))
    case = open_case(given, RECIPE)
    variant = program(case, [drop])
    assert 7 not in case.held
    assert variant.rows == len(case.learned) - 1
    assert bool(torch.isfinite(variant.train[0]).all())
    mended, _, _ = apply_to(given, RECIPE, [drop], loss=given.loss)
    assert len(mended.train[0]) == 99
    assert len(given.train[0]) == 100


def without(row: int) -> Callable[[Rows], Rows]:
    def edit(rows: Rows) -> Rows:
        assert rows.ids is not None
        keep = rows.ids != row
        return Rows(rows.inputs[keep], rows.targets[keep], rows.ids[keep])

    return edit


def test_work_that_only_its_loss_can_judge() -> None:
    X, _ = spirals()
    loss = fogline.on_batch(lambda model, batch: (model(batch) - batch).square().mean())
    given = fogline.Task(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), loss, X)
    report = fogline.diagnose(given, RECIPE)
    assert report.verdict == "healthy"
    assert report.control is not None
    assert report.control > 0.9


def _judged(loss: Callable[[nn.Module, Tensor], Tensor], model: Callable[[], nn.Module], steps: int) -> float:
    """Score of a descent on numbers near 5 by work on a batch."""
    X = 5 + torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    case = open_case(fogline.Task(model, fogline.on_batch(loss), X), RECIPE)
    return Laboratory(case, 1e6).run(program(case), steps, (1,))[0].score


def test_one_answer_for_all_rows_is_no_skill_however_much_of_the_first_loss_it_takes_away() -> None:
    def squares(model: nn.Module, batch: Tensor) -> Tensor:
        nothing = 0 * sum(value.sum() for value in model.state_dict().values())  # more than outputs and targets
        return (model(batch) - batch).square().mean() + nothing

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answer = nn.Parameter(torch.zeros(3))

        def forward(self, batch: Tensor) -> Tensor:
            return self.answer.expand_as(batch)

    assert _judged(squares, Constant, 1500) == pytest.approx(0, abs=0.03)
    assert _judged(squares, lambda: nn.Linear(3, 3), 1500) > 0.9


def test_answers_that_are_compared_with_one_another_are_judged_by_their_first_loss() -> None:
    """One answer for all is as close to itself as can be."""

    def views(model: nn.Module, batch: Tensor) -> Tensor:
        first, second = model(batch), model(batch + 0.1)
        return (first - second).square().mean()

    assert _judged(views, lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), 300) > 0.5


@pytest.mark.parametrize("planned", [60, 200])
def test_a_program_that_runs_away_late_is_held_to_where_it_ends(planned: int) -> None:
    X, y = spirals()
    case = open_case(fogline.Task(network(), nn.CrossEntropyLoss(), (X, y)), RECIPE)
    exam = Examination(case)
    exam.observed = Laboratory(case, 1e6).observe(exam.program, 60)
    exam.observed.planned = planned
    reached = exam.observed.score
    bench = Bench(Laboratory(case, 1e6), exam, (), 30, margin=0.1, sound=True)
    gained = Trial("", "", (1, 2, 3), "", (reached + 0.12,) * 3, (reached + 0.05,) * 3, 30, 90, accepted=True)
    assert bench.plain(gained, ()) == (planned == 60)
    on_its_way = replace(gained, with_it=(reached + 0.08,) * 3, without=(reached,) * 3)
    assert not bench.plain(on_its_way, ())  # which in full comes to what the control comes to
    assert not bench.plain(replace(gained, without=(reached + 0.1,) * 3), ())
    bench.wholes[(), 60] = reached + 0.1
    assert bench.plain(on_its_way, ()) == (planned == 60)


class _Words(nn.Module):
    """A mean of embeddings that are small, and frozen or not."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding.from_pretrained(0.05 * torch.randn(40, 8), freeze=frozen)
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.table(tokens).mean(1))))


def test_of_edits_that_do_as_well_the_smaller_one_is_kept() -> None:
    """Wider layers are new ones, which learn: here that is all that matters of them."""
    draws = torch.Generator().manual_seed(0)
    tokens, says = torch.randint(0, 40, (1500, 10), generator=draws), torch.randn(40, generator=draws)
    given = fogline.Task(lambda: _Words(frozen=True), nn.CrossEntropyLoss(), (tokens, (says[tokens].sum(1) > 0).long()))
    report = fogline.diagnose(given, RECIPE.replace(duration="10ep"))
    assert report.findings[0].cause == "frozen_parameters"
    assert "underfitting" not in {finding.cause for finding in report.findings}


def test_held_out_rows_of_the_task_are_what_counts() -> None:
    X, y = spirals(500)
    case = open_case(
        fogline.Task(network(), nn.CrossEntropyLoss(), (X[:300], y[:300]), valid=(X[300:], y[300:])), RECIPE
    )
    variant = program(case)
    assert variant.rows == 300
    assert torch.equal(variant.held[0], X[300:])


def test_a_run_is_healed_before_it_begins_and_resumed_as_such(tmp_path: Path) -> None:
    given = task(nn.Softmax(dim=1))
    run = fogline.fit(given, RECIPE, heal=True, runs=tmp_path, name="healed", progress=False)
    assert not any(isinstance(module, nn.Softmax) for module in run.model.modules())
    kinds = [row["kind"] for row in run.events]
    assert kinds.count("finding") == 1
    assert kinds.count("remedy") == 1
    assert run.info["healed"]["remedies"] == ["leave out the softmax at the end of the model"]
    longer = fogline.resume(run.folder, given, duration="30ep", progress=False)
    assert not any(isinstance(module, nn.Softmax) for module in longer.model.modules())
    with pytest.raises(ValueError, match="healed from"):
        fogline.resume(run.folder, task(), duration="40ep", progress=False)


# -- what the report promises ------------------------------------------------------------------------------------------


def faulty_programs() -> list[tuple[fogline.Task, fogline.Recipe]]:
    X, y = spirals()
    far = fogline.Task(network(), nn.CrossEntropyLoss(), (X * 300 + 1000, y))
    return [
        (task(nn.Softmax(dim=1)), RECIPE),
        (task(nn.Softmax(dim=1)), RECIPE.replace(lr=1e-5)),
        (far, RECIPE.replace(optimizer="momentum")),
        (task(), RECIPE.replace(lr=30.0, optimizer="sgd")),
    ]


@pytest.mark.parametrize("budget", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("which", range(4))
def test_every_trial_that_counts_is_over_three_seeds(which: int, budget: float) -> None:
    report = fogline.diagnose(*faulty_programs()[which], budget)
    trials = [finding.trial for finding in report.findings if finding.trial is not None]
    assert all(len(trial.seeds) == len(SEEDS) for trial in trials if trial.accepted)


@pytest.mark.parametrize("which", range(4))
def test_every_part_of_a_patch_was_left_out_once_or_leaves_no_doubt(which: int) -> None:
    report = fogline.diagnose(*faulty_programs()[which])
    assert report.findings
    several = [finding for finding in report.findings if finding.remedy is not None]
    for finding in several:
        assert finding.trial is not None
        assert finding.trial.intervention == finding.remedy.title  # type: ignore[union-attr]


def test_symptoms_that_another_fault_made_are_not_mended() -> None:
    """A sigmoid under a loss that applies its own makes the slope so small that the rate seems too low.

    That one class is rare is so besides.
    """
    X, y = spirals(900)
    rare = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    keep = torch.cat([rare[y[rare] == 0], rare[y[rare] == 1][:50]])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Sigmoid())
    report = fogline.diagnose(
        model, (X[keep], y[keep, None].float()), loss=nn.BCEWithLogitsLoss(), optimizer="adam", lr=1e-3, batch_size=16,
        duration="60ep",
    )  # fmt: skip
    first, *rest = [finding.cause for finding in report.findings]
    assert first == "output_activation"
    assert set(rest) <= {"class_imbalance"}


def test_what_learns_nothing_is_looked_at_again_once_its_units_are_alive() -> None:
    def dead() -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        for layer in (model[0], model[2]):
            nn.init.constant_(layer.bias, -8.0)  # type: ignore[arg-type]
        return model

    report = fogline.diagnose(fogline.Task(dead, nn.CrossEntropyLoss(), spirals()), RECIPE.replace(lr=1e-5))
    assert [finding.cause for finding in report.findings] == ["dead_units", "lr_too_low"]


def test_a_weak_signal_is_not_taken_for_targets_that_were_mixed_up() -> None:
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(800, 4, generator=generator)
    y = 0.3 * X[:, :1] + torch.randn(800, 1, generator=generator)  # 8 % of the variance can be explained
    report = fogline.diagnose(
        fogline.Task(lambda: nn.Linear(4, 1), nn.MSELoss(), (X, y)), fogline.Recipe("sgd", lr=0.02, duration="20ep")
    )
    assert report.findings == ()


class Opponents(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.judge = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))

    def loss(self, real: Tensor) -> Tensor:
        """Of both: the judge learns from a detached copy, and the maker from a judge that stands still."""
        made = self.maker(torch.randn_like(real))
        told = nn.functional.softplus(-self.judge(real)) + nn.functional.softplus(self.judge(made.detach()))
        self.judge.requires_grad_(False)
        fooled = nn.functional.softplus(-self.judge(made))
        self.judge.requires_grad_(True)
        return (told + fooled).mean()


@pytest.mark.parametrize("opposed", [True, False])
def test_a_loss_of_opponents_cannot_judge(opposed: bool) -> None:
    loss = (lambda m, b: m.loss(b)) if opposed else (lambda m, b: (m.maker(b) - b).square().mean())
    case = open_case(fogline.Task(Opponents, fogline.on_batch(loss), spirals()[0]), RECIPE)
    assert descends(Examination(case)) is not opposed


def test_labels_that_have_nothing_to_do_with_their_rows() -> None:
    """No row can tell useless inputs from targets that were mixed up: both answers are given."""
    X, _ = spirals(600)
    y = torch.randint(0, 2, (600,), generator=torch.Generator().manual_seed(1))
    report = fogline.diagnose(fogline.Task(network(), nn.CrossEntropyLoss(), (X, y)), RECIPE)
    assert report.verdict == "limit_of_data"
    first, second = report.findings
    assert (first.cause, first.trial, first.instead_of) == ("shuffled_labels", None, "")
    assert (second.cause, second.trial, second.instead_of) == ("label_noise", None, "shuffled_labels")
    assert second.confidence < first.confidence < 0.5
    assert report.remedies == ()


def test_what_comes_to_the_same_is_said_as_another_reading() -> None:
    """A rate that is too low for so few steps, or too few steps for so low a rate."""
    report = fogline.diagnose(task(), RECIPE.replace(lr=2e-4, schedule="constant"))
    first, second = report.findings
    assert (first.cause, second.cause, second.instead_of) == ("lr_too_low", "too_few_steps", "lr_too_low")
    assert second.remedy is None
    assert second.confidence < first.confidence
    assert report.headline.startswith("One thing is wrong: lr_too_low (or else too_few_steps).")
    assert "2. too_few_steps" in str(report)
    assert "sure, instead of lr_too_low)" in str(report)
    assert json.loads(report.to_json())["findings"][1]["instead_of"] == "lr_too_low"


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-3), ("momentum", 0.05)])
def test_what_might_still_learn_faster_is_not_faulty(optimizer: str, lr: float) -> None:
    X, y = spirals(900)
    torch.manual_seed(0)
    report = fogline.diagnose(
        nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)),
        (X, y), loss=nn.CrossEntropyLoss(), optimizer=optimizer, lr=lr, batch_size=32, duration="80ep",
    )  # fmt: skip
    assert (report.verdict, report.findings) == ("healthy", ())


@pytest.mark.parametrize("held", [True, False])
def test_no_more_is_watched_of_what_does_as_well_as_can_be(held: bool) -> None:
    """Only where ``fit`` keeps the best weights: else the second half of the run may do harm."""
    X, y = spirals(1000)
    data = {"train": (X[:600], y[:600]), "valid": (X[600:], y[600:])} if held else {"train": (X, y)}
    report = fogline.diagnose(fogline.Task(network(), nn.CrossEntropyLoss(), **data), RECIPE.replace(duration="40ep"))
    assert report.verdict == "healthy"
    assert report.control_in == report.planned // 2 if held else report.planned


def test_what_nothing_points_to_is_found_by_trying() -> None:
    """Each change is tried for what the program has of it, and none is said that did not win."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1200, 6, generator=generator)
    y = ((X[:, 0] * X[:, 1] + X[:, 2] * X[:, 3]) > 0).long()

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(6, 64),
            nn.ReLU(),
            nn.Dropout(0.45),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(0.45),
            nn.Linear(64, 2),
        )

    case = open_case(fogline.Task(model, nn.CrossEntropyLoss(), (X, y)), RECIPE.replace(weight_decay=0.001))
    exam = Examination(case)
    assert list(ablations(exam)) == []  # before it was watched
    exam.observed = Laboratory(case, 1e6).observe(exam.program, 100)
    tried = {(s.cause, s.remedies[0].title) for s in ablations(exam)}
    assert ("regularization_too_strong", "drop a quarter as much: 0.11 instead of 0.45") in tried
    assert ("regularization_too_strong", "no weight decay") in tried
    assert not any(cause in ("underfitting", "batch_too_large", "optimizer_mismatch") for cause, _ in tried)
    interventions = Interventions(case=case, laboratory=Laboratory(case, 6000), planned=760)
    interventions.control = 0.0
    interventions.ablate(exam, list(ablations(exam)))
    for kept in interventions.kept:  # none but what won a trial over every seed
        assert kept.trial is not None
        assert kept.trial.accepted
        assert len(kept.trial.seeds) == 3


@pytest.mark.parametrize(
    ("effect", "noise", "said"), [(None, 0.0, True), (0.01, 0.0, True), (-0.1, 0.0, False), (-0.1, 0.07, True)]
)
def test_no_guess_that_a_trial_refuted(effect: float | None, noise: float, said: bool) -> None:
    case = open_case(task(), RECIPE)
    interventions = Interventions(case=case, laboratory=Laboratory(case, 100), planned=100)
    suspicion = Suspicion("bad_init", 0.7, (), "so it seems")
    trial = None
    if effect is not None:
        trial = Trial(
            "other weights", "the program as it is", (1,), "skill", (0.5 + effect,), (0.5,), 20, 20, accepted=False
        )
    interventions.doubted.append((suspicion, trial))
    interventions.guess(noise)
    assert bool(interventions.kept) is said


@pytest.mark.parametrize(("strength", "mostly", "said"), [(0.5, True, True), (0.5, False, False), (0.6, False, True)])
def test_of_a_run_that_was_seen_in_part_only_what_is_very_likely_is_guessed(
    strength: float, mostly: bool, said: bool
) -> None:
    case = open_case(task(), RECIPE)
    interventions = Interventions(case=case, laboratory=Laboratory(case, 100), planned=100)
    interventions.doubted.append((Suspicion("dead_units", strength, (), "so it seems"), None))
    interventions.guess(0.0, mostly=mostly)
    assert bool(interventions.kept) is said


def test_what_learned_nothing_is_watched_longer_before_the_data_are_blamed() -> None:
    """What was supposed of the first steps, and is not seen any more, is dropped."""
    case = open_case(task(), RECIPE)
    planned = planned_steps(RECIPE, case)
    tried = Interventions(case=case, laboratory=Laboratory(case, planned), planned=planned)
    doctor = _Doctor(case, tried.laboratory, planned, tried, 0)
    first = doctor._observed()
    blamed = Suspicion("shuffled_labels", 0.6, (), "so it seems")
    tried.take(blamed, None, None)
    tried.reject(blamed, None, "not tried")
    longer = doctor._seen_longer(first)
    assert first.observed is not None
    assert longer.observed is not None
    assert longer.observed.steps > 1.5 * first.observed.steps
    assert (tried.kept, tried.doubted, tried.rejected) == ([], [], [])
    assert doctor._seen_longer(longer) is longer  # the budget is spent


def test_what_may_follow_is_guessed_alone_and_a_rate_that_is_off_either_way_not_at_all() -> None:
    case = open_case(task(), RECIPE)
    interventions = Interventions(case=case, laboratory=Laboratory(case, 100), planned=100)
    dead = Suspicion("dead_units", 0.6, (), "so it seems", follows=True)
    high, low = (Suspicion(cause, 0.5, (), "so it seems") for cause in ("lr_too_high", "lr_too_low"))
    interventions.doubted += [(dead, None), (high, None)]
    interventions.guess(0.0)
    assert [kept.suspicion.cause for kept in interventions.kept] == ["lr_too_high"]
    interventions.kept.clear()
    interventions.doubted.append((low, None))
    interventions.guess(0.0)
    assert [kept.suspicion.cause for kept in interventions.kept] == ["dead_units"]


@pytest.mark.parametrize(
    ("level", "steps", "gained", "said"),
    [(0.8, 100, 0.0, False), (0.8, 20, 0.0, True), (0.0, 100, 0.0, True), (0.8, 100, 0.02, True)],
)
def test_no_guess_that_did_nothing_over_the_whole_run(level: float, steps: int, gained: float, said: bool) -> None:
    case = open_case(task(), RECIPE)
    interventions = Interventions(case=case, laboratory=Laboratory(case, 100), planned=100)
    interventions.control = level
    scores = (level + gained - 0.01, level + gained + 0.01, level + gained)
    trial = Trial("ten times as long", "as it is", (1, 2, 3), "skill", scores, (level,) * 3, steps, 60, accepted=False)
    interventions.doubted.append((Suspicion("too_few_steps", 0.75, (), "so it seems"), trial))
    interventions.guess(0.0)
    assert bool(interventions.kept) is said


def test_held_out_rows_with_a_class_that_was_never_learned() -> None:
    X, y = spirals(200)
    held = torch.randn(60, 2, generator=torch.Generator().manual_seed(5)), torch.arange(60) % 3
    report = fogline.diagnose(
        fogline.Task(network(), nn.CrossEntropyLoss(), (X, y), held), RECIPE.replace(duration="2ep")
    )
    assert report.verdict != "healthy"


def test_one_label_for_all_that_held_out_rows_do_not_have() -> None:
    X, y = spirals(200)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
    given = fogline.Task(model, nn.CrossEntropyLoss(), (X, torch.ones_like(y)), (X[:60], torch.arange(60) % 4))
    assert "constant_target" in [finding.cause for finding in fogline.diagnose(given, RECIPE).findings]


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    return torch.tensor(X, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]


def test_units_that_died_of_long_steps_are_not_named_for_them() -> None:
    X, y = _digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    report = fogline.diagnose(
        model, (X[:1300], y[:1300]), loss=nn.CrossEntropyLoss(), valid=(X[1300:], y[1300:]), optimizer="adam", lr=1.0,
        batch_size=32, duration="10ep",
    )  # fmt: skip
    assert [finding.cause for finding in report.findings] == ["lr_too_high"]


def test_answers_shared_between_classes_have_no_rare_ones() -> None:
    X, _ = _digits()
    teacher = torch.randn(64, 10, generator=torch.Generator().manual_seed(34))
    soft = ((X - 0.3) @ teacher * 0.8).softmax(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    report = fogline.diagnose(
        model, (X[:1300], soft[:1300]), loss=nn.CrossEntropyLoss(), valid=(X[1300:], soft[1300:]), optimizer="adam",
        lr=3e-3, batch_size=32, duration="20ep",
    )  # fmt: skip
    assert report.verdict == "healthy"
    assert not report.findings


@pytest.mark.parametrize(("noise", "says"), [(0.0, "does clearly better"), (1.5, "look at what the inputs say")])
def test_little_skill_is_said_to_be_little(noise: float, says: str) -> None:
    X, _ = spirals()
    drawn = noise * torch.randn(len(X), generator=torch.Generator().manual_seed(5))
    given = fogline.Task(network(), nn.CrossEntropyLoss(), (X, (X[:, 0] + drawn > 0).long()))
    report = fogline.diagnose(given, RECIPE)
    assert report.verdict == "healthy"
    assert says in report.headline


def test_rows_that_are_learned_by_heart_because_of_something_else_are_no_finding() -> None:
    """Units that stand at their limits know what they have seen, and nothing of others, until they are drawn anew."""
    X, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    X = X.float() / 8 - 1

    def net() -> nn.Module:
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        return model

    task = fogline.Task(net, nn.CrossEntropyLoss(), (X[:300], y[:300]), (X[300:500], y[300:500]))
    recipe = fogline.Recipe(optimizer="adam", lr=0.003, batch_size=32, duration="30ep")
    report = fogline.diagnose(task, recipe)
    assert [finding.cause for finding in report.findings] == ["bad_init"]


def test_how_rows_are_fitted_is_no_finding_once_nothing_of_it_is_seen() -> None:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="20ep")
    case = open_case(fogline.Task(nn.Linear(4, 1), nn.MSELoss(), (x, x[:, :1])), recipe)
    laboratory = Laboratory(case, 10_000)
    doctor = _Doctor(case, laboratory, 200, Interventions(case=case, laboratory=laboratory, planned=200), 0.0)
    shuffled = Remedy("shuffle", "", on_recipe=lambda given: given, place="order")
    doctor.tried.take(Suspicion("unshuffled_data", 0.9, (), "", (shuffled,)), shuffled, None)
    for cause in ("overfitting", "saturated_units"):
        doctor.tried.take(Suspicion(cause, 0.7, (), ""), None, None)
    exam = Examination(case, doctor.tried.remedies)
    exam.observed = laboratory.observe(exam.program, 200)
    doctor._leave_out_what_is_gone(exam)
    assert [kept.suspicion.cause for kept in doctor.tried.kept] == ["unshuffled_data", "saturated_units"]
    assert [item.cause for item in doctor.tried.rejected] == ["overfitting"]


def test_a_score_that_fit_would_not_keep_is_looked_at_again() -> None:
    """Steps far too long get most answers right and are so sure of the others that the first weights have less loss."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=source)
    y = (x[:, :1] + 0.5 * torch.randn(400, 1, generator=source) > 0).float()

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), nn.Softmax(1))

    task = fogline.Task(net, nn.BCELoss(), (x[:300], y[:300]), valid=(x[300:], y[300:]))
    report = fogline.diagnose(task, fogline.Recipe(optimizer="adam", lr=1.0, batch_size=32, duration="20ep"))
    assert {"softmax_single_unit", "lr_too_high"} <= {finding.cause for finding in report.findings}


def test_what_keeps_a_program_from_being_run_is_mended_by_what_is_behind_it() -> None:
    """A mask the wrong way round hides all of rows without padding, of which a softmax makes nothing."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            h, real = self.embed(words), (words != 0).float()[..., None]
            h = self.attention(h, h, h, key_padding_mask=words != 0)[0]
            found: torch.Tensor = self.head((h * real).sum(1) / real.sum(1))
            return found

    source = torch.Generator().manual_seed(0)
    words = torch.randint(1, 9, (400, 10), generator=source)
    words[torch.arange(10) >= torch.randint(4, 11, (400, 1), generator=source)] = 0
    task = fogline.Task(Reads, nn.CrossEntropyLoss(), (words, (words[:, 0] > 4).long()))
    report = fogline.diagnose(task, fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="10ep"))
    assert [finding.cause for finding in report.findings][:2] == ["nan_source", "bottleneck"]
    assert [remedy.title for remedy in report.remedies][:1] == ["turn the mask about"]
