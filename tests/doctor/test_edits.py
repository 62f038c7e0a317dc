"""Which of the edits that help are needed, and how they are said."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

import fogline


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def houses(rows: int = 900) -> tuple[Tensor, Tensor]:
    """Floor space, rooms, year and distance, (rows, 4); a price, (rows, 1)."""
    drawn = torch.rand(rows, 4, generator=torch.Generator().manual_seed(0))
    table = drawn * torch.tensor([260.0, 5, 70, 30]) + torch.tensor([40.0, 1, 1950, 0])
    price = table @ torch.tensor([2000.0, 10_000, 800, -3000]) - 1.5e6
    return table, price[:, None]


def perceptron(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def told(data: tuple[Tensor, Tensor], model: nn.Module, loss: nn.Module, recipe: fogline.Recipe) -> fogline.Report:
    inputs, targets = data
    rows = len(inputs) * 7 // 9
    train, valid = (inputs[:rows], targets[:rows]), (inputs[rows:], targets[rows:])
    return fogline.diagnose(fogline.Task(model=model, loss=loss, train=train, valid=valid), recipe)


def test_another_rate_is_a_smaller_edit_than_another_method() -> None:
    recipe = fogline.Recipe(optimizer="sgd", lr=0.1, duration="10ep")
    report = told(digits(), perceptron(64, 64, 10), nn.CrossEntropyLoss(), recipe)
    assert [finding.cause for finding in report.findings if finding.remedy] == ["lr_too_low"]
    assert report.findings[0].remedy is not None
    assert report.findings[0].remedy.on_recipe is not None
    assert report.findings[0].remedy.on_recipe(recipe).optimizer == "sgd"
    assert "optimizer_mismatch" in {item.cause for item in report.rejected}


def test_what_is_only_faster_is_not_needed_where_the_run_has_the_time() -> None:
    recipe = fogline.Recipe(optimizer="adam", lr=1e-3, duration="30ep", batch_size=32)
    report = told(houses(), perceptron(4, 32, 32, 1), nn.MSELoss(), recipe)
    assert [finding.cause for finding in report.findings] == ["unscaled_input", "unscaled_target"]
    assert report.healed is not None
    assert report.healed > 0.9
    assert "the run has the time" in next(item.why for item in report.rejected if item.cause == "lr_too_low")


@pytest.mark.parametrize(("duration", "said"), [("2ep", "lr_too_low"), ("30ep", "unscaled_target")])
def test_a_rate_is_judged_with_what_else_was_mended(duration: str, said: str) -> None:
    """Prices make the steps of this rate far too long; it is low for prices in their deviations, of a short run."""
    table, price = houses()
    data = (table - table.mean(0)) / table.std(0), price
    recipe = fogline.Recipe(optimizer="sgd", lr=1e-2, duration=duration, batch_size=32)
    report = told(data, perceptron(4, 32, 32, 1), nn.MSELoss(), recipe)
    causes = [finding.cause for finding in report.findings]
    assert causes[0] == "unscaled_target"
    assert said in causes
    assert "lr_too_high" not in causes


def test_units_come_before_the_steps_that_they_unsettle() -> None:
    """Although another rate gains more than scaled inputs do."""
    table = load_diabetes(scaled=False)
    data = torch.tensor(table.data, dtype=torch.float32), torch.tensor(table.target, dtype=torch.float32)[:, None]
    recipe = fogline.Recipe(optimizer="adam", lr=1e-3, duration="30ep", batch_size=32)
    report = told(data, perceptron(10, 64, 64, 1), nn.MSELoss(), recipe)
    units, rate = report.findings[:2]
    assert (units.cause, rate.cause) == ("unscaled_input", "lr_too_low")
    assert units.trial is not None
    assert rate.trial is not None
    assert units.trial.effect < rate.trial.effect


def test_labels_that_are_predicted_as_a_number_are_not_told_to_stay_so() -> None:
    images, labels = digits()
    recipe = fogline.Recipe(optimizer="adam", lr=1e-3, duration="20ep", batch_size=32)
    report = told((images, labels.float()[:, None]), perceptron(64, 32, 1), nn.MSELoss(), recipe)
    finding = next(finding for finding in report.findings if finding.cause == "loss_mismatch")
    assert "CrossEntropyLoss" in str(finding.remedy)
    assert "nn.MSELoss" not in finding.advice


def test_a_certain_gain_is_looked_at_in_full_where_a_short_trial_shows_a_part_of_it() -> None:
    """Straight lines do about as well as a classical learner here, and bent ones better, by the end of the run."""
    angle = torch.rand(720, generator=torch.Generator().manual_seed(3)) * torch.pi
    side = torch.arange(720) % 2
    moon = torch.stack((angle.cos() + side, (1 - 2 * side) * angle.sin() + 0.5 * side), 1)
    moon += 0.15 * torch.randn(720, 2, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    drops = [nn.Linear(2, 32), nn.Dropout(0.2), nn.Linear(32, 32), nn.Dropout(0.2), nn.Linear(32, 1)]
    recipe = fogline.Recipe(optimizer="adam", lr=0.003, batch_size=128, duration="100ep", schedule="linear")
    report = told((moon, side.float()[:, None]), nn.Sequential(*drops), nn.BCEWithLogitsLoss(), recipe)
    assert [finding.cause for finding in report.findings] == ["missing_activation"]


def test_numbers_that_go_on_rising_are_scaled_and_not_told_to_be_of_another_kind() -> None:
    """Prices far above their spread, held out by time: what is learned from the first ones holds for the last ones."""
    walk = torch.randn(900, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(0) * 0.01 + 5
    days = torch.stack([walk[k : k + 20] for k in range(870)]).float()
    recipe = fogline.Recipe(optimizer="adam", lr=0.001, batch_size=32, duration="40ep")
    report = told((days, walk[20:890, None].float()), perceptron(20, 64, 1), nn.MSELoss(), recipe)
    assert {"unscaled_target", "unscaled_input"} <= {finding.cause for finding in report.findings[:2]}
    assert "train_valid_mismatch" not in {finding.cause for finding in report.findings}


def test_a_wrapped_model_is_read_and_asked_like_the_one_inside() -> None:
    class Priced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.columns, self.note = perceptron(4, 32, 1), (0, 1, 2, 3), None

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x)
            return found

        def __deepcopy__(self, _: Any) -> Priced:
            return Priced()

        def predict(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                found: Tensor = self(x[:, list(self.columns)])
            return found

    table, price = houses()
    recipe = fogline.Recipe(optimizer="adam", lr=0.003, batch_size=32, duration="20ep")
    report = told((table, price), Priced(), nn.MSELoss(), recipe)
    task, _ = report.apply(fogline.Task(Priced(), nn.MSELoss(), (table, price)), recipe)
    model: Any = task.model
    assert not isinstance(model, Priced)
    assert model.columns == (0, 1, 2, 3)
    assert model.note is None
    assert torch.equal(model.predict(table), model(table).detach())
    with pytest.raises(AttributeError, match="net"):
        _ = model.net  # which would be given what the model is not given any more
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.nothing
    assert type(copy.deepcopy(model)) is type(model)  # by its own means, whatever the one inside has
