"""Released files, laid out by hand as deep-learning-models, keras-applications and TensorFlow's Keras wrote them.

No framework here can write them. The arrays are those of narrow goldens of real Keras on Theano, so what the files mean
is known: kernels for TensorFlow are theirs, rotated; the answers are the goldens'.
"""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest

from converters import convert
from convnets_torch.weights import load
from tests.reference.goldens import DATA
from tests.reference.theano_goldens import THEANO
from tests.test_formats import assert_answers

GOLDENS = {golden.file: golden for golden in THEANO}
WORDS = {  # of Keras 1 and 2, by the latter
    "kernel": "W", "bias": "b", "gamma": "gamma", "beta": "beta", "moving_mean": "running_mean",
    "moving_variance": "running_std",
}  # fmt: skip


def keras_1(layer, role):
    return f"{layer}_{WORDS[role]}"


def numbered(layer, role):
    return f"{layer}_{WORDS[role]}_1:0"


def plain(layer, role):
    return f"{layer}_{WORDS[role]}:0"


def scoped(layer, role):
    return f"{layer}/{layer}_{WORDS[role]}:0"


def keras_2(layer, role):
    return f"{layer}/{role}:0"


def role_of(name):
    last = name.rpartition("/")[2]
    return next(role for role, old in WORDS.items() if last in (role, old) or last.endswith((f"_{old}", f"_{role}")))


def rotated(kernel, order):
    return kernel[:, :, ::-1, ::-1] if order == "th" else kernel[::-1, ::-1]


def lay_out(source, path, naming, *, kernels, order="tf", chunks=1, rename=None, **attributes):
    """A golden's arrays under other names.

    Args:
        naming: (layer, role) -> name of an array.
        kernels: "tf" to rotate those of Theano, "th" to leave them.
        order: of the golden's kernels, "th" (out, in, h, w) or "tf" (h, w, in, out).
        chunks: into how many attributes the list of layers is split.
        rename: layer -> name in the file.
        attributes: of the root.
    """
    with h5py.File(DATA / source) as golden, h5py.File(path, "w") as file:
        layers = list(golden.attrs["layer_names"])
        names = [(rename or {}).get(layer, layer).encode() for layer in layers]
        if chunks == 1:
            file.attrs["layer_names"] = np.array(names)  # of fixed length, as h5py 2 wrote them
        else:
            for number, part in enumerate(np.array_split(np.array(names), chunks)):
                file.attrs[f"layer_names{number}"] = part
        for key, value in attributes.items():
            file.attrs[key] = np.bytes_(value)
        for layer, name in zip(layers, names, strict=True):
            group = file.create_group(name)
            weights = list(golden[layer].attrs["weight_names"])
            listed = []
            for weight in weights:
                *above, _ = weight.split("/")
                owner = above[-1] if above else name.decode()
                owner = (rename or {}).get(owner, owner)
                array = golden[layer][weight][()]
                if array.ndim == 4 and kernels == "tf":
                    array = rotated(array, order)
                listed.append(naming(owner, role_of(weight)))
                group[listed[-1]] = array
            group.attrs["weight_names"] = np.array([name.encode() for name in listed]) if listed else np.zeros(0)
    return path


# network, layout, golden, name of the file, how it is laid out, what `convert` must be told
RELEASED = [
    ("vgg16", "deep-learning-models, tf ordering, tf kernels: block1_conv1_W_1:0", "keras1/vgg16_tf.h5",
     "vgg16_weights_tf_dim_ordering_tf_kernels.h5", {"naming": numbered, "kernels": "tf"}, {}),
    ("vgg16", "deep-learning-models, th ordering, th kernels: block1_conv1_W", "keras1/vgg16_th.h5",
     "vgg16_weights_th_dim_ordering_th_kernels.h5", {"naming": keras_1, "kernels": "th", "order": "th"}, {}),
    ("vgg16", "deep-learning-models, th ordering, tf kernels", "keras1/vgg16_th.h5",
     "vgg16_weights_th_dim_ordering_tf_kernels.h5", {"naming": numbered, "kernels": "tf", "order": "th"}, {}),
    ("vgg16", "deep-learning-models, tf ordering, th kernels", "keras1/vgg16_tf.h5",
     "vgg16_weights_tf_dim_ordering_th_kernels.h5", {"naming": keras_1, "kernels": "th"}, {}),
    ("vgg16", "deep-learning-models, without the top", "keras1/vgg16_notop_th.h5",
     "vgg16_weights_th_dim_ordering_tf_kernels_notop.h5", {"naming": numbered, "kernels": "tf", "order": "th"}, {}),
    ("vgg16", "Keras 2.0.8 on TensorFlow: block1_conv1/kernel:0", "keras231/vgg16_last.h5", "weights.h5",
     {"naming": keras_2, "kernels": "tf", "keras_version": "2.0.8", "backend": "tensorflow"}, {}),
    ("vgg16", "tf.keras, the network nested in a model of one's own", "keras231/vgg16_nested_first.h5", "weights.h5",
     {"naming": keras_2, "kernels": "tf", "keras_version": "2.4.0", "backend": "tensorflow"},
     {"input_size": (96, 96)}),
    ("resnet50", "deep-learning-models, tf ordering: conv1/conv1_W:0, bn_conv1_running_std:0",
     "keras1/resnet50_tf.h5", "resnet50_weights_tf_dim_ordering_tf_kernels.h5", {"naming": scoped, "kernels": "tf"},
     {}),
    ("resnet50", "deep-learning-models: fc1000_W:0 without a scope", "keras1/resnet50_tf.h5", "weights.h5",
     {"naming": plain, "kernels": "tf"}, {}),
    ("resnet50", "deep-learning-models, th ordering, th kernels", "keras1/resnet50_th.h5",
     "resnet50_weights_th_dim_ordering_th_kernels.h5", {"naming": keras_1, "kernels": "th", "order": "th"}, {}),
    ("resnet50", "keras-applications 1.0.8, the new names, probs", "keras231/resnet50_new_names_last.h5",
     "resnet50_weights_tf_dim_ordering_tf_kernels.h5",
     {"naming": keras_2, "kernels": "tf", "keras_version": "2.2.4", "backend": "tensorflow"}, {}),
    ("inception_v3", "keras-applications, automatic names, the list of layers in three parts",
     "keras216/inception_v3_first.h5", "inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
     {"naming": keras_2, "kernels": "tf", "chunks": 3, "keras_version": "2.0.8", "backend": "tensorflow"}, {}),
    ("inception_v3", "keras-applications, automatic names that begin at 95", "keras216/inception_v3_first.h5",
     "weights.h5",
     {"naming": keras_2, "kernels": "tf", "rename": {f"{kind}_{number}": f"{kind}_{number + 94}" for number in
      range(1, 95) for kind in ("conv2d", "batch_normalization")}, "keras_version": "2.1.6", "backend": "tensorflow"},
     {}),
    ("inception_v3", "keras-applications, automatic names that begin without a number, as tf.keras has them",
     "keras216/inception_v3_first.h5", "weights.h5",
     {"naming": keras_2, "kernels": "tf", "rename": {f"{kind}_{number}": f"{kind}_{number - 1}".removesuffix("_0")
      for number in range(1, 95) for kind in ("conv2d", "batch_normalization")}, "keras_version": "2.4.0",
      "backend": "tensorflow"}, {}),
    ("vgg16", "names of convnets-keras, on TensorFlow: conv1_1_W:0", "keras1/vgg16.h5", "vgg16_weights.h5",
     {"naming": plain, "kernels": "tf", "order": "th"}, {}),
    ("vgg16", "names of convnets-keras, tf kernels", "keras1/vgg16.h5", "vgg16_weights_th_dim_ordering_tf_kernels.h5",
     {"naming": keras_1, "kernels": "tf", "order": "th"}, {}),
]  # fmt: skip
WHOLE = [
    ("vgg16", "tf.keras, a whole model", "keras231/vgg16_last_model.h5"),
    ("vgg16", "tf.keras, a whole model with the network nested", "keras231/vgg16_nested_last_model.h5"),
    ("inception_v3", "tf.keras, a whole model, axes as lists", "keras231/inception_v3_last_model.h5"),
]
CHECKPOINTS = [("vgg16", "tf_keras `.weights.h5`, _layer_checkpoint_dependencies", "keras305/vgg16.weights.h5")]

BY_HAND: list[tuple[str, str, str]] = [  # network, layout, test
    *((network, layout, "test_a_released_file_by_hand") for network, layout, *_ in RELEASED),
    *((network, layout, "test_a_whole_model_of_tf_keras_by_hand") for network, layout, _ in WHOLE),
    *((network, layout, "test_weights_of_tf_keras_by_hand") for network, layout, _ in CHECKPOINTS),
]


def assert_converts(path, golden, tmp_path, **options):
    if golden.top not in ("standard", "none"):
        options["preprocessing"] = golden.preprocessing
    elif golden.top == "standard":  # of a narrow network with 7 classes; those with 1000 are released ones
        options["preprocessing"] = golden.pixels
    report = convert(path, tmp_path / "out.safetensors", proof=True, **options)
    assert max(row.error for row in report.proof) < 1e-4
    assert_answers(load(tmp_path / "out.safetensors"), golden, DATA)
    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "layout", "source", "name", "how", "needs"), RELEASED, ids=[e[1] for e in RELEASED]
)
def test_a_released_file_by_hand(network, layout, source, name, how, needs, tmp_path):
    path = lay_out(source, tmp_path / name, **how)
    golden = GOLDENS[source]
    report = assert_converts(path, golden, tmp_path, **needs)
    assert report.card.network == network
    assert report.card.source.backend == {"tf": "tensorflow", "th": "theano"}[how["kernels"]]
    assert ("flipped" in {word for row in report.rows for word in row.change.split(", ")}) == (how["kernels"] == "th")


@pytest.mark.parametrize(("network", "layout", "source"), WHOLE, ids=[entry[1] for entry in WHOLE])
def test_a_whole_model_of_tf_keras_by_hand(network, layout, source, tmp_path):
    """Functional for Model, a list for the axis of a normalisation, :0 in names, kernels of TensorFlow."""
    path = tmp_path / "model.h5"
    shutil.copy(DATA / source, path)
    with h5py.File(path, "r+") as file:
        text = file.attrs["model_config"]
        text = text.replace('"class_name": "Model"', '"class_name": "Functional"').replace('"axis": 3', '"axis": [3]')
        file.attrs["model_config"] = json.dumps(json.loads(text))
        weights = file["model_weights"]
        for place in (file, weights):
            place.attrs["backend"], place.attrs["keras_version"] = np.bytes_("tensorflow"), np.bytes_("2.9.0")
        for layer in weights.values():
            names = list(layer.attrs["weight_names"])
            for name in names:
                array = layer[name][()]
                del layer[name]
                layer[f"{name}:0"] = rotated(array, "tf") if array.ndim == 4 else array
            layer.attrs["weight_names"] = np.array([f"{name}:0".encode() for name in names]) if names else np.zeros(0)
    report = assert_converts(path, GOLDENS[source], tmp_path)
    assert (report.card.network, report.card.source.framework) == (network, "Keras 2.9.0")
    assert "flipped" not in {word for row in report.rows for word in row.change.split(", ")}


@pytest.mark.parametrize(("network", "layout", "source"), CHECKPOINTS, ids=[entry[1] for entry in CHECKPOINTS])
def test_weights_of_tf_keras_by_hand(network, layout, source, tmp_path):
    from tests.reference.keras3_goldens import RECORDED

    path = tmp_path / "vgg16.weights.h5"
    shutil.copy(DATA / source, path)
    with h5py.File(path, "r+") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    golden = next(one for files in RECORDED.values() for one in files if one.file == source)
    assert assert_converts(path, golden, tmp_path).card.network == network
