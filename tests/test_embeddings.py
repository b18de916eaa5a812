"""Images as vectors: what layers give, against hooks by hand, formulas and real Keras 3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from convnets_torch.embeddings.extraction import Embedder, Pool, embed, embed_layers, pooled
from convnets_torch.explain.activations import record_activations
from convnets_torch.fcn.convolutional import Convolutional
from convnets_torch.inference.batching import MemoryWarning
from convnets_torch.inference.prepare import prepare
from convnets_torch.networks import (
    NETWORKS,
    AlexNet,
    efficientnet_lite0,
    inception_v3,
    resnet50,
    vgg16,
    vgg19,
)
from convnets_torch.weights import load
from tests.conftest import NARROW
from tests.reference.keras3_goldens import KERAS3


def images_of(network, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *getattr(network, "size", (224, 224)), generator=torch.Generator().manual_seed(1))


def last_dense(network: nn.Module) -> nn.Linear:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def read_by(module: nn.Module, network: nn.Module, images: Tensor) -> Tensor:
    """What a module reads, by a hook of PyTorch's own."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        network(images)
    handle.remove()
    return seen[0]


def test_by_default_it_is_what_the_last_dense_layer_reads(narrow):
    images = images_of(narrow)
    found = embed(narrow, images)
    assert torch.equal(found, read_by(last_dense(narrow), narrow, images))
    with torch.no_grad():  # and so what the design calls an embedding
        assert torch.equal(found, narrow.head[:-1](narrow.features(images)))


@pytest.mark.parametrize(
    ("build", "values"),
    [(AlexNet, 4096), (vgg16, 4096), (vgg19, 4096), (resnet50, 2048), (inception_v3, 2048), (efficientnet_lite0, 1280)],
)
def test_full_networks_give_as_many_values_as_their_papers_say(build, values):
    with torch.device("meta"):
        network = build().eval()
        assert Embedder(network)(torch.zeros(2, 3, *network.size)).shape == (2, values)


@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.vgg11])
def test_other_modules_give_theirs(build):
    """Some of whose layers overwrite what they read."""
    torch.manual_seed(0)
    network = build(weights=None).eval()
    images = images_of(network, 1)
    assert torch.equal(embed(network, images), read_by(last_dense(network), network, images))
    [conv, *_] = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    [after, *_] = [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
    found = embed_layers(network, images, [conv, after], pool="flatten")
    with torch.no_grad():
        assert torch.equal(found[conv], network.get_submodule(conv)(images).flatten(1))
    assert (found[conv] < 0).any()
    assert (found[after] >= 0).all()


def test_a_network_without_a_head_gives_its_pooled_map():
    for name, arguments in (("vgg16", {"widths": (8, 16, 32, 64, 64)}), ("resnet50", {"widths": (8, 8, 16, 32, 64)})):
        torch.manual_seed(0)
        network = NETWORKS[name](None, **arguments).eval()
        images = torch.randn(2, 3, 100, 140)  # of any size: no head asks for its own
        with torch.no_grad():
            wanted = network.features(images).mean((2, 3))
        torch.testing.assert_close(embed(network, images), wanted)
        with pytest.raises(ValueError, match="the network has no head"):
            Embedder(network, logits=True)


def test_pools_are_their_formulas():
    maps = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[0, 1] = 0
    cells = maps.numpy()
    wanted: dict[Pool, list] = {
        "avg": [[channel.sum() / 35 for channel in image] for image in cells],
        "max": [[channel.max() for channel in image] for image in cells],
        "gem": [[(np.maximum(channel, 1e-6) ** 3).mean() ** (1 / 3) for channel in image] for image in cells],
        "flatten": [[image[c, y, x] for c in range(4) for y in range(5) for x in range(7)] for image in cells],
    }
    for pool, values in wanted.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            found = pooled(maps.contiguous(memory_format=layout), pool)
            np.testing.assert_allclose(found.numpy(), values, rtol=1e-12, atol=1e-15)
        half = pooled(maps.bfloat16(), pool).float().numpy()
        np.testing.assert_allclose(half, values, rtol=0.01, atol=0.02)


def test_gem_of_a_channel_of_zeros_is_its_least_value():
    np.testing.assert_allclose(pooled(torch.zeros(1, 2, 3, 3), "gem"), [[1e-6, 1e-6]], rtol=1e-5)
    with pytest.raises(ValueError, match="unknown pool 'mean'"):
        pooled(torch.zeros(1, 2, 3, 3), "mean")  # type: ignore[arg-type]


def test_pools_concern_maps_alone(vgg):
    images = images_of(vgg)
    for pool in ("avg", "max", "flatten", "gem"):
        assert torch.equal(embed(vgg, images, "fc1", pool), embed(vgg, images, "head.relu_dense_1"))
        with record_activations(vgg, "pool5") as activations, torch.no_grad():
            vgg(images)
        torch.testing.assert_close(embed(vgg, images, "pool5", pool), pooled(activations["features.pool5"], pool))


def test_several_layers_in_one_pass_are_each_by_itself(vgg):
    images = images_of(vgg)
    names = ["fc2", "block2_conv1", "features.pool5", "pool5", "head.dense_3"]
    runs: list[int] = []
    handle = vgg.features.conv1_1.register_forward_hook(lambda *_: runs.append(1))
    found = embed_layers(vgg, images, names, pool="max", normalize=True)
    handle.remove()
    assert len(runs) == 1
    assert list(found) == names
    for name in names:
        assert torch.equal(found[name], embed(vgg, images, name, pool="max", normalize=True))
    assert list(embed_layers(vgg, images, ["fc1"])) == ["fc1"]


@pytest.mark.parametrize(
    ("layer", "last"),
    [("relu2_2", "features.relu2_2"), (["pool3", "block1_conv1"], "features.pool3"), (None, "head.dropout_2")],
)
def test_nothing_runs_beyond_the_deepest_layer_that_is_wanted(vgg, layer, last):
    leaves = [name for name, module in vgg.named_modules() if not list(module.children())]
    ran: list[str] = []
    handles = [
        vgg.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name in leaves
    ]
    (embed_layers if isinstance(layer, list) else embed)(vgg, images_of(vgg), layer)
    for handle in handles:
        handle.remove()
    beyond = ["head.dense_3"] if layer is None else []  # whose input is the vector: it is about to run
    assert ran == leaves[: leaves.index(last) + 1] + beyond


def test_the_last_dense_layer_itself_does_not_run_by_default(vgg):
    def refuse(*_: object) -> None:
        raise RuntimeError("it ran")

    handle = vgg.head.dense_3.register_forward_hook(refuse)
    try:
        embed(vgg, images_of(vgg))
        with pytest.raises(RuntimeError, match="it ran"):
            vgg(images_of(vgg))
    finally:
        handle.remove()


def test_logits_come_from_the_same_pass(narrow):
    images = images_of(narrow)
    embedder = Embedder(narrow, logits=True)
    with torch.no_grad():
        vectors, logits = embedder.split(embedder(images))
        assert torch.equal(logits, narrow(images))
    assert torch.equal(vectors[embedder.names[0]], embed(narrow, images))


def test_a_normalised_vector_has_length_one_and_zeros_stay(vgg):
    images = images_of(vgg)
    plain, found = embed(vgg, images), embed(vgg, images, normalize=True)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(found * plain.norm(dim=1, keepdim=True), plain)
    dark = Embedder(nn.Sequential(nn.ReLU(), nn.Flatten()).eval(), "0", normalize=True)
    assert torch.equal(dark(-torch.ones(1, 3, 4, 4)), torch.zeros(1, 3))


def test_a_prepared_network_gives_the_same(narrow):
    """Of activations, blocks and pools, which mean the same when normalisation has become part of a convolution."""
    images = images_of(narrow)
    kinds = ("relu", "out", "mixed", "pool", "dropout")
    layers = [name for name, _ in narrow.named_modules() if name.rpartition(".")[2].startswith(kinds)][::5]
    ready = prepare(narrow, device="cpu", precision="float32")
    half = prepare(narrow, device="cpu", precision="bfloat16")
    assert len(layers) > 2
    wanted = {**embed_layers(narrow, images, layers), "default": embed(narrow, images)}
    found = {**embed_layers(ready, images, layers), "default": embed(ready, images)}
    rounded = {**embed_layers(half, images, layers), "default": embed(half, images)}
    for layer, values in wanted.items():
        assert (found[layer] - values).abs().max() <= 1e-4 * values.abs().max()
        assert rounded[layer].dtype == torch.float32
        assert nn.functional.cosine_similarity(rounded[layer], values).min() > 0.98


def test_the_network_is_left_as_it_was_and_vectors_are_plain_tensors(vgg):
    vectors = embed_layers(vgg, images_of(vgg), ["pool5", "fc2"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vgg.modules())
    assert not vgg.training
    probe = nn.Linear(40, 3)
    probe(vectors["fc2"]).sum().backward()  # which a tensor of inference mode would refuse
    assert probe.weight.grad is not None
    assert all(parameter.grad is None for parameter in vgg.parameters())
    assert embed(vgg.double(), images_of(vgg)).dtype == torch.float64
    vgg.float()


def test_images_are_taken_in_smaller_batches_when_memory_runs_out(vgg):
    class Full(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 2:
                raise RuntimeError("CUDA out of memory")
            return images

    images = images_of(vgg, 5)
    wanted = embed_layers(vgg, images, ["pool5", "fc2"])
    features = vgg.features
    try:
        vgg.features = nn.Sequential(Full(), features).eval()
        with pytest.warns(MemoryWarning, match="for 5 at a time; going on with 2"):
            found = embed_layers(vgg, images, ["features.1.pool5", "fc2"])
    finally:
        vgg.features = features
    torch.testing.assert_close(list(found.values()), list(wanted.values()), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_had_is_one_sentence(vgg):
    images = images_of(vgg)
    wrong: list[tuple[dict, str]] = [
        ({"pool": "sum"}, "unknown pool 'sum'; known: avg, max, flatten, gem"),
        ({"layer": "relu5_*"}, "'relu5_\\*' matches 3 layers"),
        ({"layer": "fc9"}, "VGG has no layer 'fc9'"),
        ({"images": images[:0]}, "there are no images"),
        ({"images": []}, "there are no images"),
        ({"images": images[:, :, :64]}, r"images are \(64, 224\) pixels"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            embed(vgg, **({"images": images} | options))
    with pytest.raises(ValueError, match="no layer is named"):
        embed_layers(vgg, images, [])
    with pytest.raises(ValueError, match="Convolutional has no dense layer"):
        embed(Convolutional(vgg), images)
    transformer = torchvision.models.vit_b_32(weights=None).eval()
    with pytest.raises(ValueError, match=r"encoder\.ln gives \(50, 768\) for an image, neither a map"):
        embed(transformer, torch.zeros(1, 3, 224, 224), "encoder.ln")
    broken = NARROW["alexnet"]().eval()
    nn.init.constant_(broken.get_parameter("head.dense_2.bias"), float("nan"))
    with pytest.raises(ValueError, match=r"activations of input of head\.dense_3 are NaN or infinite"):
        embed(broken, images_of(broken))


DEFAULTS = {"vgg16": "fc2", "resnet50": "avg_pool", "inception_v3": "avg_pool"}  # Keras's layers before the last


@pytest.mark.parametrize("name", DEFAULTS)
def test_vectors_are_those_of_real_keras(name, keras3_layers, tmp_path):
    """Its layer before the last one; and what its GlobalAveragePooling2D and GlobalMaxPooling2D are of other layers."""
    from converters import convert

    golden = next(golden for golden in KERAS3[name] if golden.form == ".keras")
    convert(keras3_layers / golden.file, tmp_path / "out.safetensors", preprocessing=golden.preprocessing)
    network, outputs = load(tmp_path / "out.safetensors"), np.load(keras3_layers / f"{name}_layers.npz")
    images = torch.from_numpy(golden.inputs()[:1])

    def assert_same(found: Tensor, wanted: np.ndarray) -> None:
        assert np.abs(wanted).max() > 0
        assert np.abs(found.numpy() - wanted).max() <= 1e-3 * np.abs(wanted).max()  # of float32, through 94 layers

    assert_same(embed(network, images), outputs[DEFAULTS[name]])
    maps = [layer for layer in outputs.files if outputs[layer].ndim == 4 and outputs[layer].max() > 0]
    known = [layer for layer in maps if "pad" not in layer and "add" not in layer][::7]
    for layer, vectors in embed_layers(network, images, known).items():
        assert_same(vectors, outputs[layer].mean((2, 3)))
    for layer, vectors in embed_layers(network, images, known, "max").items():
        assert_same(vectors, outputs[layer].max((2, 3)))
