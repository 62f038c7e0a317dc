"""A mask the wrong way round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.flow.masks import mask_turned
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion

RECIPE = fogline.Recipe(optimizer="adam", lr=0.02, batch_size=32, duration="12ep")
WORDS, LONGEST, WIDTH = 20, 12, 16


class Reads(nn.Module):
    """Attention over words, or over rows of numbers; ``attend`` is given what is padding, or what is not."""

    def __init__(
        self, attend: Callable[[Reads, Tensor, Tensor], Tensor], *, wrong: bool, of_words: bool = True
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed: nn.Module = nn.Embedding(WORDS, WIDTH) if of_words else nn.Linear(3, WIDTH)
        self.score, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 2)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.attend, self.wrong = attend, wrong

    def forward(self, x: Tensor) -> Tensor:
        padding = x == 0 if x.ndim == 2 else (x == 0).all(-1)
        found: Tensor = self.head(self.attend(self, self.embed(x), ~padding if self.wrong else padding))
        return found


def pooled(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    w = model.score(h)[..., 0].masked_fill(ignored, -1e4).softmax(1)
    return (w[..., None] * h).sum(1)


def pooled_of_rest(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    """The same, of what is zeros at the masked places."""
    return pooled(model, h * (~ignored)[..., None], ignored)


def chosen(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    w = torch.where(~ignored[..., None], model.score(h), -1e9).softmax(1)
    return (w * h).sum(1)


def added(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    scores = h @ h.transpose(1, 2) / WIDTH + (1.0 - (~ignored)[:, None].float()) * -1e9
    return (scores.softmax(-1) @ h).mean(1)


def of_pytorch(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    return model.attention(h, h, h, key_padding_mask=ignored, need_weights=False)[0].mean(1)  # type: ignore[no-any-return]


def by_function(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    heads = h.reshape(len(h), -1, 2, WIDTH // 2).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=~ignored[:, None, None])
    return mixed.transpose(1, 2).flatten(2).mean(1)


def encoded(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    return model.encoder(h, src_key_padding_mask=ignored)[:, 0]  # type: ignore[no-any-return]


def twice(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    """One mask for the padding, and one for the rest: both kinds are looked at."""
    return pooled(model, h, ignored) + pooled(model, h, ~ignored)


def causal(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    later = torch.ones(h.shape[1], h.shape[1]).triu(1).bool()
    return ((h @ h.transpose(1, 2)).masked_fill(later, -1e9).softmax(-1) @ h).mean(1)


def summed(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    """How much padding there is, as a factor: no mask of scores."""
    return h.sum(1) + (h * ignored[..., None]).sum(1)


def summed_beside(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    """A mask of scores, and a factor that leaves the padding out whichever way the other is."""
    real = (~ignored if model.wrong is False else ignored)[..., None]
    attended = model.attention(h, h, h, key_padding_mask=ignored, need_weights=False)[0]
    return (attended * real).sum(1) / real.sum(1)


def last_half(model: Reads, h: Tensor, ignored: Tensor) -> Tensor:
    """Another mask than that of padding."""
    return pooled(model, h, (torch.arange(h.shape[1]) < h.shape[1] // 2).expand_as(ignored))


def words(count: int = 300, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Sentences of 3 words to the longest, filled up with 0: whether their words are of the second half, mostly."""
    source = torch.Generator().manual_seed(0)
    x = torch.randint(1, WORDS, (count, LONGEST), generator=source)
    lengths = torch.randint(3, LONGEST, (count, 1), generator=source)
    real = torch.arange(LONGEST) < lengths
    y = ((x > WORDS // 2).float() * real).sum(1) / lengths[:, 0] > 0.5
    x = x * real
    return (x.flip(1) if left else x), y.long()


def rows(count: int = 300) -> tuple[Tensor, Tensor]:
    x, y = words(count)
    return F.embedding(x, torch.randn(WORDS, 3)) * (x != 0)[..., None], y


def found_in(model: nn.Module, data: tuple[Tensor, Tensor]) -> Suspicion | None:
    return mask_turned(Examination(open_case(fogline.Task(model, nn.CrossEntropyLoss(), data), RECIPE)))


ATTENDING = (pooled, pooled_of_rest, chosen, added, of_pytorch, by_function, encoded, summed_beside)


@pytest.mark.parametrize("attend", ATTENDING)
@pytest.mark.parametrize(
    ("data", "of_words"), [(words(), True), (words(left=True), True), (rows(), False)], ids=["right", "left", "rows"]
)
def test_a_mask_the_wrong_way_round_is_seen_and_turned(
    attend: Callable[[Reads, Tensor, Tensor], Tensor], data: tuple[Tensor, Tensor], of_words: bool
) -> None:
    wrong, healthy = (Reads(attend, wrong=it_is, of_words=of_words) for it_is in (True, False))
    found = found_in(wrong, data)
    assert found is not None
    assert found.cause == "bottleneck"
    assert found_in(healthy, data) is None
    edit = found.remedies[0].on_model
    assert edit is not None
    turned = edit(wrong)
    for training in (False, True):
        outputs = []
        for model in (turned, healthy):
            torch.manual_seed(0)
            outputs.append(model.train(training)(data[0][:9]))
        torch.testing.assert_close(*outputs)
    assert found_in(turned, data) is None


@pytest.mark.parametrize("attend", [twice, causal, summed, last_half])
@pytest.mark.parametrize("wrong", [False, True])
def test_other_masks_are_left_alone(attend: Callable[[Reads, Tensor, Tensor], Tensor], wrong: bool) -> None:
    assert found_in(Reads(attend, wrong=wrong), words()) is None


def test_inputs_that_are_masks_themselves_have_no_padding() -> None:
    class Pair(nn.Module):
        """Words, and which of them count: 0 in the mask is no padding where it stands for words that do."""

        def __init__(self) -> None:
            super().__init__()
            self.reads = Reads(pooled, wrong=False)

        def forward(self, given: dict[str, Tensor]) -> Tensor:
            x, hides = given["x"], given["hides"]
            found: Tensor = self.reads.head(pooled(self.reads, self.reads.embed(x), hides == 1))
            return found

    x, y = words()
    hides = (x == 0).long()
    hides[::2] = hides[::3] = 0  # so that in no column most rows are hidden
    x = torch.where(x == 0, torch.randint(1, WORDS, x.shape), x)  # what is hidden is no padding to be seen
    case = open_case(fogline.Task(Pair(), nn.CrossEntropyLoss(), ({"x": x, "hides": hides}, y)), RECIPE)
    assert mask_turned(Examination(case)) is None


def test_a_trial_shows_it() -> None:
    report = fogline.diagnose(fogline.Task(Reads(pooled, wrong=True), nn.CrossEntropyLoss(), words()), RECIPE)
    assert [finding.cause for finding in report.findings] == ["bottleneck"]
    assert report.remedies[0].title == "turn the mask about"
