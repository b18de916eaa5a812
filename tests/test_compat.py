"""The original's names: the same arrays, answers and lists as convnets-keras gave."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch import compat
from convnets_torch.wordnet import synsets
from tests.conftest import KERAS1, assert_agree
from tests.reference.pictures import picture

# What synset_to_dfs_ids("n04576211"), wheeled vehicle, of the original returns, as a multiset.
WHEELED_VEHICLE = """
670 870 880 444 671 565 705 428 791 561 757 829 866 847 547 820 408 573 575 803 407 436 468 511 609 627 656 661 751
817 665 555 569 717 864 867 675 734 656 586 847 802 660 603 612 690
"""


def original_batch(paths, img_size, crop_size, color_mode):
    """`preprocess_image_batch` of convnets-keras, line for line on Pillow's pixels."""
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        if img_size:
            image = image.resize((img_size[1], img_size[0]), Image.Resampling.BILINEAR)  # scipy.misc.imresize
        array = np.array(image).astype("float32")
        array[:, :, 0] -= 123.68
        array[:, :, 1] -= 116.779
        array[:, :, 2] -= 103.939
        if color_mode == "bgr":
            array[:, :, [0, 1, 2]] = array[:, :, [2, 1, 0]]
        array = array.transpose((2, 0, 1))
        if crop_size:
            array = array[
                :,
                (img_size[0] - crop_size[0]) // 2 : (img_size[0] + crop_size[0]) // 2,
                (img_size[1] - crop_size[1]) // 2 : (img_size[1] + crop_size[1]) // 2,
            ]
        images.append(array)
    return np.stack(images, axis=0)


@pytest.mark.parametrize("color_mode", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("img_size", "crop_size"),
    [((256, 256), (224, 224)), ((256, 256), (227, 227)), ((250, 301), (101, 200)), ((99, 60), None)],
)
def test_preprocessing_gives_the_arrays_of_the_original(img_size, crop_size, color_mode, photographs):
    paths = [photographs / "chelsea.png", photographs / "rocket.jpg"]
    found = compat.preprocess_image_batch(paths, img_size, crop_size, color_mode)
    np.testing.assert_array_equal(found, original_batch(paths, img_size, crop_size, color_mode))


def test_without_sizes_pictures_stay_as_they_are_and_must_agree(photographs):
    chelsea, rocket = photographs / "chelsea.png", photographs / "rocket.jpg"
    found = compat.preprocess_image_batch([chelsea, chelsea])
    np.testing.assert_array_equal(found, original_batch([chelsea, chelsea], None, None, "rgb"))
    with pytest.raises(ValueError, match="images in image_paths must have the same shapes"):
        compat.preprocess_image_batch([chelsea, rocket])


def test_out_takes_the_batch(photographs):
    batches: list = []
    assert compat.preprocess_image_batch([photographs / "chelsea.png"], (9, 8), out=batches) is None
    assert batches[0].shape == (1, 3, 9, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"color_mode": "hsv"}, "unknown color_mode 'hsv'; known: rgb, bgr"),
        ({"crop_size": (2, 2)}, "give an img_size that holds it"),
        ({"img_size": (4, 4), "crop_size": (2, 5)}, "give an img_size that holds it"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message, photographs):
    with pytest.raises(ValueError, match=message):
        compat.preprocess_image_batch([photographs / "chelsea.png"], **arguments)
    with pytest.raises(ValueError, match="give a list of paths"):
        compat.preprocess_image_batch("chelsea.png")


@pytest.mark.parametrize(("name", "ours"), [("alexnet", "alexnet"), ("vgg_16", "vgg16"), ("vgg_19", "vgg19")])
def test_a_convnet_from_h5_gives_the_softmax_of_the_original(name, ours, cache):
    golden = np.load(KERAS1 / f"{ours}.npz")
    mode = "rgb" if name == "alexnet" else "bgr"

    def batch(seeds, size):
        pixels = np.stack([picture(int(seed), *map(int, size)) for seed in seeds]).astype(np.float32)
        values = pixels - np.array([123.68, 116.779, 103.939], np.float32)
        return np.ascontiguousarray((values if mode == "rgb" else values[..., ::-1]).transpose(0, 3, 1, 2))

    model = compat.convnet(name, weights_path=KERAS1 / f"{ours}.h5")
    assert_agree(model.predict(batch(golden["seeds"], golden["size"])), golden["softmax"])
    heatmap = compat.convnet(name, KERAS1 / f"{ours}.h5", heatmap=True)
    with torch.inference_mode():
        cells = heatmap(torch.from_numpy(batch(golden["heatmap_seeds"], golden["heatmap_size"])))
    assert_agree(cells.numpy(), golden["heatmap"])


def test_an_h5_is_converted_once_and_again_when_it_changes(cache, tmp_path):
    path = tmp_path / "weights.h5"
    shutil.copy(KERAS1 / "vgg16.h5", path)
    compat.convnet("vgg_16", path)
    [first] = cache.iterdir()
    written = first.stat().st_mtime_ns
    compat.convnet("vgg_16", path)
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [written]
    shutil.copy(KERAS1 / "vgg19.h5", path)
    compat.convnet("vgg_19", path)
    assert len(list(cache.iterdir())) == 2


def test_safetensors_are_taken_too_and_another_network_is_refused(cache):
    compat.convnet("vgg_16", KERAS1 / "vgg16.h5")
    [converted] = cache.iterdir()
    assert compat.convnet("vgg_16", converted).network.card.network == "vgg16"
    with pytest.raises(ValueError, match="holds vgg16, not alexnet"):
        compat.convnet("alexnet", converted)
    with pytest.raises(ValueError, match="unknown network 'vgg16'; known: vgg_16, vgg_19, alexnet"):
        compat.convnet("vgg16")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        compat.convnet("vgg_16", Path("none.h5"))


def test_only_named_layers_stay_trainable(cache):
    model = compat.convnet("vgg_16", KERAS1 / "vgg16.h5", trainable=["dense_2", "dense_3"])
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert training == {f"network.head.dense_{n}.{role}" for n in (2, 3) for role in ("weight", "bias")}
    with pytest.raises(ValueError, match="unknown layers dense_4; with weights are conv1_1, "):
        compat.convnet("vgg_16", KERAS1 / "vgg16.h5", trainable=["dense_4"])


def test_wheeled_vehicles_are_listed_as_the_original_lists_them():
    assert Counter(compat.synset_to_dfs_ids("n04576211")) == Counter(map(int, WHEELED_VEHICLE.split()))


def test_for_every_synset_a_class_is_listed_once_for_each_path():
    """Paths counted from the classes up: the paths to a synset are those to its children, summed."""
    table = Path(synsets.__file__).parent / "data" / "synsets.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    parents = {row[0]: row[2].split() for row in rows}
    paths: dict[str, Counter] = {wnid: Counter() for wnid in parents}
    for wnid, class_id, *_ in rows:
        if class_id:
            above = Counter({wnid: 1})  # synset -> number of paths from it to this class
            level = Counter(above)
            while level:
                level = sum((Counter({up: n for up in parents[each]}) for each, n in level.items()), Counter())
                above += level
            for each, n in above.items():
                paths[each][int(class_id)] = n
    assert len(paths) == 1860
    for wnid, expected in paths.items():
        assert Counter(compat.synset_to_dfs_ids(wnid)) == expected


def test_ids_wnids_and_words():
    assert compat.id_to_synset(243) == "n02108422"
    assert compat.id_to_words(673) == "mouse, computer mouse"
    assert compat.synset_to_id("n03793489") == 673
    assert compat.synset_to_id("n02084071") is None  # dog is no class
    assert all(compat.synset_to_id(compat.id_to_synset(class_id)) == class_id for class_id in range(1000))


def test_pprint_output_prints_per_cent_and_words(capsys):
    out = np.zeros(1000)
    out[[243, 673, 0]] = 0.5, 0.3, 0.1234
    compat.pprint_output(out, n_max_synsets=3)
    assert (
        capsys.readouterr().out == "50.00 : bull mastiff\n30.00 : mouse, computer mouse\n12.34 : tench, Tinca tinca\n"
    )
    compat.pprint_output(out)
    assert len(capsys.readouterr().out.splitlines()) == 10
