"""Folders of images by class, drawn here."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fogline.data import InMemory, MapStyle, images, open_data
from fogline.data.images import ImageEncoder
from fogline.task import Task

COLORS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def draw(path, size=(12, 10), mode="RGB", value=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3))
    pixels = np.clip(noise + np.array(COLORS.get(path.parent.name, (90, 90, 90)) if value is None else value), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    for label in COLORS:
        for number in range(10):
            draw(tmp_path / "pictures" / label / f"{number}.png", seed=number)
    return tmp_path / "pictures"


def opened(train, valid=None, model=None, loss=None):
    return open_data(Task(model, loss, train, valid))


def test_a_folder_of_classes(folder):
    result = opened(folder)
    facts = result.facts
    assert (facts.kind, facts.classes, facts.outputs, facts.inputs) == (
        "classification",
        ("blue", "red"),
        2,
        (3, 10, 12),
    )
    assert isinstance(result.train, InMemory)
    assert (result.train.size, result.valid.size) == (16, 4)
    assert result.valid.tensors[1].tolist() == [0, 0, 1, 1]
    pixels, labels = result.train.tensors
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(pixels.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
    assert bool((pixels[labels == 1, 0].mean((1, 2)) > 0.5).all())  # red ones are red
    said = "\n".join(facts.notes)
    assert "4 of 20 images (20 % of each class) were held out" in said
    assert "images are kept in memory, 0.0 MB" in said
    assert "resized" not in said


def test_files_are_read_when_needed_if_they_are_many(folder, monkeypatch):
    expected = opened(folder)
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 100)
    result = opened(folder)
    assert isinstance(result.train, MapStyle)
    assert any("read from their files" in note for note in result.facts.notes)
    for lazy, whole in zip(
        result.train.take(torch.tensor([3, 15])), expected.train.take(torch.tensor([3, 15])), strict=True
    ):
        assert torch.equal(lazy, whole)


@pytest.mark.parametrize("name", ["valid", "val", "validation", "test"])
def test_split_folders_are_recognised(folder, tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    folder.rename(root / "train")
    for label in COLORS:
        draw(root / name / label / "one.png")
    result = opened(root)
    assert (result.train.size, result.valid.size) == (20, 2)
    assert any(f"the images in {name}/ are the held-out data" in note for note in result.facts.notes)


def test_held_out_folder_of_its_own(folder, tmp_path):
    draw(tmp_path / "other" / "red" / "one.png")
    result = opened(folder, tmp_path / "other")
    assert (result.train.size, result.valid.size) == (20, 1)
    assert result.valid.tensors[1].tolist() == [1]
    draw(tmp_path / "other" / "rde" / "one.png")
    with pytest.raises(
        ValueError, match=r"only the classes of the training images, received 'rde': did you mean 'red'"
    ):
        opened(folder, tmp_path / "other")


def test_sizes_are_brought_to_the_median(folder):
    for number in range(3):
        draw(folder / "red" / f"large{number}.png", size=(40, 30))
    result = opened(folder)
    assert result.facts.inputs == (3, 10, 12)
    assert any("resized to their median, 10x12 pixels" in note for note in result.facts.notes)


def test_large_images_are_reduced_for_the_built_in_model_only(tmp_path):
    for label in COLORS:
        for number in range(2):
            draw(tmp_path / "large" / label / f"{number}.png", size=(512, 300))
    assert opened(tmp_path / "large").facts.inputs == (3, 150, 256)
    assert opened(tmp_path / "large", model=nn.Flatten()).facts.inputs == (3, 300, 512)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("P", 3), ("RGBA", 3), ("RGB", 3)])
def test_modes(tmp_path, mode, channels):
    for label in COLORS:
        for number in range(3):
            draw(tmp_path / "set" / label / f"{number}.png", mode=mode, seed=number)
    assert opened(tmp_path / "set").facts.inputs == (channels, 10, 12)


def test_sixteen_bits_keep_their_range(tmp_path):
    for label, value in (("dark", 0), ("light", 65535)):
        for number in range(3):
            path = tmp_path / "deep" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), value, np.uint16)).save(path)
    pixels, labels = opened(tmp_path / "deep").train.tensors
    assert pixels.shape[1:] == (1, 4, 4)
    assert torch.allclose(pixels[:, 0, 0, 0], labels * 2.0 - 1)


def test_turned_photographs_stand_upright(tmp_path):
    for label in COLORS:
        for number in range(3):
            path = tmp_path / "photos" / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (20, 10), COLORS[label])
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(path, exif=exif)
    result = opened(tmp_path / "photos")
    assert result.facts.inputs == (3, 20, 10)
    assert not any("resized" in note for note in result.facts.notes)


def test_an_unreadable_file_is_named(folder):
    (folder / "red" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"expected an image in .*broken\.png, but it could not be read"):
        opened(folder)


def test_a_truncated_file_is_named(folder):
    whole = (folder / "red" / "3.png").read_bytes()
    (folder / "red" / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"3\.png, but it could not be read"):
        opened(folder)


def test_other_files_are_passed_over_and_counted(folder):
    (folder / "red" / "readme.txt").write_text("x")
    (folder / "red" / ".hidden").write_text("x")
    assert any("1 files in pictures/ that are no images" in note for note in opened(folder).facts.notes)


def test_folders_that_do_not_fit(folder, tmp_path):
    with pytest.raises(ValueError, match=r"a sub-folder for each class in .*red, received none"):
        opened(folder / "red")
    draw(tmp_path / "lonely" / "red" / "one.png")
    with pytest.raises(ValueError, match=r"at least two classes .* received only 'red'"):
        opened(tmp_path / "lonely")
    (folder / "green").mkdir()
    with pytest.raises(ValueError, match=r"expected images in .*green, received none"):
        opened(folder)
    with pytest.raises(ValueError, match=r"loss over classes .* received MSELoss"):
        opened(folder, loss=nn.MSELoss())
    with pytest.raises(TypeError, match=r"valid: expected a folder of images"):
        opened(folder, (torch.ones(1), torch.ones(1)))


def test_the_encoder_goes_through_json_and_reads_new_files(folder):
    result = opened(folder, folder)
    encoder = ImageEncoder.from_dict(json.loads(json.dumps(result.encoder.to_dict())))
    assert encoder == result.encoder
    files = [folder / "blue" / "0.png", folder / "red" / "0.png"]
    assert torch.equal(encoder.encode(files), result.train.take(torch.tensor([0, 10]))[0])


def test_a_held_out_folder_without_images_is_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"expected images in sub-folders blue, red of .*other, received none"):
        opened(folder, tmp_path / "other")
