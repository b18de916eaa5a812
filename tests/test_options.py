"""Keywords that functions share: their TypedDicts agree with what holds them, and what is none is refused."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from PIL import Image

from convnets_torch.explain.channels import activation_grids
from convnets_torch.explain.gradcam import gradcam, gradcam_each, gradcam_targets
from convnets_torch.explain.page import explain
from convnets_torch.explain.patches import top_patches
from convnets_torch.explain.statistics import channel_statistics, zero_shares
from convnets_torch.heatmaps.api import class_map, contrast, heatmap, heatmap_targets, probability_map
from convnets_torch.heatmaps.many import heatmap_each
from convnets_torch.heatmaps.running import HeatmapKeywords, HeatmapOptions
from convnets_torch.images.decoding import PictureWarning, Reading, ReadingKeywords, open_upright, read_picture
from convnets_torch.images.sources import open_source
from convnets_torch.inference.classification import classify, classify_each
from convnets_torch.inference.pipeline import predict


def words(annotations) -> dict[str, str]:
    return {name: getattr(kind, "__forward_arg__", kind) for name, kind in annotations.items()}


def kinds(function) -> dict[str, str]:
    return words({name: each.annotation for name, each in inspect.signature(function).parameters.items()})


def test_the_keywords_are_the_fields():
    assert words(HeatmapKeywords.__annotations__) == kinds(HeatmapOptions)
    assert words(ReadingKeywords.__annotations__).items() <= kinds(Reading).items()


@pytest.mark.parametrize("function", [heatmap, heatmap_targets, contrast, class_map, probability_map, heatmap_each])
def test_functions_of_maps_show_their_keywords_with_their_defaults(function):
    shown = inspect.signature(function).parameters
    assert shown["max_memory"].default == "1GB"
    assert shown["cell_stride"].kind is inspect.Parameter.KEYWORD_ONLY
    assert ("fuse" in shown) == (function not in (class_map, probability_map))
    assert ("resume" in shown) == (function is not heatmap_each)
    assert "options" not in shown


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (gradcam, ()), (gradcam_targets, ([1],)), (gradcam_each, ()), (activation_grids, ()), (explain, ()),
        (top_patches, ("relu1_1",)), (channel_statistics, ("relu1_1",)), (zero_shares, ("relu1_1",)),
        (classify, ()), (classify_each, ()), (predict, ()),
        (read_picture, None), (open_source, None),
    ],
)  # fmt: skip
def test_what_only_the_library_asks_of_a_decoder_is_no_keyword(function, arguments, vgg):
    shown = inspect.signature(function).parameters
    assert [shown[name].default for name in ReadingKeywords.__annotations__] == [None, False, None, None]
    call = ("cat.jpg",) if arguments is None else (vgg, "cat.jpg", *arguments)
    with pytest.raises(TypeError, match=r"'least'; known: max_pixels, allow_truncated, depth, background"):
        function(*call, least=(100, 100))


def test_former_keywords_of_images_work_for_one_more_release(vgg):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 70, 3), np.uint8)
    with pytest.warns(DeprecationWarning, match=r"top_patches\(pictures=...\) is now images"):
        former = top_patches(vgg, pictures=[pixels], layer="relu1_1", channels=[0])  # type: ignore[call-arg]
    [[patch]] = former.patches
    assert patch.activation == top_patches(vgg, [pixels], "relu1_1", [0]).patches[0][0].activation


def test_former_keywords_of_images_still_work(vgg):
    with pytest.warns(DeprecationWarning, match=r"read_picture\(source=...\) is now image"):
        found = read_picture(source=Image.new("L", (2, 1), 77))  # type: ignore[call-arg]
    assert found.tolist() == [[[77] * 3] * 2]
    with pytest.warns(DeprecationWarning, match="is now") as caught:
        [row] = predict(vgg, pictures=Image.new("RGB", (9, 9)), look=lambda image: image.size)  # type: ignore[call-arg]
    assert {str(each.message).partition(";")[0] for each in caught} == {
        "predict(pictures=...) is now images", "predict(look=...) is now on_decode",
    }  # fmt: skip
    with pytest.warns(DeprecationWarning, match="`seen` is now `extra`"):
        assert row.seen == row.extra == (9, 9)
    with pytest.warns(DeprecationWarning, match="open_upright is now decode"):
        assert open_upright(Image.new("L", (2, 1)), Reading()).image.mode == "RGB"
    assert {each.filename for each in caught} == {__file__}


def test_warnings_of_a_picture_name_the_line_that_reads_it(tmp_path):
    Image.new("RGBA", (2, 2)).save(tmp_path / "glass.png")
    for read in (read_picture, open_source):
        with pytest.warns(PictureWarning, match="partly transparent") as caught:
            read(tmp_path / "glass.png")
        assert caught[0].filename == __file__


@pytest.mark.parametrize(("function", "name"), [(class_map, "scales"), (probability_map, "fuse"), (heatmap, "scale")])
def test_an_option_that_a_map_does_not_have_is_refused(function, name, vgg):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'; known: .*cell_stride"):
        function(vgg, "cat.jpg", *([1] if function is heatmap else []), **{name: None})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fuse", "sum", "unknown way to fuse scales 'sum'; known: mean, max"),
        ("scales", (0, 1), "give factors above 0"),
        ("longest_side", 0, "a longest side of 0 pixels is out of range"),
        ("max_memory", "1 horse", "is not an amount of memory"),
    ],
)
def test_values_out_of_range_are_refused_before_a_picture_is_opened(name, value, words, vgg):
    for function in (heatmap, heatmap_each):
        with pytest.raises(ValueError, match=words):
            function(vgg, "there is no such file.jpg", 1, **{name: value})
