"""Sources: what they return, in which order, and that nobody's random state is touched."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    StackDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from fogline.data import InMemory, MapStyle, Stream, open_data
from fogline.data.privacy import PrivateRandom, derived_seed
from fogline.data.source import Collated, cast, fingerprint, leaves, map_tree, part, rows_of, taken, whole
from fogline.descent.batches import split
from fogline.task import Task, on_batch


class Noisy(Dataset):
    """Every example draws from all three generators, as augmentations do."""

    def __init__(self, size=12):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        noise = torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])
        return noise, index % 3


class NoisyInBatches(Noisy):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Counting(IterableDataset):
    def __init__(self, size=10, labels=True):
        self.size, self.labels = size, labels

    def __iter__(self):
        for number in range(self.size):
            yield torch.tensor([float(number), torch.rand(()).item()]), number % 2


def states():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def classifying(train, valid=None, model=None):
    return Task(model or nn.Linear(4, 3), nn.CrossEntropyLoss(), train, valid)


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(leaves(left), leaves(right), strict=True))


def test_take_is_indexing_on_every_structure():
    x, y = torch.randn(9, 2, 3), torch.arange(9)
    index = torch.tensor([8, 0, 0, 3])
    for tree in (x, (x, y), {"x": x, "more": (y, [x])}, (x, (x, y)), (x, y, x)):
        assert same(InMemory(tree).take(index), map_tree(lambda leaf: leaf[index], tree))
        assert same(InMemory(tree).slice(2, 5), map_tree(lambda leaf: leaf[2:5], tree))
    assert InMemory((x, y)).slice(2, 5)[0].data_ptr() == x[2].data_ptr()


def test_astype_changes_floats_only():
    source = InMemory((torch.ones(3, 2, dtype=torch.float64), torch.arange(3))).astype(torch.float32)
    assert [leaf.dtype for leaf in source.tensors] == [torch.float32, torch.int64]
    kept = torch.ones(2)
    assert cast(kept, torch.float32) is kept


def test_leaves_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"same number of rows, received \[3, 4\]"):
        InMemory((torch.ones(3), torch.ones(4)))
    with pytest.raises(TypeError, match="without any tensor"):
        InMemory({"x": "text"})


@pytest.mark.parametrize("dataset", [Noisy(), NoisyInBatches(), Subset(Noisy(), range(12))])
def test_randomness_of_examples_does_not_depend_on_workers(dataset):
    source = MapStyle(dataset)
    order = [[3, 1], [0, 11], [5]]
    before = states()
    alone = list(source.loader(order, 0, seed=4, epoch=1))
    assert states() == before
    assert all(same(a, b) for a, b in zip(alone, source.loader(order, 2, seed=4, epoch=1), strict=True))
    assert all(same(a, b) for a, b in zip(alone, source.loader(iter(order), 1, seed=4, epoch=1), strict=True))
    assert same(alone[1], source.take(torch.tensor([0, 11]), seed=4, epoch=1))
    assert states() == before


def test_randomness_depends_on_seed_epoch_and_index_and_on_nothing_else():
    source = MapStyle(Noisy())

    def noise(index, seed, epoch):
        return tuple(source.take(torch.tensor(index), seed, epoch)[0][-1, 1:].tolist())

    assert noise([5], 1, 0) == noise([2, 7, 5], 1, 0)
    assert len({noise([5], 1, 0), noise([5], 2, 0), noise([5], 1, 1), noise([6], 1, 0)}) == 4


def test_map_style_batches_are_tuples_in_the_type_asked_for():
    source = MapStyle([(np.float64(index), index) for index in range(4)]).astype(torch.float32)
    inputs, targets = source.take(torch.tensor([3, 0]))
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [3, 0]
    assert targets.tolist() == [3, 0]


@given(st.integers(1, 12), st.integers(0, 14))
def test_a_stream_resumed_anywhere_gives_the_rest_of_its_examples(batch_size, start):
    source = Stream(Counting())

    def rows(position):
        batches = [inputs for inputs, _ in source.batches(batch_size, position, seed=3)]
        return torch.cat(batches) if batches else torch.empty(0, 2)

    assert torch.equal(rows(start), rows(0)[start:])


def test_a_stream_leaves_the_random_state_alone_between_batches():
    before = states()
    batches = Stream(Counting()).batches(4)
    sizes = []
    for inputs, _ in batches:
        assert states() == before
        sizes.append(len(inputs))
    assert sizes == [4, 4, 2]


def test_private_random_goes_on_where_it_was():
    private = PrivateRandom()
    with private:
        private.seed(5)
        first = torch.rand(2)
    torch.rand(7)
    with private:
        second = torch.rand(2)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(first, torch.rand(2, generator=generator))
    assert torch.equal(second, torch.rand(2, generator=generator))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4), st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_derived_seeds_differ_where_their_words_do(left, right):
    assert (derived_seed(*left) == derived_seed(*right)) == (left == right)
    assert 0 <= derived_seed(*left) < 2**63


X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(X, Y),
        Subset(TensorDataset(X, Y), range(12)),
        Subset(Subset(TensorDataset(X, Y), range(12)), range(12)),
        ConcatDataset([TensorDataset(X[:5], Y[:5]), TensorDataset(X[5:], Y[5:])]),
        StackDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=5),
        (X.numpy(), Y.numpy()),
        (X.numpy().astype(">f4"), Y.numpy().astype(np.int32)),
        [X, Y],
        (X.tolist(), Y.tolist()),
        (X.numpy(), [f"class {label}" for label in Y]),
    ],
    ids=[
        "tensors",
        "subset",
        "subset of a subset",
        "concatenated",
        "stacked",
        "loader",
        "arrays",
        "arrays of other types",
        "list of tensors",
        "lists",
        "names of classes",
    ],
)
def test_whatever_holds_tensors_is_sliced_from_memory(data):
    opened = open_data(classifying(data, data))
    assert isinstance(opened.train, InMemory)
    assert isinstance(opened.valid, InMemory)
    assert same(opened.train.tensors, (X, Y))
    assert opened.train.tensors[1].dtype == torch.int64
    assert (opened.facts.kind, opened.facts.inputs, opened.facts.outputs) == ("classification", (4,), 3)


def test_a_subset_takes_its_rows():
    opened = open_data(classifying(Subset(TensorDataset(X, Y), [3, 1, 2, 9])))
    assert same(opened.train.tensors, (X[[3, 1, 2, 9]], Y[[3, 1, 2, 9]]))


def test_text_targets_keep_their_names_and_held_out_ones_use_the_same_labels():
    names = np.array(["cat", "ant", "bee"] * 4)
    opened = open_data(classifying((X, names), (X[:2], ["bee", "ant"])))
    assert opened.facts.classes == ("ant", "bee", "cat")
    assert opened.valid.tensors[1].tolist() == [1, 0]
    assert any("read as 3 classes (ant, bee, cat)" in note for note in opened.facts.notes)
    with pytest.raises(ValueError, match=r"valid: .*'beee'.*did you mean 'bee'"):
        open_data(classifying((X, names), (X[:1], ["beee"])))


def test_text_targets_are_read_as_the_targets_of_a_table_are():
    names = ["yes", "no"] * 6
    opened = open_data(Task(nn.Linear(4, 1), nn.BCEWithLogitsLoss(), (X, names)))
    assert opened.train.tensors[1].tolist() == [[1.0], [0.0]] * 6
    assert (opened.facts.classes, opened.facts.outputs, opened.encoder) == (("no", "yes"), 1, None)
    with pytest.raises(ValueError, match=r"expected numbers for this loss, received text such as 'yes'"):
        open_data(Task(nn.Linear(4, 1), nn.MSELoss(), (X, names)))
    with pytest.raises(ValueError, match=r"at least two classes, received only 'yes' in all 12 rows"):
        open_data(classifying((X, ["yes"] * 12)))
    with pytest.raises(TypeError, match=r"valid\[1\]: expected numbers, received list"):
        open_data(classifying((X, Y), (X, names)))


def test_a_loader_is_taken_apart():
    def halves(examples):
        inputs, targets = zip(*examples, strict=True)
        return torch.stack(inputs)[:, :2], torch.tensor(targets)

    loader = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, collate_fn=halves, drop_last=True)
    opened = open_data(classifying(loader))
    assert isinstance(opened.train, MapStyle)
    assert (opened.facts.batch_size, opened.facts.shuffle, opened.facts.inputs) == (5, True, (2,))
    assert same(opened.train.take(torch.tensor([1, 0])), (X[[1, 0], :2], Y[[1, 0]]))
    assert any("drop_last" in note for note in opened.facts.notes)
    assert open_data(classifying(DataLoader(TensorDataset(X, Y)))).facts.shuffle is False


def test_samplers_that_are_replaced_are_named():
    weighted = DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 12, 12))
    facts = open_data(classifying(weighted)).facts
    assert facts.shuffle is None
    assert any("WeightedRandomSampler of the train loader is replaced" in note for note in facts.notes)
    batches = DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(X), 6, False))
    facts = open_data(classifying(batches)).facts
    assert (facts.batch_size, facts.shuffle) == (6, False)


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match="batch_size=None"):
        open_data(classifying(DataLoader(TensorDataset(X, Y), batch_size=None)))


def test_map_style_datasets_and_lists_of_pairs():
    opened = open_data(classifying(Noisy()))
    assert isinstance(opened.train, MapStyle)
    assert opened.facts.kind == "classification"
    assert opened.facts.outputs == 0  # unknown without reading everything, which a given model does not need
    assert open_data(Task(None, None, Noisy())).facts.outputs == 3
    pairs = [(torch.randn(2), torch.randn(1)) for _ in range(3)]
    assert open_data(Task(nn.Linear(2, 1), nn.MSELoss(), pairs)).facts.kind == "regression"


def test_streams():
    opened = open_data(classifying(DataLoader(Counting(), batch_size=4, num_workers=2)))
    assert isinstance(opened.train, Stream)
    assert opened.train.size is None
    assert opened.facts.batch_size == 4
    assert any("not in 2 workers" in note for note in opened.facts.notes)
    with pytest.raises(ValueError, match="empty stream"):
        open_data(classifying(Counting(0)))


def test_on_batch_takes_any_structure():
    loss = on_batch(lambda model, batch: model(batch).mean())
    for data in (X, (X, Y, X), {"a": X, "b": Y}, X.numpy()):
        opened = open_data(Task(nn.Linear(4, 1), loss, data))
        assert opened.facts.kind == "other"
        assert opened.facts.inputs == (4,)
        assert isinstance(opened.train, InMemory)


def test_fingerprints_differ_where_the_data_does():
    base = InMemory((X, Y))
    others = [
        InMemory((X + 1, Y)),
        InMemory((X[:11], Y[:11])),
        InMemory((X.double(), Y)),
        InMemory(X),
        MapStyle(Noisy()),
    ]
    prints = [fingerprint(source) for source in (base, *others, Stream(Counting()), InMemory((X.clone(), Y.clone())))]
    assert len(set(prints)) == len(prints) - 1
    assert prints[0] == prints[-1]
    before = states()
    assert fingerprint(MapStyle(Noisy())) == prints[5]
    assert states() == before
    assert fingerprint(InMemory(X.bfloat16())) != fingerprint(InMemory(X.half()))


def test_libraries_that_are_not_needed_are_not_imported():
    program = (
        "import sys, torch; before = set(sys.modules); import fogline.data;"
        "print(sorted({'pandas', 'polars', 'duckdb', 'PIL', 'pyarrow', 'sklearn'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_target_name_beside_tensors_is_said_to_be_unused():
    facts = open_data(Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), (X, Y), target="y")).facts
    assert any("target='y' is for frames and files" in note for note in facts.notes)


class Counted(torch.utils.data.Dataset[torch.Tensor]):
    """Gives the pass it was told it is read for."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([self.epoch, index])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_is_told_which_pass_it_is_read_for(workers: int) -> None:
    source = MapStyle(Counted())
    for epoch in (3, 0):
        (batch,) = source.loader([[1, 2]], workers, epoch=epoch)
        assert batch.tolist() == [[epoch, 1], [epoch, 2]]


class Pictures(Dataset):
    """Pictures of their own sizes with any number of boxes, as detectors are trained on."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        source = torch.Generator().manual_seed(index)
        boxes = torch.rand(1 + index % 3, 4, generator=source)
        return torch.rand(3, 8 + index % 2, 8, generator=source), {"boxes": boxes}


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_that_are_no_rows_are_parted_by_their_examples(workers):
    loader = DataLoader(
        Pictures(),
        batch_size=5,
        num_workers=workers,
        collate_fn=lambda examples: tuple(map(list, zip(*examples, strict=True))),
    )
    task = Task(lambda: nn.Linear(3, 2), on_batch(lambda model, batch: model(batch)), loader)
    batch, rest = list(open_data(task).train.loader([[0, 1, 2, 3, 4], [5, 6]]))
    assert isinstance(batch, Collated)
    assert (rows_of(batch), rows_of(rest)) == (5, 2)
    pictures, targets = whole(part(batch, 1, 3))
    assert torch.equal(pictures[0], Pictures()[1][0])
    assert torch.equal(targets[1]["boxes"], Pictures()[2][1]["boxes"])
    pictures, targets = whole(taken(cast(batch, torch.float64), torch.tensor([4, 0])))
    assert torch.equal(pictures[0], Pictures()[4][0].double())
    assert torch.equal(targets[1]["boxes"], Pictures()[0][1]["boxes"].double())
    assert [rows_of(piece) for piece in split(batch, 2)] == [2, 2, 1]
    assert part(batch, 0, 9) is batch


class Told(IterableDataset):
    def __iter__(self):
        return ((f"row {index}", index) for index in range(7))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_texts(workers):
    loader = DataLoader(Told(), batch_size=3, collate_fn=lambda examples: tuple(map(list, zip(*examples, strict=True))))
    source = open_data(Task(lambda: nn.Linear(4, 2), on_batch(lambda model, batch: model(batch)), loader)).train
    batches = [batch for batch, _ in source.marked(3, 0, 0, 0, workers=workers)]
    assert [rows_of(batch) for batch in batches] == [3, 3, 1]
    assert whole(part(batches[1], 1, 3)) == (["row 4", "row 5"], [4, 5])


def test_texts_are_no_rows_and_tensors_are():
    texts = DataLoader([("a film", 1), ("a plot", 0), ("a cast", 1)], batch_size=2)
    rows = DataLoader([(torch.ones(4), 1), (torch.zeros(4), 0)], batch_size=2)
    for loader, collated in ((texts, True), (rows, False)):
        task = Task(lambda: nn.Linear(4, 2), on_batch(lambda model, batch: model(batch)), loader)
        assert isinstance(open_data(task).train.take(torch.tensor([1, 0])), Collated) is collated


@pytest.mark.parametrize("kind", ["on_batch", "tokens", "padded", "columns"])
def test_rows_of_any_length_held_out(kind):
    short, long = torch.ones(6, 4), torch.ones(6, 7)
    train, valid, loss = (short, torch.zeros(6, 1)), (long, torch.zeros(6, 1)), nn.MSELoss()
    if kind == "on_batch":
        train, valid, loss = {"x": short}, {"x": long}, on_batch(lambda model, batch: model(batch["x"]))
    elif kind == "tokens":
        train, valid = (short.long(), train[1]), (long.long(), valid[1])
    elif kind == "padded":
        train, valid = (
            DataLoader(TensorDataset(*rows), batch_size=2, collate_fn=lambda examples: default_collate(examples))
            for rows in (train, valid)
        )
    task = Task(lambda: nn.Linear(4, 1), loss, train, valid)
    if kind == "columns":
        with pytest.raises(ValueError, match="expected inputs with 4 columns"):
            open_data(task)
    else:
        assert open_data(task).valid.size == 6
