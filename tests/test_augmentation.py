"""Views of a picture: what they keep, what each switch does, and that a key fixes them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.images.preprocessing import center_crop, preset
from convnets_torch.training.augmentation import (
    AUGMENTATIONS,
    GREY,
    Augmentation,
    _randaugmented,
    augmentation,
    draw_changes,
    view,
)
from tests.reference.pictures import picture

RULES = {
    "bicubic": preset("efficientnet_lite0", size=64),
    "stretched": preset("vgg16", size=(48, 64)),
    "nearest": preset("vgg16", "keras-tf", size=64),
}
STREET = Image.fromarray(picture(1, 150, 200))
ALL = Augmentation(
    scale=2, crop=1, rotation=180, skew=45, flip=0.5, vertical_flip=0.5, tint=1, hue=180, blur=3, randaugment=30
)


def pixels(tensor):
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 900), (200, 150)])
def test_none_gives_the_pixels_that_classifying_takes(rule, size):
    image = STREET.resize(size)
    seen = view(image, rule, augmentation("none"), (0, 0))
    np.testing.assert_array_equal(pixels(seen), center_crop(np.asarray(image), rule))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_any_picture_becomes_the_input_of_the_network(rule):
    for size in ((1, 1), (3, 2), (1, 900), (900, 1), (200, 150)):
        for strength in (*AUGMENTATIONS.values(), ALL):
            seen = view(STREET.resize(size), rule, strength, (3, 4))
            assert (seen.shape, seen.dtype, seen.is_contiguous()) == ((3, *rule.shape), torch.uint8, True)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_no_corner_is_empty(rule):
    """A white picture stays white however it is turned, skewed and cut."""
    turned = Augmentation(scale=3, crop=1, rotation=180, skew=45)
    for size in ((200, 150), (30, 30), (5, 300)):
        for key in range(40):
            assert view(Image.new("RGB", size, "white"), rule, turned, (key,)).min() == 255


def test_a_key_gives_the_same_pixels_in_any_order_thread_and_process():
    keys = [(0, 0), (0, 1), (1, 0), (2**40, 7)]
    first = {key: view(STREET, RULES["bicubic"], ALL, key) for key in keys}
    for key in reversed(keys):
        torch.manual_seed(key[1] + 5)  # which decides nothing
        assert torch.equal(view(STREET, RULES["bicubic"], ALL, key), first[key])
    assert len({seen.numpy().tobytes() for seen in first.values()}) == len(keys)
    found = {}
    plain = augmentation("strong")

    def look(key):
        found[key] = view(STREET, RULES["bicubic"], plain, key)

    threads = [threading.Thread(target=look, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[key], view(STREET, RULES["bicubic"], plain, key)) for key in keys)


def test_torchs_generator_is_left_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    view(STREET, RULES["bicubic"], ALL, (1, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_switch_changes_nothing_but_what_it_stands_for():
    strong = draw_changes(augmentation("strong"), (0, 9))
    without = draw_changes(augmentation("strong", rotation=0, flip=0), (0, 9))
    assert without == strong._replace(rotation=0, mirrored=False)


def test_changes_stay_within_their_limits_and_reach_them():
    drawn = [draw_changes(ALL, (0, number)) for number in range(400)]
    for name, least, most in (
        ("rotation", -180, 180), ("hue", -180, 180), ("brightness", 0, 2), ("zoom", -1, 1), ("blur", 0, 3)
    ):  # fmt: skip
        values = np.array([getattr(changes, name) for changes in drawn])
        width = most - least
        assert least <= values.min() <= least + width / 20
        assert most - width / 20 <= values.max() <= most
    assert 0.4 < np.mean([changes.mirrored for changes in drawn]) < 0.6
    numbers = np.array([[*changes[:1], *changes[1], changes[2], *changes[3], *changes[4:11]] for changes in drawn])
    correlations = np.corrcoef(numbers.astype(float).T) - np.eye(numbers.shape[1])
    assert np.abs(correlations).max() < 5 / 400**0.5
    assert 0.4 < np.mean([changes.blur == 0 for changes in drawn]) < 0.6


def test_flips_are_mirrors_and_can_be_forbidden_for_a_class():
    always = Augmentation(flip=1, no_flip=("left shoe",))
    rule = RULES["bicubic"]
    straight = center_crop(np.asarray(STREET), rule)
    np.testing.assert_array_equal(pixels(view(STREET, rule, always, (0,))), straight[:, ::-1])
    np.testing.assert_array_equal(pixels(view(STREET, rule, always, (0,), label="boot")), straight[:, ::-1])
    np.testing.assert_array_equal(pixels(view(STREET, rule, always, (0,), label="left shoe")), straight)
    upside_down = Augmentation(vertical_flip=1, no_flip=("left shoe",))
    np.testing.assert_array_equal(pixels(view(STREET, rule, upside_down, (0,))), straight[::-1])
    np.testing.assert_array_equal(pixels(view(STREET, rule, upside_down, (0,), label="left shoe")), straight)


def test_objects_grow_and_shrink_by_no_more_than_the_scale():
    """A ramp of one level per pixel of the resized picture: its slope in a view is one over how much objects grow."""
    rule = preset("vgg16", "original-aspect", size=64)  # 73 pixels high before the crop
    ramp = np.broadcast_to(np.arange(219, dtype=np.uint8)[None, :, None], (219, 219, 3)).copy()
    slopes = []
    for key in range(200):
        row = pixels(view(Image.fromarray(ramp), rule, Augmentation(scale=2, crop=1), (key,)))[30, :, 0].astype(float)
        assert row[0] <= row[-1]
        slopes.append((row[60] - row[3]) / 57 / 3)
    assert min(slopes) + 0.01 >= 0.5
    assert min(slopes) < 0.52
    assert 1.11 < max(slopes) <= 73 / 64 + 0.01  # no wider than the picture


def test_a_piece_lies_anywhere_in_the_picture():
    rule = preset("vgg16", "original-aspect", size=64)
    ramp = np.broadcast_to(np.arange(219, dtype=np.uint8)[None, :, None], (219, 219, 3)).copy()
    lefts, centers = [], []
    for key in range(200):
        lefts.append(int(view(Image.fromarray(ramp), rule, Augmentation(crop=1), (key,))[0, 30, 0]))
        centers.append(int(view(Image.fromarray(ramp), rule, Augmentation(scale=2), (key,))[0, 30, 31:33].sum()) // 2)
    assert min(lefts) <= 2
    assert 24 <= max(lefts) <= 28  # the piece is 64 of 73 pixels wide: 192 of 219
    assert 107 <= min(centers) <= max(centers) <= 111


def test_a_turned_picture_is_turned_by_so_many_degrees():
    """The mean gradient of a ramp turns with the picture."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None] + 20, (200, 200, 3)).copy()
    rule = preset("vgg16", "original-aspect", size=64)
    for key in range(20):
        turned = Augmentation(rotation=10)
        values = pixels(view(Image.fromarray(ramp), rule, turned, (key,)))[:, :, 0].astype(float)
        middle = values[16:48, 16:48]
        angle = np.degrees(np.arctan2(np.diff(middle, axis=0).mean(), np.diff(middle, axis=1).mean()))
        assert angle == pytest.approx(draw_changes(turned, (key,)).rotation, abs=0.5)


def test_a_view_of_a_reduced_jpeg_covers_the_part_that_is_there():
    rule = RULES["bicubic"]
    padded = Image.new("RGB", (220, 160), "red")
    padded.paste(STREET)
    for strength in AUGMENTATIONS.values():
        seen = view(padded, rule, strength, (5,), part=(200.0, 150.0))
        difference = np.abs(seen.int().numpy() - view(STREET, rule, strength, (5,)).int().numpy())
        assert difference.mean() < 1


def test_json_brings_an_augmentation_back():
    for strength in (*AUGMENTATIONS.values(), ALL, Augmentation(no_flip=("b", "d"))):
        assert Augmentation.from_dict(json.loads(json.dumps(strength.to_dict()))) == strength
    with pytest.raises(ValueError, match="augmentation has no rotate; known: scale, crop"):
        Augmentation.from_dict({"rotate": 1})


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"rotation": 181}, "rotation 181; give a number from 0 to 180"),
        ({"flip": -0.1}, "flip -0.1"),
        ({"flip": True}, "flip True"),
        ({"scale": float("nan")}, "scale nan; give a number from 1 to 4"),
        ({"blur": "much"}, "blur 'much'"),
        ({"randaugment": 9.0}, "randaugment 9.0; give a whole number from 0 to 30"),
        ({"no_flip": "bd"}, "no_flip 'bd'; give a tuple of class names"),
        ({"mirror": 1}, "augmentation has no mirror; known"),
    ],
)
def test_what_cannot_be_is_refused(switches, message):
    with pytest.raises(ValueError, match=message):
        augmentation("light", **switches)


def test_unknown_strengths_classes_modes_and_keys_are_refused():
    with pytest.raises(ValueError, match="unknown augmentation 'heavy'; known: none, light, medium, strong"):
        augmentation("heavy")
    with pytest.raises(ValueError, match="no_flip names 'q', not among the classes \\(b, d\\)"):
        augmentation("light", no_flip=("b", "q")).check_classes(["b", "d"])
    with pytest.raises(ValueError, match="mode L; convert it to RGB"):
        view(STREET.convert("L"), RULES["bicubic"], AUGMENTATIONS["none"], (0,))
    with pytest.raises(ValueError, match=r"the key is \(0, -1\); give non-negative integers"):
        view(STREET, RULES["bicubic"], AUGMENTATIONS["none"], (0, -1))


@pytest.mark.slow
def test_torchvision_is_not_imported_where_nothing_is_changed():
    code = """
import sys
from PIL import Image
from convnets_torch.images.preprocessing import preset
from convnets_torch.training.augmentation import augmentation, view
view(Image.new("RGB", (9, 9)), preset("vgg16"), augmentation("none"), (0,))
assert "torchvision" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_randaugment_is_torchvisions_and_draws_nothing_from_the_global_generator(photographs):
    from torchvision.transforms.v2 import RandAugment

    image = Image.open(photographs / "chelsea.png").convert("RGB").resize((90, 60))
    for seed in range(20):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            wanted = RandAugment(2, 9, num_magnitude_bins=31, fill=GREY)(image)
        before = torch.get_rng_state()
        found = _randaugmented(image, 9, seed)
        assert torch.equal(torch.get_rng_state(), before)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
