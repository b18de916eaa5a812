"""JPEG files read at a fraction of their scale, or by torchcodec: what stays the same, and how near the rest is."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.images.decoding import UPRIGHT, Reading, decode, read_picture
from convnets_torch.images.preprocessing import center_crop, crop_image, general, least_size, preset
from convnets_torch.inference.pipeline import predict
from convnets_torch.inference.torchcodec import jpeg_decoder
from convnets_torch.weights import load
from tests.reference.pictures import picture
from tests.test_pipeline import small

RULE = general("torchvision", 112)  # resized to 128


@pytest.fixture
def large(photographs):
    """A photograph as JPEG of any size, quality and kind, with a rotation noted if wanted."""

    def saved(width, height, name="rocket.jpg", turn=1, **options):
        exif = Image.Exif()
        exif[0x0112] = turn
        file = io.BytesIO()
        with Image.open(photographs / name) as image:
            image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(
                file, "JPEG", **{"quality": 90, "exif": exif, **options}
            )
        file.seek(0)
        return file

    return saved


@pytest.mark.parametrize(
    ("size", "least", "reduced"),
    [
        ((2048, 1024), (256, 256), (512, 256)),
        ((2048, 1023), (256, 256), (1024, 512)),  # 1023 / 4 is less than 256
        ((2049, 1031), (256, 256), (513, 258)),
        ((2048, 2048), (256, 256), (256, 256)),
        ((4096, 4096), (256, 256), (512, 512)),  # never below an eighth
        ((511, 900), (256, 256), (511, 900)),
        ((1600, 400), (100, 800), (800, 200)),
    ],
)
def test_a_file_is_reduced_as_far_as_both_sides_stay_long_enough(size, least, reduced, large):
    found = decode(large(*size), Reading(least=least))
    assert found.image.size == reduced
    scale = round(size[0] / reduced[0])
    whole = size[0] % scale == size[1] % scale == 0
    assert found.part == (None if whole else (size[0] / scale, size[1] / scale))


def test_an_odd_picture_does_not_move(large):
    """Its last column of blocks is partly empty: resized as if it were full, all would shrink to the left."""
    file = large(2047, 1365, "motorcycle_left.png")
    wanted = center_crop(read_picture(file), RULE).astype(int)
    file.seek(0)
    found = decode(file, Reading(least=least_size(RULE)))
    assert found.image.size == (512, 342)
    right, wrong = (np.abs(crop_image(found.image, RULE, part) - wanted).mean() for part in (found.part, None))
    assert right < 1 < wrong


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("size", [(2048, 1024), (2046, 1023)])
def test_a_noted_rotation_is_followed(turn, size, large):
    """`least` is of the upright picture: long and low, so that a picture on its side is reduced less."""
    file = large(*size, turn=turn)
    wanted = read_picture(file)
    file.seek(0)
    found = decode(file, Reading(least=(256, 512)))
    if size == (2048, 1024):
        assert max(found.image.size) == (1024 if turn > 4 else 512)
    else:
        assert found.image.size == wanted.shape[1::-1]  # odd and turned: read whole
    rule = general("torchvision", (64, 128))
    near = crop_image(found.image, rule, found.part).astype(int) - center_crop(wanted, rule)
    assert np.abs(near).mean() < 1
    file.seek(0)
    lying = decode(file, Reading(exif=False, least=(256, 512))).image
    assert lying.width > lying.height


def test_other_files_and_other_kinds_of_jpeg(large, tmp_path):
    reading = Reading(least=(100, 100))
    assert decode(large(800, 800, progressive=True), reading).image.size == (100, 100)
    assert decode(large(800, 800, subsampling=0), reading).image.size == (100, 100)
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        Image.new(mode, (800, 800), 77 if mode == "L" else (10, 20, 30, 40)).save(file, "JPEG")
        image = decode(file_at_start(file), reading).image
        assert (image.size, image.mode) == ((100, 100), "RGB")
        np.testing.assert_allclose(np.asarray(image)[5, 5], read_picture(file_at_start(file))[5, 5], atol=1)
    Image.new("RGB", (800, 800)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", reading).image.size == (800, 800)
    two = [Image.new("RGB", (800, 800), color) for color in ("red", "blue")]
    two[0].save(tmp_path / "two.mpo", save_all=True, append_images=two[1:])
    found = decode(tmp_path / "two.mpo", reading)
    assert found.image.size == (100, 100)
    assert np.asarray(found.image)[0, 0, 0] > 250


def file_at_start(file):
    file.seek(0)
    return file


def test_limits_and_truncation_are_of_the_whole_file(large):
    file = large(1024, 1024)
    with pytest.raises(ValueError, match=r"1,048,576 pixels .* more than 1,000,000"):
        decode(file, Reading(max_pixels=1_000_000, least=(64, 64)))
    half = io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(OSError, match="truncated"):
        decode(half, Reading(least=(64, 64)))
    found = decode(file_at_start(half), Reading(allow_truncated=True, least=(64, 64)))
    assert found.image.size == (128, 128)
    assert "truncated" in found.notes[0]


def test_rules_that_keep_every_pixel_are_never_reduced():
    assert least_size(general("keras-caffe", 224)) is None  # nearest
    assert least_size(preset("vgg16", "original")) is None
    assert least_size(preset("alexnet", "original-aspect")) is None
    assert least_size(general("torchvision", (112, 224))) == (256, 512)
    assert least_size(general("keras-tf-aspect", 224)) == (512, 512)


def reads(monkeypatch):
    """What is read of the whole scale, and what of less: the sizes of images that are cropped."""
    sizes = []

    def noted(image, rule, part=None):
        sizes.append(image.size)
        return crop_image(image, rule, part)

    monkeypatch.setattr("convnets_torch.inference.pipeline.crop_image", noted)
    return sizes


@pytest.mark.parametrize(
    ("rule", "exact", "size"),
    [
        ("torchvision", False, (1024, 1024)),
        ("torchvision", True, (2048, 2048)),
        ("original", False, (2048, 2048)),
        ("keras-caffe", False, (2048, 2048)),
    ],
)
def test_predict_reduces_where_the_rule_allows_it(rule, exact, size, large, monkeypatch):
    sizes = reads(monkeypatch)
    file = large(2048, 2048)
    [row] = predict(small(rule=rule), file, exact=exact)
    assert row.error is None
    assert sizes == [size]


def test_the_answers_of_a_trained_network_hardly_change(lite_weights, photographs, tmp_path):
    """Within what docs/speed.md states: a third of a level, and 0.05 of probability."""
    network = load(lite_weights)
    paths = []
    for name in ("coffee.png", "rocket.jpg", "chelsea.png", "motorcycle_left.png", "astronaut.png"):
        paths.append(tmp_path / f"{name}.jpg")
        with Image.open(photographs / name) as image:
            scale = 2561 / max(image.size)
            sides = (round(image.width * scale), round(image.height * scale))
            image.convert("RGB").resize(sides, Image.Resampling.LANCZOS).save(paths[-1], quality=90)
    rule = network.card.preprocessing
    for path in paths:
        found = decode(path, Reading(least=least_size(rule)))
        assert 512 <= min(found.image.size) < 1281
        error = np.abs(crop_image(found.image, rule, found.part) - center_crop(read_picture(path), rule).astype(int))
        assert error.mean() < 1
    exact, near = (
        torch.stack([row.logits for row in predict(network, paths, exact=exact)]).softmax(1) for exact in (True, False)
    )
    assert torch.equal(exact.argmax(1), near.argmax(1))
    assert 0 < (exact - near).abs().max() < 0.05


@pytest.fixture(scope="module")
def torchcodec():
    pytest.importorskip("torchcodec", "0.16")
    return jpeg_decoder()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.filterwarnings("ignore:.*is turned or mirrored in its file")
def test_torchcodec_gives_the_same_pixels(subsampling, progressive, large, torchcodec):
    for turn in (1, 3, 6):
        file = large(641, 427, turn=turn, subsampling=subsampling, progressive=progressive)
        for exif in (True, False):
            found = decode(file_at_start(file), Reading(exif, jpeg=torchcodec))
            np.testing.assert_array_equal(np.asarray(found.image), read_picture(file_at_start(file), exif=exif))


def test_pillow_reads_what_torchcodec_does_not(large, torchcodec, tmp_path):
    Image.fromarray(picture(1, 30, 40)).save(tmp_path / "a.png")
    Image.fromarray(picture(1, 30, 40)).convert("CMYK").save(tmp_path / "b.jpg")
    Image.fromarray(picture(1, 30, 40)).convert("L").save(tmp_path / "c.jpg")
    for name in ("a.png", "b.jpg", "c.jpg"):
        image = decode(tmp_path / name, Reading(jpeg=torchcodec)).image
        np.testing.assert_array_equal(np.asarray(image), read_picture(tmp_path / name))
    whole = large(640, 427).getvalue()
    half = whole[: len(whole) // 2]
    with pytest.raises(OSError, match="truncated"):
        decode(io.BytesIO(half), Reading(jpeg=torchcodec))
    found = decode(io.BytesIO(half), Reading(allow_truncated=True, jpeg=torchcodec))
    np.testing.assert_array_equal(np.asarray(found.image), allowed(half))


def allowed(data):
    with pytest.warns(UserWarning, match="truncated"):
        return read_picture(io.BytesIO(data), allow_truncated=True)


def test_predict_by_torchcodec_is_exact(large, torchcodec, photographs):
    network = small(rule="torchvision")
    given = [large(1280, 801).getvalue(), Path(photographs / "chelsea.png").read_bytes()]
    rows = [
        list(predict(network, map(io.BytesIO, given), **options))
        for options in ({"decoder": "torchcodec"}, {"exact": True})
    ]
    for found, wanted in zip(*rows, strict=True):
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)


def test_a_missing_torchcodec_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match=r"pip install 'convnets-torch\[torchcodec\]'"):
        predict(small(), [], decoder="torchcodec")
