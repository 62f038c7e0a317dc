"""Mixed precision is used where its loss and its gradient are those of full precision, and said not to be elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.descent.objective import Objective
from fogline.descent.precision import compare
from fogline.descent.resolve import Resolved, resolve_precision


def _data() -> tuple[Tensor, Tensor]:
    x = torch.sin(torch.arange(64 * 4.0)).reshape(64, 4)
    return x, x.sum(1, keepdim=True)


def _model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


class Scaled(nn.Module):
    """A model with numbers of another size in the middle."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = _model(), factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x * self.factor) / self.factor
        return out


class Lifted(nn.Module):
    """Outputs about 10,000, whose last digits bfloat16 does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _model()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + 10_000
        return out


def _beside_a_constant(outputs: Tensor, targets: Tensor) -> Tensor:
    """What tells the losses apart is hidden."""
    return 100 + 1e-3 * (outputs - 10_000 - targets).square().mean()


def _run(model: nn.Module, runs: Path, precision: str, **fields: object) -> fogline.Run:
    loss = fields.pop("loss", nn.MSELoss())
    recipe = {"lr": 0.01, "batch_size": 16, "duration": "5st", "step": "eager", "device": "cpu", **fields}
    return fogline.fit(model, _data(), loss=loss, precision=precision, runs=runs, **recipe)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_healthy_model_passes(precision: str, tmp_path: Path) -> None:
    run = _run(_model(), tmp_path, precision, duration="40st")
    assert run.recipe.precision == precision
    why = run.info["resolved"]["precision"]["why"]
    assert re.match(r"self-check passed: its gradient has cosine (0\.99|1\.00)", why)
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    # The scaler of float16 leaves out the first steps, until its scale suits.
    full = _run(_model(), tmp_path, "float32", duration="40st")
    assert run.steps["loss"][-1] < 0.7 * run.steps["loss"][0]
    assert run.steps["loss"][-1] < 2 * full.steps["loss"][-1]


def test_numbers_beyond_float16_are_found(tmp_path: Path) -> None:
    run = _run(Scaled(1e7), tmp_path, "fp16")
    assert run.recipe.precision == "float32"
    notes = [text for text in run.events["message"] if text.startswith("fp16 is not used: self-check failed")]
    assert len(notes) == 1
    assert run.steps["loss"][-1] < 10
    assert _run(Scaled(1e7), tmp_path, "bf16").recipe.precision == "bf16"  # which has the range of float32


def test_a_gradient_that_is_lost_is_found_where_the_loss_agrees(tmp_path: Path) -> None:
    run = _run(Lifted(), tmp_path, "bf16", loss=_beside_a_constant)
    assert run.recipe.precision == "float32"
    assert any("cosine" in text and text.startswith("bf16 is not used") for text in run.events["message"])


def test_the_check_leaves_everything_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = compare(Objective(model, nn.MSELoss(), torch.bfloat16), _data())
    assert found.cosine > 0.99
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_recurrent_layers_can_be_checked() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.cells(x[:, :, None])[0][:, -1])
            return out

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Last()
    enabled = torch.backends.cudnn.enabled
    assert not compare(Objective(model, nn.MSELoss(), torch.bfloat16), _data()).fault
    assert torch.backends.cudnn.enabled == enabled


def test_a_loss_is_computed_in_full(tmp_path: Path) -> None:
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((outputs.dtype, torch.is_autocast_enabled("cpu")))
        return (outputs - targets).square().mean()

    run = _run(_model(), tmp_path, "bf16", loss=loss)
    assert run.recipe.precision == "bf16"
    assert set(seen) == {(torch.float32, False)}


def test_what_raises_in_mixed_precision_is_told(tmp_path: Path) -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _model()

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("unsafe to autocast\n(and more)")
            out: Tensor = self.inner(x)
            return out

    run = _run(Picky(), tmp_path, "bf16")
    assert run.recipe.precision == "float32"
    assert "bf16 is not used: self-check failed: it raises RuntimeError: unsafe to autocast" in list(
        run.events["message"]
    )


@pytest.mark.parametrize(
    ("operations", "device", "chosen"), [(1e6, "cuda", "float32"), (1e12, "cuda", "bf16"), (1e12, "cpu", "float32")]
)
def test_small_steps_keep_their_digits(
    operations: float, device: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = Resolved(fogline.Recipe(device=device))
    resolve_precision(found, operations)
    assert found.recipe.precision == chosen
    kept = Resolved(fogline.Recipe(device=device, precision="fp16"))
    resolve_precision(kept, operations)
    assert kept.recipe.precision == "fp16"
