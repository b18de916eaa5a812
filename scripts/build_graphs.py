"""Write converters/data/graphs.json.xz: the graphs of Keras Applications, as real Keras of each release builds them,
and those of convnets-keras.

    KERAS_BACKEND=torch python scripts/build_graphs.py dump FOLDER    # the Keras of this environment, into FOLDER
    python scripts/build_graphs.py pack FOLDER                        # all dumps of FOLDER into the data file
    KERAS_BACKEND=torch python scripts/build_graphs.py check          # whether the data file has what this Keras builds

`dump` needs nothing but Keras and runs in any environment with one; CONTRIBUTING.md lists those of the data file.
Nothing is downloaded: where `weights="imagenet"` changes the graph, the loading of the weights is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import lzma
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

Graph = dict[str, Any]

HERE = Path(__file__).resolve().parent
NETWORKS = {  # name -> default size, preset of the released weights, None if none does the same
    "VGG16": (224, "keras-caffe"), "VGG19": (224, "keras-caffe"),
    "ResNet50": (224, "keras-caffe"), "ResNet101": (224, "keras-caffe"), "ResNet152": (224, "keras-caffe"),
    "ResNet50V2": (224, "keras-tf"), "ResNet101V2": (224, "keras-tf"), "ResNet152V2": (224, "keras-tf"),
    "InceptionV3": (299, "keras-tf"), "InceptionResNetV2": (299, "keras-tf"), "Xception": (299, "keras-tf"),
    "MobileNet": (224, "keras-tf"), "MobileNetV2": (224, "keras-tf"),
    "MobileNetV3Small": (224, "keras-tf"), "MobileNetV3Large": (224, "keras-tf"),
    "DenseNet121": (224, "torchvision"), "DenseNet169": (224, "torchvision"), "DenseNet201": (224, "torchvision"),
    "NASNetMobile": (224, "keras-tf"), "NASNetLarge": (331, "keras-tf"),
    **{f"EfficientNetB{number}": (size, "torchvision") for number, size in enumerate(
        (224, 240, 260, 300, 380, 456, 528, 600))},
    **{f"EfficientNetV2{name}": (size, "torchvision") for name, size in zip(
        ("B0", "B1", "B2", "B3"), (224, 240, 260, 300), strict=True)},
    **{f"EfficientNetV2{name}": (size, None) for name, size in zip("SML", (384, 480, 480), strict=True)},
    **{f"ConvNeXt{name}": (224, "torchvision") for name in ("Tiny", "Small", "Base", "Large", "XLarge")},
}  # fmt: skip
# Those that give different graphs, of all alphas from 0.05 to 2; the others only change the widths.
ALPHAS: dict[str, tuple[float, ...]] = {
    "MobileNetV2": (1.0, 0.25, 0.15),
    "MobileNetV3Small": (1.0, 0.35),
    "MobileNetV3Large": (1.0, 0.35),
}
KEPT = {  # class -> the settings that determine what a layer computes, beside its arrays
    "InputLayer": ("batch_shape",),
    "Conv2D": ("kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups", "activation", "use_bias"),
    "DepthwiseConv2D": ("kernel_size", "strides", "padding", "data_format", "dilation_rate", "activation", "use_bias"),
    "SeparableConv2D": ("kernel_size", "strides", "padding", "data_format", "dilation_rate", "activation", "use_bias"),
    "Dense": ("activation", "use_bias"),
    "BatchNormalization": ("axis", "epsilon", "center", "scale"),
    "LayerNormalization": ("axis", "epsilon", "center", "scale"),
    "Normalization": ("axis", "mean", "variance", "invert"),
    "Rescaling": ("scale", "offset"),
    "Activation": ("activation",),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "MaxPooling2D": ("pool_size", "strides", "padding", "data_format"),
    "AveragePooling2D": ("pool_size", "strides", "padding", "data_format"),
    "GlobalMaxPooling2D": ("data_format", "keepdims"),
    "GlobalAveragePooling2D": ("data_format", "keepdims"),
    "ZeroPadding2D": ("padding", "data_format"),
    "Cropping2D": ("cropping", "data_format"),
    "Flatten": (),
    "Reshape": ("target_shape",),
    "Dropout": ("rate",),
    "StochasticDepth": (),
    "LayerScale": (),
    "CustomScaleLayer": ("scale",),
    "Add": (),
    "Multiply": (),
    "Concatenate": ("axis",),
    "TFOpLambda": ("function",),
    "Sequential": (),  # its layers, as they are here
}
DEFAULTS = {  # not written, since older releases lack the setting or do not write it
    "groups": 1, "dilation_rate": [1, 1], "keepdims": False, "center": True, "scale": True, "use_bias": True,
    "invert": False, "negative_slope": 0.0, "threshold": 0.0, "data_format": "channels_last",
}  # fmt: skip
OLD_WORDS = {"bias": "use_bias", "p": "rate", "batch_input_shape": "batch_shape"}
LEFT_OUT = {  # settings of training, of the arrays' sizes, and those that say nothing at the values asserted below
    "name", "trainable", "dtype", "sparse", "ragged", "optional", "filters", "units", "depth_multiplier", "momentum",
    "synchronized", "renorm", "renorm_clipping", "renorm_momentum", "seed", "noise_shape", "drop_path_rate",
    "init_values", "projection_dim", "rms_scaling", *OLD_WORDS, "nb_filter", "output_dim", "input_dim", "input_dtype",
    "init", "gamma_init", "beta_init", "mode", "mode_type", "dot_axes", "output_shape", "output_mask", "arguments",
    "output_shape_type", "output_mask_type", "layers", "build_input_shape",
}  # fmt: skip
UNSAID = ("name", "training", "mask")  # arguments of a call that do not change what it computes
OF_TRAINING = ("_initializer", "_regularizer", "_constraint")


# Dump: in any environment with a Keras


def dump(folder: Path) -> None:
    """Write the configs of all networks that the installed Keras has, as it gives them, into a folder of their own."""
    keras = the_keras()
    release = f"keras {keras.__version__}"
    if find_spec("keras_applications"):
        release += f", keras-applications {version('keras_applications')}"
    (folder / release).mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        found = graphs_of(keras, name)
        (folder / release / f"{name}.json").write_text(json.dumps(found))
        print(release, name, len(found), flush=True)


def graphs_of(keras: Any, name: str) -> list[Graph]:
    """Return a network's graphs with all options that change them; none if this Keras does not have it."""
    if not hasattr(keras.applications, name):
        return []
    found = [
        graph
        for options in options_of(name, version_of(keras.__version__))
        for graph in described(keras, name, options)
    ]
    return json.loads(json.dumps(found, default=lambda value: getattr(value, "tolist", value.__repr__)()))


def the_keras() -> Any:
    """Return Keras, also where it is of the time of Theano."""
    if not find_spec("theano"):
        return import_module("keras")
    import numpy as np

    import_module("make_fixtures").revive_theano()
    backend: Any = import_module("keras.backend")
    for name, value in (("image_dim_ordering", "tf"), ("image_data_format", "channels_last")):
        getattr(backend, f"set_{name}", str)(value)
    # Graphs are the same on TensorFlow, where some networks are built alone; what a layer computes is not asked for.
    backend.backend = lambda: "tensorflow"
    for name in ("depthwise_conv2d", "separable_conv2d"):
        setattr(backend, name, lambda x, *_, **__: x)
    if find_spec("keras.initializers"):  # Theano would compile a program for each array
        kinds = vars(import_module("keras.initializers")).values()
        for kind in (kind for kind in kinds if hasattr(kind, "from_config")):
            kind.__call__ = lambda self, shape, dtype=None: np.zeros(shape, "float32")
    import_module("keras.applications")
    return import_module("keras")


def options_of(name: str, numbers: list[int]) -> list[dict[str, Any]]:
    """Return the options that change a network's graph, the default ones first."""
    if name == "MobileNetV2":
        return [{} if alpha == 1 else {"alpha": alpha} for alpha in ALPHAS[name]]
    if name.startswith("MobileNetV3"):
        return [
            {**({} if alpha == 1 else {"alpha": alpha}), **small, **bare}
            for bare in ({}, {"include_preprocessing": False})
            for small in ({}, {"minimalistic": True})
            for alpha in ALPHAS[name]
        ]
    if name.startswith(("EfficientNetV2", "ConvNeXt")):
        return [{}, {"include_preprocessing": False}]
    if name.startswith("EfficientNetB") and numbers >= [2, 4]:
        return [{"weights": "imagenet"}, {}]
    return [{}]


def version_of(release: str) -> list[int]:
    """Return the numbers of a release, for sorting."""
    return [int(number) for number in re.findall(r"\d+", release)]


def described(keras: Any, name: str, options: dict[str, Any]) -> list[Graph]:
    """Return a network as it is dumped; without its top as well if that is not only its first layers."""
    graphs = []
    with changed(keras) as padded:
        for top in (True, False):
            model = build(keras, name, {**options, "include_top": top})
            paddings = [layer.name for layer in model.layers if type(layer).__name__ == "ZeroPadding2D"
                        and any(layer.input is tensor for tensor in padded)]  # fmt: skip
            layers = [[layer.name, bool(layer.weights)] for layer in model.layers]
            graphs.append({
                "name": name, "options": options, "config": model.get_config(), "padded": paddings, "layers": layers,
                "top": [],
            })  # fmt: skip
    whole, headless = graphs
    shared = [layer for layer in whole["layers"] if layer in headless["layers"]]
    whole["top"] = [layer for layer, has in whole["layers"] if [layer, has] not in shared]
    if shared == headless["layers"]:
        return [whole]
    return [whole, {**headless, "options": {**options, "include_top": False}}]


def build(keras: Any, name: str, options: dict[str, Any]) -> Any:
    """Return a network, with names as in a new session."""
    uids = import_module("keras.backend.common") if version_of(keras.__version__) < [2] else keras.backend
    getattr(uids, "reset_uids" if version_of(keras.__version__) < [2, 4] else "clear_session")()
    side, _ = NETWORKS[name]
    return getattr(keras.applications, name)(**{"weights": None, "input_shape": (side, side, 3), **options})


@contextlib.contextmanager
def changed(keras: Any) -> Iterator[list[Any]]:
    """Build without memory for weights where Keras can, without loading any, and NASNetMobile on any backend.

    Yields a list that receives the tensors for which Keras computes a padding.
    """
    padded: list[Any] = []

    def recording(own: Any) -> Any:
        def correct_pad(*arguments: Any) -> Any:
            padded.append(arguments[-2])  # before the kernel's size
            return own(*arguments)

        return correct_pad

    modules = {name: module for name, module in sys.modules.items() if name.startswith("keras") and module}
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            if "applications" in name and hasattr(module, "correct_pad"):
                stack.enter_context(mock.patch.object(module, "correct_pad", recording(module.correct_pad)))
            if name.endswith(("utils.file_utils", "utils.data_utils")) and hasattr(keras, "Model"):
                stack.enter_context(mock.patch.object(module, "get_file", lambda name, *_, **__: name))
                stack.enter_context(mock.patch.object(keras.Model, "load_weights"))
        if nasnet := modules.get("keras.src.applications.nasnet"):  # Keras 3 refuses NASNetMobile on PyTorch
            backend = SimpleNamespace(**{**vars(nasnet.backend), "backend": lambda: "tensorflow"})
            stack.enter_context(mock.patch.object(nasnet, "backend", backend))
        if hasattr(keras, "device"):
            stack.enter_context(keras.device("meta"))
        yield padded


# Pack: in an environment with convnets_torch


def graph_of(found: Graph, release: str) -> Graph:
    """Return a dumped graph with the settings that matter, in Keras 3's words.

    The nodes are (name, layer as JSON, names of the inputs); the layer is {"class_name", "config", "args", "module"}.
    """
    layers = found["config"]["layers"]
    listed = [name for name, _ in found["layers"]]
    nodes = [(layer.get("name") or layer["config"]["name"], *node_of(layer)) for layer in layers]
    names = [name for name, _, _ in nodes]
    assert [name for name in names if name in set(listed)] == listed, found["name"]
    for ends, name in (("input_layers", names[0]), ("output_layers", names[-1])):
        assert found["config"][ends] in ([name, 0, 0], [[name, 0, 0]]), found["name"]
    side, preprocessing = NETWORKS[found["name"]]
    inside = any('"Rescaling"' in layer or '"Normalization"' in layer for _, layer, _ in nodes)
    return {
        "name": found["name"], "options": found["options"], "release": release, "model": found["config"]["name"],
        "size": [side, side], "preprocessing": None if inside else preprocessing, "top": found["top"],
        "padded": found["padded"], "nodes": nodes, "weighted": [name for name, weighted in found["layers"] if weighted],
    }  # fmt: skip


def node_of(entry: dict[str, Any]) -> tuple[str, list[str]]:
    """Return (layer as JSON, names of its inputs) of a config's entry."""
    from converters.readers.keras_words import in_new_words

    kind, config = in_new_words(entry["class_name"], entry["config"])
    if kind == "Lambda":  # of InceptionResNetV2, a class of its own in later releases
        kind, config = "CustomScaleLayer", {"name": config["name"], **config["arguments"]}
    inputs: list[str] = []
    layer = {"class_name": kind, "config": {}, "args": arguments_of(entry.get("inbound_nodes") or [], inputs)}
    module = entry.get("module") or ""
    if module.startswith("keras.src.ops."):
        assert set(config) == {"name"}, entry
        layer["module"] = module
    else:
        config = {**config, **old_words(kind, config)}
        kept = {word: config[word] for word in KEPT[kind] if config.get(word) is not None}
        layer["config"] = {word: value for word, value in kept.items() if not is_default(kind, word, value)}
        if kind == "Sequential":  # in ConvNeXt
            layer["config"] = {
                "layers": [inner_of(inner) for inner in config["layers"] if inner["class_name"] != "InputLayer"]
            }
        unknown = {word for word in set(config) - set(kept) - LEFT_OUT if not word.endswith(OF_TRAINING)}
        unknown -= {word for word in unknown if config[word] in (None, DEFAULTS.get(word))}
        unknown -= {"axis"} if entry["class_name"] == "Merge" else set()
        assert not unknown, (entry["class_name"], {word: config[word] for word in unknown})
        mode = {"Concatenate": "concat", "Add": "sum"}.get(kind, 0)  # of Keras 1
        plain = {"depth_multiplier": 1, "synchronized": False, "rms_scaling": False, "renorm": False, "mode": mode}
        assert all(config.get(word, value) == value for word, value in plain.items()), entry
    return json.dumps(layer, sort_keys=True), inputs


def is_default(kind: str, word: str, value: Any) -> bool:
    """Return whether a setting is left out for its value."""
    if word == "activation":
        return kind != "Activation" and value == "linear"
    return word != "scale" or kind.endswith("Normalization") if value == DEFAULTS.get(word, ...) else False


def inner_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a layer within a Sequential."""
    text, _ = node_of(entry)
    layer = json.loads(text)
    return {
        "class_name": layer["class_name"],
        "config": {"name": entry["config"]["name"], **layer["config"]},
        "module": "keras.layers",
    }


def old_words(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that other releases call otherwise, in Keras 3's words."""
    found = {new: config[old] for old, new in OLD_WORDS.items() if old in config}
    axis = config.get("axis")
    if isinstance(axis, list):
        [axis] = axis
    if axis == 3 and kind in ("BatchNormalization", "Concatenate", "Normalization"):  # of a map, channels last
        axis = -1
    if axis is not None:
        found["axis"] = axis
    if config.get("activation") == "swish":
        found["activation"] = "silu"
    if kind == "Reshape":  # whose numbers are of channels or classes: left to the arrays
        *ones, _ = config["target_shape"]
        assert set(ones) <= {1}, config
        found["target_shape"] = [*ones, -1]
    return found


def arguments_of(calls: list[Any], inputs: list[str]) -> list[Any]:
    """Return the arguments of a layer's only call, with None for each tensor, whose layer is appended to `inputs`."""
    if not calls:
        return []
    [call] = calls

    def one(value: Any) -> Any:
        if isinstance(value, dict):
            assert value["class_name"] == "__keras_tensor__", value
            value = value["config"]["keras_history"]
            assert value[1:] == [0, 0], value
            inputs.append(value[0])
            return None
        assert value is not None
        return [one(each) for each in value] if isinstance(value, list) else value

    if isinstance(call, dict):
        assert not any(value for name, value in call["kwargs"].items() if name not in UNSAID), call
        return [one(each) for each in call["args"]]
    tensors = [call] if isinstance(call[0], str) else call
    words = [value for tensor in tensors if tensor[3:] for name, value in tensor[3].items() if name not in UNSAID]
    # Keras 2 counts a nested model's own output as its call 0
    assert all(tensor[1] in (0, 1) and tensor[2] == 0 for tensor in tensors), call
    assert not words or len(tensors) == 1, call
    inputs += [tensor[0] for tensor in tensors]
    return [None, *words] if len(tensors) == 1 else [[None] * len(tensors)]


def pack(folder: Path) -> bytes:
    """Return the bytes of the data file from all dumps of a folder, and the graphs of convnets-keras."""
    releases = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: version_of(path.name))
    graphs = [
        graph_of(found, release.name.rpartition(", ")[2])
        for name in NETWORKS
        for release in reversed(releases)
        if (release / f"{name}.json").exists()
        for found in json.loads((release / f"{name}.json").read_text())
    ]
    return packed([*merged(graphs), *import_module("convnets_keras_graphs").graphs()])


def merged(graphs: list[Graph]) -> list[Graph]:
    """Return the graphs that differ, those of one network together, its newest first."""
    found: dict[str, list[Graph]] = {}
    for graph in graphs:
        _, *others = graph["nodes"]  # without the input, whose name is automatic
        start = graph["nodes"][0][0]
        others = [(name, layer, ["" if one == start else one for one in inputs]) for name, layer, inputs in others]
        key = json.dumps([graph["name"], others, graph["top"], graph["padded"]])
        found.setdefault(key, []).append(graph)
    return [{**same[0], "release": label(same)} for same in found.values()]


def label(same: list[Graph]) -> str:
    """Return the releases that build a graph, and the options."""
    options = {str(graph["options"]): graph["options"] for graph in same}
    first, *_ = options.values()
    alike = [graph["release"] for graph in same if graph["options"] == first]
    releases = alike[0] if alike[-1] == alike[0] else f"{alike[-1]} to {alike[0]}"
    return ", ".join([releases, *(f"{word}={value}" for word, value in first.items())])


def packed(graphs: list[Graph]) -> bytes:
    """Return the graphs as the bytes of the data file."""
    from converters.architectures import MOST, MOST_PACKED

    entries, layers = in_table(graphs)
    text = json.dumps({"layers": layers, "graphs": entries}, separators=(",", ":")).encode()
    content = lzma.compress(text, check=lzma.CHECK_CRC32, preset=9 | lzma.PRESET_EXTREME)
    assert (len(text) <= MOST, len(content) <= MOST_PACKED) == (True, True), (len(text), len(content))
    print(f"{len(entries)} graphs, {len(layers)} layers that differ, {len(text):,} bytes, packed {len(content):,}")
    return content


def in_table(graphs: list[Graph]) -> tuple[list[Graph], list[Graph]]:
    """Return the graphs as they stand in the data file, and their layers: each once, with inputs as steps back."""
    from converters.architectures import layer_list, listed, listing, unpacked

    layers: dict[str, int] = {}
    entries: list[Graph] = []
    for graph in graphs:
        place = {name: number for number, (name, _, _) in enumerate(graph["nodes"])}
        nodes = [
            [name, layers.setdefault(layer, len(layers)), [place[name] - place[one] for one in inputs]]
            for name, layer, inputs in graph["nodes"]
        ]
        words = ("name", "release", "model", "size", "preprocessing", "top", "padded")
        entries.append({**{word: graph[word] for word in words}, "nodes": nodes})
    table = [json.loads(layer) for layer in layers]
    for graph, entry in zip(graphs, entries, strict=True):
        layers_listed = layer_list(unpacked(entry, table))
        assert [name for name, _, has in layers_listed if has] == graph["weighted"], graph["name"]
        assert layers_listed == listed(entry["nodes"], [listing(layer) for layer in table]), graph["name"]
    return entries, table


def check(names: list[str]) -> list[str]:
    """Return what the installed Keras builds and the data file lacks."""
    from converters.architectures import architectures, unpacked

    keras = the_keras()
    lacking = []
    for name in names or NETWORKS:
        graphs = [graph_of(found, "") for found in graphs_of(keras, name)]
        entries, layers = in_table(graphs)
        for graph, entry in zip(graphs, entries, strict=True):
            config = unpacked(entry, layers)
            alike = any(
                (one.name, list(one.top), list(one.padded), one.preprocessing) == (
                    name, graph["top"], graph["padded"], graph["preprocessing"])
                and one.config["config"]["layers"] == config["config"]["layers"]
                for one in architectures()
            )  # fmt: skip
            if not alike:
                lacking.append(f"{name} {graph['options']}")
    return lacking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("dump", "pack", "check"))
    parser.add_argument("where", nargs="*", help="the folder of dumps; for check the names of networks, default all")
    arguments = parser.parse_args()
    if arguments.what == "dump":
        dump(Path(arguments.where[0]))
        return
    sys.path.insert(0, str(HERE.parent))
    from converters.architectures import DATA

    if arguments.what == "pack":
        DATA.write_bytes(pack(Path(arguments.where[0])))
    elif lacking := check(arguments.where):
        sys.exit(f"{DATA.name} does not have what this Keras builds: {', '.join(lacking)}")


if __name__ == "__main__":
    main()
