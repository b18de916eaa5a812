"""Pictures resized, and JPEG files decoded, where the network is: asked for on the CPU, where it can be tested."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.images.decoding import Reading
from convnets_torch.images.preprocessing import preset
from convnets_torch.images.resizing import Resizer
from convnets_torch.inference import pipeline
from convnets_torch.inference.batching import MemoryWarning
from convnets_torch.inference.pipeline import Input, Inputs, predict
from convnets_torch.inference.torchcodec import batch_decoder
from convnets_torch.weights import load
from tests.test_device_pixels import DEVICES
from tests.test_pipeline import small
from tests.test_reduced import large as large

LITE = preset("efficientnet_lite0")
STRETCH = replace(preset("vgg16"), name="custom", exif=True, interpolation="bicubic")


def pixels_of(pictures, rule=LITE, device="cpu", **options: Any):
    """What the network would see, (N, height, width, 3), and what became of each picture."""
    reading = Reading(**{name: options.pop(name) for name in ("max_pixels", "allow_truncated") if name in options})
    made, found = Inputs(rule, torch.device(device), reading, **options), []
    for picture in pictures:
        try:
            found.append(made.decode(picture))
        except (OSError, ValueError) as error:
            found.append(Input(error=error))
    return found, made.to_device(found).cpu().int()


@pytest.fixture
def kinds(large, tmp_path, photographs):
    """Rotated, grey, high, wide and tiny pictures, and JPEG files that are reduced to end within a pixel."""
    given = [large(900, 601, turn=turn) for turn in range(1, 9)] + [large(900, 601)]
    given += [large(2047, 1365, "motorcycle_left.png"), large(1301, 2049, "chelsea.png"), large(1024, 1025)]
    for number, size in enumerate([(60, 300), (300, 60), (5, 7), (1, 1), (3000, 40)]):
        with Image.open(photographs / "coffee.png") as image:
            image.resize(size).save(tmp_path / f"{number}.png")
        given.append(io.BytesIO((tmp_path / f"{number}.png").read_bytes()))
    given += [np.arange(300 * 400, dtype=np.uint8).reshape(300, 400), torch.full((3, 280, 290), 77, dtype=torch.uint8)]
    return [picture if not hasattr(picture, "read") else picture.getvalue() for picture in given]


def opened(given):
    return [io.BytesIO(picture) if isinstance(picture, bytes) else picture for picture in given]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "rule",
    [LITE, preset("alexnet", "torchvision"), preset("vgg16", "keras-caffe-aspect", (96, 160)), STRETCH],
    ids=["lite", "torchvision", "oblong", "stretch"],
)
def test_inputs_are_pillows_to_the_bit(rule, device, kinds):
    _, wanted = pixels_of(opened(kinds), rule)
    found, pixels = pixels_of(opened(kinds), rule, device, on_device=True)
    assert sum(each.crop is not None for each in found) >= len(kinds) - 2  # long strips are Pillow's
    if device == "cpu":
        assert torch.equal(pixels, wanted)
    assert (pixels - wanted).abs().max() <= 1
    assert (pixels != wanted).double().mean() < 0.001


@pytest.mark.parametrize("rule", ["original", "original-aspect", "keras-caffe"])
def test_rules_that_keep_every_pixel_stay_with_pillow(rule, files):
    given = [*map(str, files)]
    _, wanted = pixels_of(given, preset("vgg16", rule))
    found, pixels = pixels_of(given, preset("vgg16", rule), on_device=True, torchcodec=False)
    assert all(each.crop is None for each in found)
    assert torch.equal(pixels, wanted)


def test_a_large_picture_is_resized_before_it_waits(photographs):
    with Image.open(photographs / "coffee.png") as image:
        found, _ = pixels_of([image.resize((4000, 3000)), image], on_device=True)
    assert [each.crop is None for each in found] == [True, False]
    assert found[0].pixels.shape == (224, 224, 3)


def test_only_what_the_crop_needs_is_sent(photographs):
    found, _ = pixels_of([photographs / "rocket.jpg"], on_device=True)  # 640 x 427
    assert found[0].pixels.shape[0] < 427 * 0.95
    assert found[0].pixels.shape[1] < 427 * 0.95


def test_pictures_of_one_size_go_together(files, monkeypatch):
    shapes = []

    class Noted(Resizer):
        def __call__(self, pictures, *cut):
            shapes.append(len(pictures))
            return super().__call__(pictures, *cut)

    monkeypatch.setattr(pipeline, "Resizer", Noted)
    given = [files[0], files[1], files[0], files[2], files[0]]
    together = pixels_of(given, on_device=True)[1]
    assert shapes == [3, 1, 1]
    alone = torch.cat([pixels_of([one], on_device=True)[1] for one in given])
    assert (together - alone).abs().max() <= 1


def test_fewer_are_resized_together_when_memory_runs_out(files, monkeypatch):
    class Full(Resizer):
        def __call__(self, pictures, *cut):
            if len(pictures) > 2:
                raise RuntimeError("CUDA out of memory")
            return super().__call__(pictures, *cut)

    wanted = pixels_of([files[0]] * 5, on_device=True)[1]
    monkeypatch.setattr(pipeline, "Resizer", Full)
    with pytest.warns(MemoryWarning, match="for 5 at a time; going on with 2"):
        found = pixels_of([files[0]] * 5, on_device=True)[1]
    assert (found - wanted).abs().max() <= 1


def test_predict_keeps_order_and_bad_files(files, tmp_path):
    network = small(rule="torchvision")
    (tmp_path / "text.jpg").write_text("no picture")
    given = [files[0], tmp_path / "none.jpg", files[1], files[0], tmp_path / "text.jpg"]
    each: list[dict[str, Any]] = [{}, {"decoder": "torchcodec"}]
    for options in each:
        if options:
            pytest.importorskip("torchcodec", "0.16")
        wanted = list(predict(network, given, **options))
        found = list(predict(network, given, batch=2, resize="device", **options))
        assert [row.picture for row in found] == given
        assert [str(row.error) for row in found] == [str(row.error) for row in wanted]
        for one, other in zip(found, wanted, strict=True):
            if one.error is None:
                torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-5)


def test_auto_is_pillow_on_the_cpu(files, monkeypatch):
    network = small(rule="torchvision")
    resized = []
    monkeypatch.setattr(Resizer, "__call__", lambda self, pictures, *cut: resized.append(cut))
    assert all(row.error is None for row in predict(network, files))
    assert not resized


def test_options_that_do_not_go_together():
    wrong: Any = "gpu"
    with pytest.raises(ValueError, match="unknown resize 'gpu'; known: auto, pillow, device"):
        predict(small(), [], resize=wrong)
    with pytest.raises(ValueError, match="exact resizes with Pillow"):
        predict(small(), [], exact=True, resize="device")


def test_a_trained_network_says_the_same(lite_weights, photographs):
    network = load(lite_weights)
    names = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
    given = [photographs / name for name in names]
    options: list[dict[str, Any]] = [{"resize": "pillow"}, {"resize": "device"}]
    pillow, device = (
        torch.stack([row.logits for row in predict(network, given, **each)]).softmax(1) for each in options
    )
    torch.testing.assert_close(device, pillow, rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=DEVICES)
def codec(request):
    """The name of a device on which torchcodec decodes."""
    pytest.importorskip("torchcodec", "0.16")
    batch_decoder(torch.device(request.param))
    return request.param


def test_torchcodec_decodes_whole_batches_there(codec, kinds):
    """On the CPU its pixels are Pillow's at the whole scale; nvJPEG's differ by some levels, most in the colours."""
    rule = LITE
    _, wanted = pixels_of(opened(kinds), rule, exact=True)
    found, pixels = pixels_of(opened(kinds), rule, codec, on_device=True, torchcodec=True)
    assert [each.jpeg is not None for each in found] == [True] * 12 + [False] * 7
    apart = (pixels - wanted).abs()
    assert apart.max() <= (1 if codec == "cpu" else 24)
    assert apart.double().mean() < (0.01 if codec == "cpu" else 2)


def test_what_it_refuses_is_pillows(codec, large):
    whole = large(640, 427).getvalue()
    broken = whole[:200] + b"\xff\xd9"  # an end, but no pixels
    half = whole[: len(whole) // 2]
    cmyk, grey = io.BytesIO(), io.BytesIO()
    Image.new("CMYK", (300, 300), (10, 20, 30, 40)).save(cmyk, "JPEG")
    Image.new("L", (300, 300), 77).save(grey, "JPEG")
    given = [whole, broken, half, cmyk.getvalue(), grey.getvalue(), b"", whole]
    _, wanted = pixels_of(opened([given[0], given[3], given[4], given[6]]), exact=True)
    found, pixels = pixels_of(opened(given), device=codec, on_device=True, torchcodec=True)
    assert [each.jpeg is not None for each in found] == [True, False, False, False, True, False, True]
    assert [None if each.error is None else type(each.error) for each in found] == [
        *(None, OSError, OSError, None, None, OSError, None),
    ]
    assert "truncated" in str(found[2].error)
    assert (pixels - wanted).double().abs().mean() < 2
    allowed, pixels = pixels_of(opened([half]), device=codec, on_device=True, torchcodec=True, allow_truncated=True)
    assert "truncated" in allowed[0].notes[0]
    assert len(pixels) == 1
    refused, _ = pixels_of(opened([whole]), device=codec, on_device=True, torchcodec=True, max_pixels=100)
    assert "more than 100" in str(refused[0].error)


def test_a_decoder_is_asked_again_for_those_that_it_did_not_refuse(codec, large):
    good, bad = large(64, 48).getvalue(), b"\xff\xd8\xff\xd9"
    found = batch_decoder(torch.device(codec))([good, bad, good, good, bad])
    assert [None if each is None else tuple(each.shape) for each in found] == [
        *((3, 48, 64), None, (3, 48, 64), (3, 48, 64), None),
    ]


def test_a_device_on_which_it_cannot_decode_is_named():
    pytest.importorskip("torchcodec", "0.16")
    with pytest.raises(ImportError, match=r"does not decode JPEG files on meta.*leave out the decoder"):
        batch_decoder(torch.device("meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("decoder", ["pillow", "torchcodec"])
def test_auto_on_cuda_gives_nearly_what_pillow_gives(decoder, lite_weights, photographs, files):
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec", "0.16")
    network = load(lite_weights).cuda()
    given = [*files, photographs / "rocket.jpg", photographs / "coffee.png"] * 3
    options: list[dict[str, Any]] = [{"exact": True}, {"batch": 4, "decoder": decoder}]
    wanted, found = (
        torch.stack([row.logits for row in predict(network, given, **each)]).softmax(1) for each in options
    )
    assert (wanted - found).abs().max() < 0.05


def test_fewer_are_decoded_together_when_memory_runs_out(codec, large, monkeypatch):
    decode = batch_decoder(torch.device(codec))
    given = [large(320, 240).getvalue()] * 4 + [b"\xff\xd8\xff\xd9"]
    _, wanted = pixels_of(opened(given[:4]), device=codec, on_device=True, torchcodec=True)

    def full(files):
        if len(files) > 2:
            raise RuntimeError("CUDA out of memory")
        return decode(files)

    monkeypatch.setattr(pipeline, "batch_decoder", lambda device: full)
    with pytest.warns(MemoryWarning, match="for 4 at a time; going on with 2"):
        found, pixels = pixels_of(opened(given), device=codec, on_device=True, torchcodec=True)
    assert [each.error is None for each in found] == [True] * 4 + [False]
    assert torch.equal(pixels, wanted)
