"""Grad-CAM of pictures: where its cells lie, what it writes, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from convnets_torch.explain.gradcam import CamWarning, Score, cams, gradcam, gradcam_each, gradcam_targets
from convnets_torch.explain.gradcam_maps import _photograph, _scaled, cam_cells, save_cams
from convnets_torch.explain.layer_names import last_convolution
from convnets_torch.heatmaps.maps import Box
from convnets_torch.images.preprocessing import center_crop, cropped_box, general, preset
from convnets_torch.inference.classification import classify, square_input
from convnets_torch.networks import Network
from convnets_torch.weights import load
from convnets_torch.wordnet.synsets import class_ids
from tests.reference.pictures import picture


@pytest.fixture(scope="module")
def network(weights) -> Network:
    return load(weights)


@pytest.mark.parametrize("rule", [preset("alexnet"), general("torchvision", (112, 224)), general("unit", 64)])
@pytest.mark.parametrize("size", [(240, 300), (300, 151)])
def test_the_cropped_box_is_what_the_network_sees(rule, size):
    """A ramp of colours that is cropped shows its own place."""
    across, down = np.meshgrid(np.linspace(0, 255, size[1]), np.linspace(0, 255, size[0]))
    pixels = np.stack([across, down, across], axis=2).round().astype(np.uint8)
    seen = center_crop(pixels, rule).astype(float)
    left, top, right, bottom = cropped_box(size, rule)
    for values, begin, end, side in (
        (seen[..., 0].mean(0), left, right, size[1]),
        (seen[..., 1].mean(1), top, bottom, size[0]),
    ):
        places = begin + (np.arange(len(values)) + 0.5) * (end - begin) / len(values) - 0.5
        np.testing.assert_allclose(values[2:-2], (places * 255 / (side - 1))[2:-2], atol=2.5)


def test_the_maps_are_those_of_the_tensors(network, street):
    card = network.card
    inputs = torch.from_numpy(square_input(np.asarray(Image.open(street)), card))[None]
    dogs, cats = tuple(class_ids("dog")), tuple(class_ids("cat"))
    raw = cams(network, inputs, [Score(dogs, cats), Score((281,), cats)], method="hirescam")[:, 0].numpy()
    targets: list[str | int] = ["dog", 281]
    found = gradcam_targets(network, street, targets, against="cat", method="hirescam")
    for each, values in zip(found, raw, strict=True):
        np.testing.assert_allclose(each.values * each.raw_maximum, values, rtol=1e-4, atol=1e-9)
        assert each.values.max() == 1
        assert each.values.dtype == np.float32
    assert found[0].label == f"{found[0].target.label} rather than {found[0].against.label}"
    [every] = classify(network, street, top=1000)
    chances = {entry.class_id: entry.probability for entry in every}
    assert found[0].probability == pytest.approx(sum(chances[each] for each in dogs), rel=1e-4)


def test_without_a_target_it_explains_the_answer(network, street):
    [[best]] = classify(network, street, top=1)
    found = gradcam(network, street)
    assert found.target.class_ids == (best.class_id,)
    assert found.probability == pytest.approx(best.probability, rel=1e-4)


def test_alexnets_cells_begin_where_valid_convolutions_put_them(network):
    layer = last_convolution(network)
    cells = cam_cells(network, layer, (13, 13), network.card, (256, 512))
    # 227 pixels out of 256, stretched: two for one horizontally. Valid convolutions by 4 and pools by 2 twice: the
    # first cell's centre is 5.5 + 4 + 8 pixels from the border, where even cells would begin with 8.7.
    np.testing.assert_allclose(cells.centres(0)[:2], [14 + 17.5, 14 + 33.5])
    np.testing.assert_allclose(cells.centres(1)[:2], [2 * (14 + 17.5), 2 * (14 + 33.5)])
    even = cam_cells(network, "head.flatten", (1, 4), network.card, (256, 256))
    np.testing.assert_allclose(even.centres(1), 14 + 227 * np.array([0.125, 0.375, 0.625, 0.875]))
    values = np.random.default_rng(0).random((13, 13)).astype(np.float32)
    whole = cells.resample(values)
    assert whole.shape == (256, 512)
    assert not whole[:14].any()
    assert not whole[:, -30:].any()
    row, column = 14 + 17.5 + 16 * 3, 2 * (14 + 17.5 + 16 * 5)  # a cell's centre, between pixels
    near = whole[int(row - 0.5) : int(row + 1), int(column - 0.5) : int(column + 1)]
    assert near.mean() == pytest.approx(values[3, 5], abs=0.05)
    seen = torch.from_numpy(cells.resample_seen(values))
    inner = F.interpolate(torch.from_numpy(values)[None, None], size=(13 * 16, 13 * 16), mode="bilinear")[0, 0]
    torch.testing.assert_close(seen[10:218, 10:218][8:-8, 8:-8], _shifted(inner)[8:-8, 8:-8], atol=0.05, rtol=0)


def _shifted(values):
    """From a grid whose first centre is at 8 pixels to one with 7.5 after ten more: half a pixel."""
    return (values + torch.roll(values, (-1, -1), (0, 1))) / 2


def test_boxes_of_cells_tile_what_was_seen(network):
    cells = cam_cells(network, last_convolution(network), (13, 13), network.card, (240, 300))
    boxes = cells.boxes()
    assert boxes.shape == (13, 13, 4)
    np.testing.assert_allclose(boxes[0, 0, :2], cells.part[:2])
    np.testing.assert_allclose(boxes[-1, -1, 2:], cells.part[2:])
    np.testing.assert_allclose(boxes[:, 1:, 0], boxes[:, :-1, 2])
    np.testing.assert_allclose(boxes[1:, :, 1], boxes[:-1, :, 3])


def test_each_picture_of_a_batch_gets_its_own_map(network, street):
    pictures = [street, picture(2, 300, 200), picture(5, 260, 260)]
    found = [entry.maps[0] for entry in gradcam_each(network, pictures, "dog", method="layercam")]
    for each, one in zip(found, pictures, strict=True):
        alone = gradcam(network, one, "dog", method="layercam")
        np.testing.assert_allclose(
            each.raw_maximum * each.values, alone.raw_maximum * alone.values, rtol=1e-3, atol=1e-6
        )
        assert each.raw_maximum == pytest.approx(alone.raw_maximum, rel=1e-3)
    assert not np.allclose(found[0].values, found[1].values, atol=0.1)


def test_targets_that_cannot_be_weighed_get_a_sentence(network, street):
    with pytest.raises(ValueError, match="are the same classes"):
        gradcam(network, street, "dog", against="dog")
    with pytest.raises(ValueError, match="there is no target; name one"):
        gradcam_each(network, [street], against="dog")
    with pytest.raises(ValueError, match="outside 0 to 999"):
        gradcam(network, street, 1000)
    with pytest.raises(ValueError, match="not a map"):
        gradcam(network, street, 1, layer="head.flatten")


def test_a_map_of_zeros_is_zero_with_a_warning(weights, street):
    changed = load(weights, mapped=False)
    with torch.no_grad():
        list(changed.head.parameters())[-2][7] = 0  # of the last layer
    with pytest.warns(CamWarning, match=r"street.png: .*no cell supports it"):
        found = gradcam(changed, street, 7)
    assert not found.values.any()
    assert found.raw_maximum == 0
    assert found.regions() == []


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "json", "npz", "npy"])
def test_what_is_written_holds_the_map(ending, network, street, tmp_path):
    maps = gradcam_targets(network, street, ["dog", "cat"])
    path = tmp_path / f"map.{ending}"
    maps[0].save(path)
    several = tmp_path / f"maps.{ending}"
    save_cams(maps, several)
    if ending == "json":
        read = json.loads(path.read_text())
        np.testing.assert_allclose(read["values"], maps[0].values, atol=1e-6)
        assert read["target"]["wnid"] == "n02084071"
        assert read["cells"]["seen"] == maps[0].cells.part._asdict()
        assert len(json.loads(several.read_text())) == 2
    elif ending in ("npz", "npy"):
        read = np.load(path)["values"] if ending == "npz" else np.load(path)
        np.testing.assert_array_equal(read, maps[0].values)
        read = np.load(several)["values"] if ending == "npz" else np.load(several)
        np.testing.assert_array_equal(read[1], maps[1].values)
    else:
        with Image.open(path) as one, Image.open(several) as two:
            assert one.width == two.width == 1328
            assert two.height > 1.5 * one.height
    with pytest.raises(ValueError, match="unknown ending"):
        maps[0].save(tmp_path / "map.gif")


def test_the_picture_glows_where_the_map_is_high(network, tmp_path):
    found = gradcam(network, picture(1, 400, 400), "dog")
    found.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        page = np.asarray(image.convert("RGB")).astype(int)
    plain, drawn = page[16 : 16 + 640, 16:656], page[16 : 16 + 640, 672:1312]
    x, y = (min(639, int(place * 1.6)) for place in found.peak_pixel)
    assert np.abs(drawn[y, x] - (0.28 * plain[y, x] + 0.72 * np.array([252, 255, 164]))).max() < 12
    low = np.unravel_index(found.values.argmin(), found.values.shape)
    left, top, right, bottom = (found.cells.boxes()[low] * 1.6).astype(int)
    if found.values[low] == 0:
        middle = ((top + bottom) // 2, (left + right) // 2)
        assert np.abs(drawn[middle] - plain[middle]).max() < 40
    assert np.abs(drawn[:5] - plain[:5]).max() <= 1  # beyond what was seen


def test_the_command_writes_a_folder_and_goes_on_after_a_bad_file(weights, street, tmp_path, command):
    (tmp_path / "bad.jpg").write_text("no picture")
    out, report = tmp_path / "out", tmp_path / "report"
    code, printed, said = command(
        "gradcam", weights, street, tmp_path / "bad.jpg", "--target", "dog", "--target", "cat", "-o", out,
        "--report", report,
    )  # fmt: skip
    assert code == 1
    assert len(printed.splitlines()) == 2
    assert "bad.jpg" in said
    assert "2 pictures, 1 of which failed" in said
    assert [path.name for path in out.iterdir()] == ["street.png.png"]
    written = json.loads((report / "report.json").read_text())
    assert written["summary"]["maps"] == 2
    assert len(written["images"][0]["maps"][0]["deletion"]) == 51
    assert "error" in written["images"][1]


def test_the_command_takes_the_most_probable_class_and_prints_json(weights, street, command):
    [[best]] = classify(load(weights), street, top=1)
    code, printed, said = command("gradcam", weights, street, "--json", "--layer", "conv_3", "--method", "layercam")
    assert code == 0
    assert f"the most probable class is {best.words}" in said
    [found] = json.loads(printed)["maps"]
    assert (found["layer"], found["method"]) == ("features.conv_3", "layercam")
    assert found["target"]["class_ids"] == [best.class_id]


def test_misuse_of_the_command(weights, street, tmp_path, command):
    assert command("gradcam", weights, street)[0] == 2
    assert command("gradcam", weights, street, "--json", "--against", "dog")[0] == 2
    code, _, said = command("gradcam", weights, street, "-o", tmp_path / "map.html")
    assert (code, "can be written as .png" in said) == (1, True)
    (tmp_path / "report.txt").write_text("a file")
    code, _, said = command("gradcam", weights, street, "--json", "--report", tmp_path / "report.txt")
    assert (code, "is not a folder; name one for the report" in said) == (1, True)
    code, _, said = command("gradcam", weights, street, "--json", "--layer", "relu5")
    assert (code, "did you mean" in said) == (1, True)


def test_what_the_network_did_not_see_is_faded_at_any_size(network):
    found = gradcam(network, np.zeros((300, 500, 3), np.uint8), "dog", method="layercam")
    left, top, right, bottom = found.grid.part
    cut = replace(found.grid, part=Box(left + 40, top + 3, right, bottom - 9))
    for each, factor in ((replace(found, grid=cut), 1.0), (_scaled(replace(found, grid=cut)), 640 / 500)):
        clear = (np.asarray(_photograph(each)) == 0).all(axis=2)
        rows, columns = np.flatnonzero(clear.any(axis=1)), np.flatnonzero(clear.any(axis=0))
        ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(ends, np.array(cut.part) * factor, atol=1.01)
