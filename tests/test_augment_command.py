"""The command `augment`: its sheet shows the views that the library gives, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.cli.options import Changes
from convnets_torch.images.preprocessing import center_crop, preset
from convnets_torch.training.augmentation import Augmentation, Photo, augmentation, view, view_sheet
from tests.reference.pictures import picture

RULE = preset("efficientnet_lite0")
MARGIN, SIDE = 16, 224  # of a sheet


@pytest.fixture
def photographs_of_two(tmp_path):
    folder = tmp_path / "boot"
    folder.mkdir()
    paths = [folder / "one.png", folder / "two.png"]
    for number, path in enumerate(paths):
        Image.fromarray(picture(number, 150, 200)).save(path)
    return paths


def tile(page, column, top):
    left = MARGIN + column * (SIDE + MARGIN)
    return np.asarray(page)[top : top + SIDE, left : left + SIDE]


def pixels(tensor):
    return tensor.permute(1, 2, 0).numpy()


def top_of(page):
    """The first row of pixels below the title: the first tile is no white."""
    column = np.asarray(page.convert("L"))[:, MARGIN + 100]
    return int(np.flatnonzero(column[40:] < 250)[0]) + 40


def test_the_sheet_shows_what_is_classified_and_the_views_of_the_library(command, photographs_of_two, tmp_path):
    one, sheet = photographs_of_two[0], tmp_path / "sheet.png"
    code, out, error = command(
        "augment", one, "-o", sheet, "--strength", "strong", "--rotation", 45, "--no-flip", "--seed", 3, "--views", 3,
        "--json",
    )  # fmt: skip
    assert (code, error) == (0, "")
    record = json.loads(out)
    chosen = Augmentation.from_dict(record["augmentation"])
    assert chosen == augmentation("strong", rotation=45, flip=0)
    page, image = Image.open(sheet), Image.open(one)
    top = top_of(page)
    np.testing.assert_array_equal(tile(page, 0, top), center_crop(np.asarray(image), RULE))
    for number in range(3):
        np.testing.assert_array_equal(
            tile(page, number + 1, top), pixels(view(image, RULE, chosen, (3, number, 0), label="boot"))
        )


def test_a_class_is_its_folders_name(command, photographs_of_two, tmp_path):
    sheets = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    options = ["--views", 7, "--strength", "none", "--flip"]
    for sheet, named in zip(sheets, ([], ["--no-flip-class", "boot"], ["--no-flip-class", "shoe"]), strict=True):
        assert command("augment", photographs_of_two[0], "-o", sheet, *options, *named)[0] == 0
    flipped, kept, other = (np.asarray(Image.open(sheet)) for sheet in sheets)
    np.testing.assert_array_equal(flipped, other)
    assert (flipped != kept).any()
    page = Image.open(sheets[1])
    assert all((tile(page, column, top_of(page)) == tile(page, 0, top_of(page))).all() for column in range(8))


def test_a_card_says_how_pictures_are_cut(command, photographs_of_two, tmp_path, vgg):
    from convnets_torch import save

    save(vgg, tmp_path / "vgg.safetensors")
    code, _, _ = command(
        "augment", photographs_of_two[0], "-o", tmp_path / "x.png", "--weights", tmp_path / "vgg.safetensors",
        "--views", 1,
    )  # fmt: skip
    assert code == 0
    page, image = Image.open(tmp_path / "x.png"), Image.open(photographs_of_two[0])
    np.testing.assert_array_equal(tile(page, 0, top_of(page)), center_crop(np.asarray(image), preset("vgg16")))


def test_mixed_views_lie_between_the_views_of_two_pictures(photographs_of_two):
    photos = [Photo(Image.open(path), path.name) for path in photographs_of_two]
    plain = augmentation("light")
    page = view_sheet(photos, RULE, plain, views=2, mixing=("mixup", 1.0))
    for number in range(2):
        seen = [pixels(view(photo.image, RULE, plain, (0, number, n))) for n, photo in enumerate(photos)]
        mixed = tile(page, number + 1, MARGIN)
        assert (mixed >= np.minimum(*seen)).all()
        assert (mixed <= np.maximum(*seen)).all()
        assert any((mixed != each).any() for each in seen)
    covered = tile(view_sheet(photos, RULE, plain, views=1, mixing=("cutmix", 1.0)), 1, MARGIN)
    first, second = (pixels(view(photo.image, RULE, plain, (0, 0, n))) for n, photo in enumerate(photos))
    assert ((covered == first) | (covered == second)).all()


def test_what_makes_no_sheet_is_refused(command, photographs_of_two, tmp_path):
    one, two = photographs_of_two
    sheet = tmp_path / "x.png"
    for arguments, code, said in (
        ([one, "-o", tmp_path / "x.gif"], 2, ".png, .jpg, .jpeg, .webp"),
        ([one, "-o", sheet, "--mixup", 1], 2, "give two or more"),
        ([one, two, "-o", sheet, "--mixup", 1, "--cutmix", 1], 2, "exclude each other"),
        ([one, "-o", sheet, "--rotation", 181], 2, "equal to 180"),
        ([one, "-o", sheet, "--views", 400], 2, "more than 400 tiles"),
        ([one, "-o", one], 1, "would overwrite"),
        ([tmp_path / "none.png", "-o", sheet], 1, "none.png"),
        ([one, "-o", tmp_path / "none" / "x.png"], 1, "does not exist"),
        ([one, "-o", sheet, "--weights", tmp_path / "no.safetensors"], 1, "no.safetensors"),
    ):
        found, out, error = command("augment", *arguments)
        assert (found, out) == (code, "")
        assert said in " ".join(error.replace("│", " ").split())
    assert not sheet.exists()
    with pytest.raises(ValueError, match="1 pictures and 3 views are too few for a sheet"):
        view_sheet([Photo(Image.new("RGB", (9, 9)), "one")], RULE, Augmentation(), views=3, mixing=("mixup", 1.0))


def test_options_that_are_left_out_keep_the_strength():
    for strength in ("none", "light", "medium", "strong"):
        assert Changes().of(strength) == augmentation(strength)
    given: dict[str, Any] = {"scale": 2.0, "flip": True, "vertical_flip": True, "no_flip": ["b", "d", "b"], "tint": 0.0}
    assert Changes(**given).of("medium") == augmentation(
        "medium", scale=2.0, flip=0.5, vertical_flip=0.5, no_flip=("b", "d"), tint=0.0
    )


def test_a_sheet_leaves_torchs_generator_as_it_was(photographs_of_two):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    photos = [Photo(Image.open(path), path.name) for path in photographs_of_two]
    view_sheet(photos, RULE, augmentation("strong", randaugment=9), views=1, mixing=("cutmix", 1.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_of_the_same_name_are_told_apart_by_their_folders(command, tmp_path):
    paths = [tmp_path / folder / "1.png" for folder in ("boot", "shoe")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        Image.fromarray(picture(number, 60, 80)).save(path)
    sheet = tmp_path / "sheet.png"
    assert command("augment", *paths, "-o", sheet, "--strength", "none", "--views", 1)[0] == 0
    photos = [Photo(Image.open(path), f"{path.parent.name}/1.png") for path in paths]
    wanted = view_sheet(photos, RULE, augmentation("none"), views=1, title="none, seed 0")
    assert np.array_equal(np.asarray(Image.open(sheet)), np.asarray(wanted))
