"""Vectors of any number of pictures: the rows of the pipeline, with what can go wrong in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.embeddings.extraction import Embedded, embed, embed_each, embed_layers
from convnets_torch.fcn.graph import features_graph, map_graph
from convnets_torch.fcn.memory import peak_bytes
from convnets_torch.images.decoding import PictureWarning, read_picture
from convnets_torch.images.preprocessing import preset
from convnets_torch.inference.classification import classify, probabilities, square_input
from convnets_torch.inference.pipeline import batch_for, predict
from convnets_torch.inference.prepare import prepare
from convnets_torch.networks import resnet50, vgg16
from convnets_torch.weights import load
from tests.reference.pictures import picture
from tests.test_pipeline import decoders, small


def stacked(rows):
    return torch.stack([row.vector for row in rows])


def test_rows_are_the_vectors_of_the_networks_own_inputs(files):
    network = small()
    inputs = torch.from_numpy(np.stack([square_input(read_picture(path), network.card) for path in files]))
    rows = list(embed_each(network, files, exact=True))
    assert [row.picture for row in rows] == files
    assert all(row.vector.dtype == torch.float32 and row.logits is None for row in rows)
    torch.testing.assert_close(stacked(rows), embed(network, inputs), rtol=1e-5, atol=1e-6)


def test_pictures_are_what_embed_takes_as_well(files):
    network = small()
    assert torch.equal(embed(network, files), stacked(embed_each(network, files)))
    assert torch.equal(embed(network, files[2])[0], embed(network, [files[2]])[0])
    several = embed_layers(network, files, ["pool_2", "head.relu_dense_1"], "gem", normalize=True)
    for name, vectors in several.items():
        assert torch.equal(vectors, embed(network, files, name, "gem", normalize=True))
    pixels = torch.from_numpy(picture(1, 300, 280)).permute(2, 0, 1)  # three axes: a picture, 0 to 255
    torch.testing.assert_close(embed(network, pixels), embed(network, picture(1, 300, 280)))


def test_one_pass_gives_vectors_and_the_logits_that_predict_gives(lite_weights, photographs):
    network = load(lite_weights)
    names = [photographs / name for name in ("rocket.jpg", "chelsea.png", "coffee.png")]
    runs: list[int] = []
    handle = network.features.register_forward_hook(lambda *_: runs.append(1))
    rows = list(embed_each(network, names, logits=True, exact=True))
    handle.remove()
    assert len(runs) == 1
    for row, predicted, [best] in zip(
        rows, predict(network, names, exact=True), classify(network, names, 1), strict=True
    ):
        assert torch.equal(row.logits, predicted.logits)
        chances = probabilities(row.logits[None], network.card)[0]
        assert (int(chances.argmax()), float(chances.max())) == (best.class_id, best.probability)
    assert torch.equal(stacked(rows), stacked(embed_each(network, names, exact=True)))


def test_vectors_tell_what_is_alike(lite_weights, photographs):
    """A photograph, its mirror image and a crop of it are nearer to each other than to another one."""
    network = load(lite_weights)
    cat, coffee = (read_picture(photographs / name) for name in ("chelsea.png", "coffee.png"))
    vectors = embed(network, [cat, cat[:, ::-1], cat[20:-20, 30:-30], coffee], normalize=True)
    likeness = vectors @ vectors.T
    assert likeness[0, 1:3].min() > 0.7 > 0.5 > likeness[:3, 3].max()


def test_batches_do_not_matter_and_a_run_gives_the_same_again(files):
    network = small("resnet50")
    first = stacked(embed_each(network, files))
    assert torch.equal(stacked(embed_each(network, files)), first)
    for batch in (1, 3):
        found = stacked(embed_each(network, files, batch=batch, workers=batch))
        torch.testing.assert_close(found, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "resnet50"])
def test_a_prepared_network_gives_the_same_rows(name, files):
    network = small(name)
    wanted = stacked(embed_each(network, files))
    found = stacked(embed_each(prepare(network, device="cpu", precision="float32"), files))
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_rows_of_bad_files_hold_nothing_and_embed_stops_at_the_first(files, tmp_path):
    given = [files[0], tmp_path / "none.jpg", files[1]]
    rows = list(embed_each(small(), given, ["relu_3", "head.relu_dense_2"], logits=True))
    assert [list(row.vectors) for row in rows] == [["relu_3", "head.relu_dense_2"], [], ["relu_3", "head.relu_dense_2"]]
    assert [row.logits is None for row in rows] == [False, True, False]
    with pytest.raises(FileNotFoundError, match=r"none\.jpg does not exist"):
        embed(small(), given)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (2, 2), "red")])
    with pytest.warns(PictureWarning, match="2 frames"):
        embed(small(), tmp_path / "a.gif")


def test_the_vector_is_that_of_the_only_layer():
    assert Embedded("a.jpg", {"fc1": torch.ones(3)}).vector.tolist() == [1, 1, 1]
    assert Embedded("a.jpg", None, OSError("gone")).vector is None
    with pytest.raises(ValueError, match=r"vectors of several layers \(fc1, fc2\)"):
        Embedded("a.jpg", {"fc1": torch.ones(3), "fc2": torch.ones(3)}).vector  # noqa: B018


def test_a_row_that_is_kept_holds_no_batch_and_may_be_changed(files):
    row = next(embed_each(small(), files, ["relu_3", "head.relu_dense_2"], logits=True))
    for values in (*row.vectors.values(), row.logits):
        assert values.untyped_storage().nbytes() == 4 * len(values)
        values.add_(1)


def test_a_network_without_a_head_goes_through_the_pipeline(files):
    torch.manual_seed(0)
    network = vgg16(None, widths=(8, 16, 32, 64, 64)).eval()
    network.card = Card("vgg16", {"classes": None, "widths": (8, 16, 32, 64, 64)}, preset("vgg16"), None)
    assert stacked(embed_each(network, files)).shape == (7, 64)
    assert stacked(embed_each(network, files, pool="flatten")).shape == (7, 64 * 7 * 7)


def test_memory_is_foretold_without_a_head_as_with_one():
    def peak(grid):
        return peak_bytes(grid, (1, 224, 224), torch.float32, 224)

    for build in (vgg16, resnet50):
        assert 0.9 <= peak(features_graph(build(None))) / peak(map_graph(build())) <= 1


def test_what_is_no_good_is_refused_before_the_first_picture(files):
    network = small()

    def pictures():
        raise AssertionError("a picture was asked for")
        yield

    wrong: list[tuple[dict, str]] = [
        ({"layer": "relu_9"}, "AlexNet has no layer 'relu_9'"),
        ({"pool": "sum"}, "unknown pool"),
        ({"batch": 0}, "batch must be a positive integer or 'auto', got 0"),
        ({"decoder": "cv2"}, "unknown decoder"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            embed_each(network, pictures(), **options)
    network.card = None
    with pytest.raises(ValueError, match="has no card"):
        embed_each(network, pictures())


def test_broken_weights_are_said_not_stored(files):
    network = small()
    torch.nn.init.constant_(network.get_parameter("head.dense_2.bias"), float("inf"))
    with pytest.raises(ValueError, match="NaN or infinite: weights are broken"):
        list(embed_each(network, files))
    assert not decoders()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_cuda_gives_the_same_in_order(precision, files):
    network = small("vgg16")
    wanted = stacked(embed_each(network, files * 5))
    ready = prepare(network, device="cuda", precision=precision)
    rows = list(embed_each(ready, files * 5, logits=True))
    assert [row.picture for row in rows] == files * 5
    assert stacked(rows).device.type == rows[0].logits.device.type == "cpu"
    scale = wanted.abs().max().item()
    torch.testing.assert_close(stacked(rows), wanted, rtol=3e-2, atol=3e-2 * scale)  # half precision
    assert embed(ready, torch.rand(2, 3, 224, 224)).device.type == "cuda"
    headless = vgg16(None, widths=(8, 16, 32, 64, 64)).eval().cuda()
    assert batch_for(headless) >= batch_for(small())


def test_who_looks_sees_each_picture_upright_before_it_is_cropped(files, tmp_path):
    turned = Image.new("RGB", (60, 40))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    given = [files[3], tmp_path / "none.jpg", tmp_path / "turned.jpg"]
    network = small()
    sizes = [row.seen for row in embed_each(network, given, exact=True, look=lambda image: (image.mode, image.size))]
    with Image.open(files[3]) as whole:
        assert sizes == [("RGB", whole.size), None, ("RGB", (40, 60) if network.card.preprocessing.exif else (60, 40))]
    assert [row.extra for row in predict(network, given[:1], on_decode=lambda image: image.mode)] == ["RGB"]
    assert [row.seen for row in embed_each(network, given[:1])] == [None]


def test_former_calls_work_with_a_warning(files):
    network = small()
    with pytest.warns(DeprecationWarning, match=r"embed\(\.\.\.\) of several layers is now embed_layers"):
        former: Any = embed(network, files[:2], ["relu_3", "pool_5"])  # type: ignore[arg-type]
    found = embed_layers(network, files[:2], ["relu_3", "pool_5"])
    assert list(former) == list(found)
    assert all(torch.equal(former[name], found[name]) for name in found)
    with pytest.warns(DeprecationWarning, match=r"embed_each\(pictures=\.\.\.\) is now images"):
        [row] = embed_each(network, pictures=files[0])  # type: ignore[call-arg]
    assert torch.equal(row.vector, embed(network, files[0])[0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_pixel'"):
        embed_each(network, files, max_pixel=9)  # type: ignore[call-arg]
