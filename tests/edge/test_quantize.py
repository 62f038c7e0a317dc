"""From a module to a graph that rounds to a graph of integers: the same function, then the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import fogline
from edge.networks import MAKERS, made
from fogline.descent.objective import Objective
from fogline.edge.capture import Graph, capture, first_input
from fogline.edge.compare import outputs_of
from fogline.edge.noise import noise_of
from fogline.edge.quantize import SIGNED, UNSIGNED, Quantized, calibrate, convert, quantized, signal_to_noise


def rounded(kind: str, bits: int = 8) -> tuple[nn.Module, Quantized, Tensor]:
    model, inputs = made(kind)
    found = quantized(capture(model, inputs), replace(UNSIGNED, weight_bits=bits))
    calibrate(found, [inputs])
    return model, found, inputs


@pytest.mark.parametrize("kind", MAKERS)
def test_the_captured_graph_is_the_model_and_leaves_it_alone(kind: str) -> None:
    model, inputs = made(kind)
    before = copy.deepcopy(model.state_dict())
    captured = capture(model.train(), inputs)
    assert captured.most is None
    names = {str(node.target) for node in captured.graph.graph.nodes}
    assert not any("batch_norm" in name or "dropout" in name for name in names)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found, expected = outputs_of(Graph(captured.graph, None), inputs), outputs_of(model.eval(), inputs)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_converted_graph_gives_the_same_bits(kind: str, bits: int) -> None:
    model, found, inputs = rounded(kind, bits)
    fake, exact = outputs_of(found, inputs), outputs_of(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(convert(found), inputs), fake, strict=True))
    quality = [signal_to_noise(a, b) for a, b in zip(exact, fake, strict=True)]
    assert min(quality) > 25 if bits == 8 else max(quality) < 25


def test_still_the_same_bits_after_training() -> None:
    _, found, inputs = rounded("residual", bits=4)
    found.train()
    found.settle_after = 5
    optimizer = torch.optim.Adam(found.parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        found(inputs).square().mean().backward()
        optimizer.step()
    found.eval()
    with torch.no_grad():
        assert torch.equal(convert(found)(inputs), found(inputs))


def test_ranges_move_at_first_and_then_stay() -> None:
    _, found, inputs = rounded("perceptron")
    found.train()
    found.settle_after = 2
    seen = []
    for _ in range(4):
        found(3 * inputs)
        seen.append(float(found.roundings[0].high))
    assert seen[0] < seen[1] == seen[2] == seen[3]
    found.eval()(9 * inputs)
    assert float(found.roundings[0].high) == seen[3]
    assert int(found.seen) == 4


def rounded_targets(found: Quantized) -> set[str]:
    assert isinstance(found.graph, fx.GraphModule)
    nodes = [node for node in found.graph.graph.nodes if node.op == "call_module"]
    return {str(node.args[0].target) for node in nodes}


def test_everything_between_convolutions_is_rounded_and_attention_is_not() -> None:
    _, residual, _ = rounded("residual")
    assert {"aten.relu.default", "aten.max_pool2d.default", "aten.adaptive_avg_pool2d.default"} <= rounded_targets(
        residual
    )
    _, reader, _ = rounded("reader")
    assert not any("scaled_dot_product" in name or "softmax" in name for name in rounded_targets(reader))


def test_silu_is_a_sigmoid_and_a_product_and_the_parts_of_a_map_share_its_scale() -> None:
    _, found, _ = rounded("gated")
    assert {"aten.sigmoid.default", "aten.mul.Tensor"} <= rounded_targets(found)
    graph = found.graph.graph
    split = next(node for node in graph.nodes if "chunk" in str(node.target))
    scales = {str(reader.target) for part in split.users for reader in part.users}
    assert scales == {str(split.args[0].target)}


def test_what_no_layer_reads_any_more_is_not_rounded_twice() -> None:
    """Two last convolutions of different ranges, one behind the other: each keeps the scale of its own."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return torch.cat((self.first(images).flatten(2), self.second(images).flatten(2)), 2)

    model = Heads().eval()
    with torch.no_grad():
        model.second.weight *= 1000
    inputs = torch.linspace(0, 1, 36).reshape(1, 1, 6, 6)
    found = quantized(capture(model, inputs))
    calibrate(found, [inputs])
    assert rounded_targets(found) >= {"aten.conv2d.default"}
    assert not {"aten.cat.default", "aten.flatten.using_ints"} & rounded_targets(found)
    with torch.no_grad():
        small = found(inputs)[..., :36], model(inputs)[..., :36]
    assert signal_to_noise(small[1], small[0]) > 30


def test_a_signed_grid_is_signed_and_closed() -> None:
    model, inputs = made("perceptron")
    found = quantized(capture(model, inputs), SIGNED)
    calibrate(found, [inputs])
    activations = [rounding for rounding in found.roundings if rounding.axis is None]
    assert {(item.least, item.most, item.dtype) for item in activations} == {(-128, 127, torch.int8)}
    assert len(found(inputs)[:, 0].unique()) <= 256
    assert len(activations) == 3  # inputs, hidden units, outputs


def test_layers_that_are_skipped_stay_as_they_were() -> None:
    model, inputs = made("perceptron")
    found = quantized(capture(model, inputs), skip=["0"])
    assert [layer.name for layer in found.layers] == ["3"]
    with pytest.raises(ValueError, match="unknown layer 'nought'"):
        quantized(capture(model, inputs), skip=["nought"])
    with pytest.raises(ValueError, match="found none"):
        quantized(capture(nn.Sequential(nn.ReLU()), inputs))


def test_the_noise_of_layers_is_named_with_the_noisiest_first() -> None:
    _, found, inputs = rounded("perceptron")
    # The weights of a unit that is never active are ten thousand times the others, which are left no levels.
    with torch.no_grad():
        found.graph.get_parameter("0.bias")[0] = -1000
        found.graph.get_parameter("3.weight")[:, 0] = 1000
    calibrate(found, [inputs])
    layers = noise_of(found, inputs)
    assert [layer.name for layer in layers] == ["3", "0"]
    assert layers[0].signal_to_noise < layers[1].signal_to_noise
    assert layers[0].gain is not None
    assert layers[0].gain > 0
    assert all(rounding.active for rounding in found.roundings)


def test_a_batch_that_is_too_large_is_computed_in_parts() -> None:
    calls: list[int] = []

    class Counting(nn.Module):
        def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(len(rows))
            return rows, 2 * rows

    first, second = Graph(Counting(), 16)(torch.arange(40.0))
    assert calls == [16, 16, 8]
    assert torch.equal(first, torch.arange(40.0))
    assert torch.equal(second, 2 * first)


def test_only_models_of_one_tensor_can_be_captured() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    loss = fogline.on_batch(lambda model, batch: model(batch, batch).mean())
    with pytest.raises(TypeError, match=r"expected a model of one tensor, received .*Tensor, Tensor"):
        first_input(Objective(Two(), loss), torch.ones(2))


def test_control_flow_that_depends_on_data_is_refused_in_words() -> None:
    class Branching(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return rows if rows.sum() > 0 else -rows

    with pytest.raises(ValueError, match=r"torch\.export can capture .*Branching"):
        capture(Branching(), torch.ones(4, 2))


def task(model: nn.Module, inputs: Tensor) -> fogline.Task:
    targets = torch.arange(len(inputs)) % 3
    return fogline.Task(model, nn.CrossEntropyLoss(), (inputs, targets), (inputs, targets))


def test_training_it_is_a_run_like_any_other_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    recipe = fogline.Recipe(optimizer="adamw", lr=1e-2, batch_size=16, duration="12st", step="eager")
    ended: list[dict[str, Tensor]] = []
    for name, stop in (("whole", None), ("halved", 7)):
        _, found, inputs = rounded("perceptron")
        found.settle_after = 9
        learned = task(found, inputs)
        if stop is None:
            run = fogline.fit(learned, recipe, runs=tmp_path, name=name, progress=False)
        else:
            for step in fogline.descend(learned, recipe, runs=tmp_path, name=name):
                if step.number == stop:
                    break
            run = fogline.resume(tmp_path / name, learned, progress=False)
        ended.append(run.model.state_dict())
        assert run.verdict is not None
        assert len(run.steps["loss"]) == 12
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())
    assert any("seen" in name for name in ended[0])


@pytest.mark.parametrize("function", [nn.ReLU, nn.SiLU, nn.GELU, nn.Hardtanh])
def test_activations_of_every_kind_are_kept(function: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), function(), nn.Conv2d(4, 4, 3), nn.Flatten()).eval()
    inputs = torch.randn(8, 2, 7, 7)
    found = quantized(capture(model, inputs))
    calibrate(found, [inputs])
    with torch.no_grad():
        assert signal_to_noise(model(inputs), found(inputs)) > 30
