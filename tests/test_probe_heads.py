"""A probe as a head: the same answers from every kind of network, from the file, in `classify` and in heatmaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from convnets_torch.card import Card
from convnets_torch.embeddings.extraction import embed
from convnets_torch.embeddings.probe import LabelledVectors, LinearProbe, embed_classes, fit_probe, probe, with_probe
from convnets_torch.explain.gradcam import gradcam
from convnets_torch.heatmaps.api import heatmap
from convnets_torch.images.preprocessing import preset
from convnets_torch.inference.classification import classify
from convnets_torch.inference.prepare import prepare
from convnets_torch.networks import NETWORKS, inception
from convnets_torch.weights import load, save
from tests.reference.digits import write_digits

HIDDEN = {"widths": (8, 16, 32, 64, 64), "hidden": (24, 40)}
ARGUMENTS: dict = {
    "alexnet": ("alexnet", {"classes": 10, "widths": (12, 32, 48, 48, 32), "hidden": (24, 40)}, 40),
    "lite": ("efficientnet_lite0", {"classes": 10, "widths": (4, 2, 3, 5, 10, 14, 24, 40, 160)}, 160),
    "inception": ("inception_v3", {"classes": 10, "widths": tuple(width // 8 for width in inception.WIDTHS)}, 256),
    "resnet": ("resnet50", {"classes": 10, "widths": (8, 8, 16, 32, 64)}, 256),
    "vgg": ("vgg16", {"classes": 10, **HIDDEN}, 40),
    "without a head": ("vgg16", {"classes": None, "widths": HIDDEN["widths"]}, 64),
    "a head of its own": (
        "vgg16",
        {
            "classes": 4,
            "widths": HIDDEN["widths"],
            "head": (("max",), ("dense", 30), ("elu", 0.5), ("batch_norm", 1e-3), ("dense", 4), ("batch_norm", 1e-3)),
        },
        30,
    ),
}


def made(name):
    """A narrow network with random weights and a card."""
    network_name, arguments, _ = ARGUMENTS[name]
    torch.manual_seed(0)
    network = NETWORKS[network_name](**arguments).eval()
    classes = arguments["classes"]
    names = None if classes is None else tuple("abcdefghij"[:classes])
    network.card = Card(network_name, arguments, preset("vgg16"), names, "none" if classes == 4 else "softmax")
    return network


def any_probe(values, classes=3, kind="svm"):
    generator = np.random.default_rng(0)
    names = tuple("xyzuvw"[:classes])
    weight = generator.normal(size=(classes, values)) / values**0.5
    return LinearProbe(kind, names, weight, generator.normal(size=classes), 50)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_network_takes_a_probe_of_its_own_vectors(name, tmp_path):
    network, values = made(name), ARGUMENTS[name][2]
    linear = any_probe(values)
    images = torch.randn(2, 3, *network.size, generator=torch.Generator().manual_seed(1))
    wanted = linear.logits(embed(network, images).numpy())
    before = {key: array.clone() for key, array in network.state_dict().items()}
    card = network.card
    made_of = with_probe(network, linear, {"accuracy": 0.75})
    save(made_of, tmp_path / "mine.safetensors")
    for mine in (made_of, load(tmp_path / "mine.safetensors")):
        with torch.no_grad():
            np.testing.assert_allclose(mine(images).numpy(), wanted, rtol=1e-4, atol=1e-5)
        assert (mine.card.class_names, mine.card.activation, mine.card.classes) == (("x", "y", "z"), "softmax", 3)
        assert dict(mine.card.unknown["probe"]) == {"kind": "svm", "pictures": 50, "accuracy": 0.75}
        assert not mine.training
    assert network.card is card
    assert all(torch.equal(array, before[key]) for key, array in network.state_dict().items())


def test_what_does_not_fit_is_refused():
    network = made("vgg")
    with pytest.raises(ValueError, match=r"the new layer is \(3, 39\), but 3 classes of 40 values are wanted; fit it"):
        with_probe(network, any_probe(39))
    ready = prepare(network, device="cpu", precision="float32")
    with pytest.raises(ValueError, match="the network was prepared, which rounds"):
        with_probe(ready, any_probe(40))
    network.card = replace(network.card, arguments={**network.card.arguments, "widths": (8, 16, 32, 64, 65)})
    with pytest.raises(ValueError, match=r"not the vgg16 of its card: features.conv5_1.weight is"):
        with_probe(network, any_probe(40))
    network.card = None
    with pytest.raises(ValueError, match="the network has no card"):
        with_probe(network, any_probe(40))


def reference(labelled: LabelledVectors):
    """scikit-learn's own logistic regression of the vectors."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return pipeline.fit(labelled.vectors.astype(np.float64), labelled.labels)


@pytest.mark.slow
@pytest.mark.parametrize("digits", [(0, 1), (2, 4, 9)])
def test_digits_held_out_get_scikit_learns_probabilities_everywhere(lite_weights, tmp_path, digits):
    write_digits(tmp_path / "learn", digits, 14)
    held_out = write_digits(tmp_path / "ask", digits, 4, skip=14)
    network = load(lite_weights)
    labelled = embed_classes(network, tmp_path / "learn", cache=tmp_path / "cache")
    pipeline = reference(labelled)
    save(with_probe(network, fit_probe(labelled, "logistic")), tmp_path / "mine.safetensors")
    mine = load(tmp_path / "mine.safetensors")
    paths = [path for several in held_out.values() for path in several]
    vectors = np.stack([embed(network, path)[0].numpy() for path in paths]).astype(np.float64)
    wanted = pipeline.predict_proba(vectors)
    found = np.array(
        [
            [entry.probability for entry in sorted(entries, key=lambda entry: entry.class_id)]
            for entries in classify(mine, paths)
        ]
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for path, row in zip(paths[::3], wanted[::3], strict=True):
        with Image.open(path) as image:  # what the network classifies: the centre of it, in the network's own size
            image.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240)).save(
                tmp_path / "c.png"
            )
        for digit, chance in zip(digits, row, strict=True):
            cells = heatmap(mine, tmp_path / "c.png", digits.index(digit)).values
            assert cells.shape == (1, 1)
            assert abs(cells[0, 0] - chance) < 1e-4
    assert gradcam(mine, paths[0], 1).values.max() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
def test_on_cuda_vectors_and_answers_are_those_of_the_cpu(lite_weights, tmp_path):
    found = write_digits(tmp_path / "learn", (1, 8), 8)
    paths = [path for several in found.values() for path in several]
    answers, labelled = {}, {}
    for device in ("cpu", "cuda"):
        network = load(lite_weights, device=device)
        labelled[device] = embed_classes(network, tmp_path / "learn", cache=tmp_path / "cache")
        assert labelled[device].computed == 16  # a device has vectors of its own
        mine = with_probe(network, fit_probe(labelled[device], "logistic"))
        assert mine.get_parameter("head.fc.weight").device.type == device
        save(mine, tmp_path / f"{device}.safetensors")
        answers[device] = [entries[0].words for entries in classify(mine, paths)]
    largest = np.abs(labelled["cpu"].vectors).max()
    np.testing.assert_allclose(labelled["cuda"].vectors, labelled["cpu"].vectors, atol=5e-3 * largest)  # TF32
    assert answers["cuda"] == answers["cpu"]


@pytest.mark.slow
def test_five_digits_are_told_apart(lite_weights, tmp_path):
    write_digits(tmp_path / "digits", range(5), 100)
    found = probe(embed_classes(load(lite_weights), tmp_path / "digits", cache=tmp_path / "cache"))
    assert found.accuracies["logistic"].mean() >= 0.95
    assert found.accuracies["svm"].mean() >= 0.95
    for kind in ("knn", "svm", "logistic"):
        assert found.curve[5][kind].mean() < found.curve[80][kind].mean()
