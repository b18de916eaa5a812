"""Write converters/data/graphs.json.xz: the graphs of Keras Applications, as real Keras of each release builds them.

    KERAS_BACKEND=torch python scripts/build_graphs.py dump FOLDER    # the Keras of this environment, into FOLDER
    python scripts/build_graphs.py pack FOLDER                        # all dumps of FOLDER into the data file
    KERAS_BACKEND=torch python scripts/build_graphs.py check          # whether the data file has what this Keras builds

`dump` needs nothing but Keras and runs in any environment with one; CONTRIBUTING.md lists those of the data file.
Nothing is downloaded: where `weights="imagenet"` changes the graph, the loading of the weights is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import lzma
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

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
ALPHAS = (1.0, 0.35, 0.5, 0.75, 1.3, 1.4)  # those of released weights
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
}
LEFT_OUT = {  # settings of training, of the arrays' sizes, and those that say nothing at the values asserted below
    "name", "trainable", "dtype", "sparse", "ragged", "optional", "filters", "units", "depth_multiplier", "momentum",
    "synchronized", "renorm", "renorm_clipping", "renorm_momentum", "seed", "noise_shape", "drop_path_rate",
    "init_values", "projection_dim",
}  # fmt: skip
UNSAID = ("name", "training", "mask")  # arguments of a call that do not change what it computes
OF_TRAINING = ("_initializer", "_regularizer", "_constraint")


# Dump: in any environment with a Keras


def dump(folder):
    """Write the configs of all networks that the installed Keras has, as it gives them, into a folder of their own."""
    keras = the_keras()
    release = "keras " + keras.__version__
    if find_spec("keras_applications"):
        release += " with keras-applications " + import_module("keras_applications").__version__
    (folder / release).mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        found = graphs_of(keras, name)
        text = json.dumps(found, default=lambda value: getattr(value, "tolist", value.__repr__)())
        (folder / release / (name + ".json")).write_text(text)
        print(release, name, len(found), flush=True)


def graphs_of(keras, name):
    """Return a network's graphs with all options that change them; none if this Keras does not have it."""
    function = getattr(keras.applications, name, None)
    known = inspect.signature(function).parameters if function else {}
    return [
        {"name": name, "options": options, **described(keras, name, options)}
        for options in (options_of(name, keras.__version__) if function else ())
        if set(options) <= set(known)  # other releases have other options
    ]


def the_keras():
    """Return Keras, also where it is of the time of Theano."""
    if not find_spec("theano"):
        return import_module("keras")
    from make_fixtures import revive_theano

    revive_theano()
    backend = import_module("keras.backend")
    for name, value in (("image_dim_ordering", "tf"), ("image_data_format", "channels_last")):
        getattr(backend, f"set_{name}", print)(value)
    # Graphs are the same on TensorFlow, where some networks are built alone; what a layer computes is not asked for.
    backend.backend = lambda: "tensorflow"
    for name in ("depthwise_conv2d", "separable_conv2d"):
        setattr(backend, name, lambda x, *_, **__: x)
    import_module("keras.applications")
    return import_module("keras")


def options_of(name, version):
    """Return the options that change a network's graph, the default ones first."""
    if name == "MobileNetV2":
        return [{} if alpha == 1 else {"alpha": alpha} for alpha in ALPHAS]
    if name.startswith("MobileNetV3"):
        return [
            {**({} if alpha == 1 else {"alpha": alpha}), **small, **bare}
            for bare in ({}, {"include_preprocessing": False})
            for small in ({}, {"minimalistic": True})
            for alpha in ALPHAS
        ]
    if name.startswith(("EfficientNetV2", "ConvNeXt")):
        return [{}, {"include_preprocessing": False}]
    if name.startswith("EfficientNetB") and version >= "2.4":
        return [{"weights": "imagenet"}, {}]
    return [{}]


def described(keras, name, options):
    """Return a network's layers, as configs; the names of those of its top; and of those padded by its size."""
    side, _ = NETWORKS[name]
    options = {"weights": None, "input_shape": (side, side, 3), **options}
    with without_arrays(keras), any_backend(), padding_recorded(keras) as padded:
        model = build(keras, name, {**options, "include_top": True})
        paddings = [
            layer.name
            for layer in model.layers
            if type(layer).__name__ == "ZeroPadding2D" and any(layer.input is tensor for tensor in padded)
        ]
        headless = build(keras, name, {**options, "include_top": False})
    config = model.get_config()
    shared = {layer.name for layer in headless.layers}
    return {
        "config": config,
        "top": [layer.name for layer in model.layers if layer.name not in shared],
        "padded": paddings,
        "size": [side, side],
        "layers": [[layer.name, bool(layer.weights)] for layer in model.layers],
        "headless": [layer.name for layer in headless.layers],
    }


def build(keras, name, options):
    """Return a network, with names as in a new session."""
    uids = import_module("keras.backend.common") if keras.__version__ < "2" else keras.backend
    getattr(uids, "reset_uids" if keras.__version__ < "2.4" else "clear_session")()
    return getattr(keras.applications, name)(**options)


@contextlib.contextmanager
def without_arrays(keras):
    """Build without memory for weights, where Keras can, and without loading any."""
    if keras.__version__ < "2.4":  # their graphs are the same without weights
        yield
        return
    model = keras.Model
    load = model.load_weights
    modules = [module for name, module in sys.modules.items() if name.endswith("utils.file_utils")]
    get = [module.get_file for module in modules]
    model.load_weights = lambda self, *_, **__: None
    for module in modules:
        module.get_file = lambda name, *_, **__: name
    try:
        with keras.device("meta") if hasattr(keras, "device") else contextlib.nullcontext():
            yield
    finally:
        model.load_weights = load
        for module, function in zip(modules, get, strict=True):
            module.get_file = function


@contextlib.contextmanager
def any_backend():
    """Build NASNetMobile on any backend; Keras 3 refuses it on PyTorch for "an outstanding bug"."""
    nasnet = sys.modules.get("keras.src.applications.nasnet")
    if nasnet is None:
        yield
        return
    backend = nasnet.backend
    nasnet.backend = SimpleNamespace(**{**vars(backend), "backend": lambda: "tensorflow"})
    try:
        yield
    finally:
        nasnet.backend = backend


@contextlib.contextmanager
def padding_recorded(keras):
    """Yield a list that receives the tensors for which Keras computes a padding."""
    padded = []
    changed = []
    for name, module in list(sys.modules.items()):
        if "applications" in name and hasattr(module, "correct_pad"):
            changed.append((module, module.correct_pad))

            def record(*arguments, own=module.correct_pad):
                padded.append(arguments[-2])  # before the kernel's size
                return own(*arguments)

            module.correct_pad = record
    try:
        yield padded
    finally:
        for module, function in changed:
            module.correct_pad = function


# Pack: in an environment with convnets_torch


def graph_of(found, release):
    """Return a dumped graph with the settings that matter, in Keras 3's words.

    The nodes are (name, layer as JSON, names of the inputs); the layer is {"class_name", "config", "args", "module"}.
    """
    layers = found["config"]["layers"]
    listed = [name for name, _ in found["layers"]]
    nodes = [(layer.get("name") or layer["config"]["name"], *node_of(layer)) for layer in layers]
    names = [name for name, _, _ in nodes]
    assert [name for name in names if name in set(listed)] == listed, found["name"]
    assert [name for name in listed if name not in set(found["top"])] == found["headless"], found["name"]
    for ends, name in (("input_layers", names[0]), ("output_layers", names[-1])):
        assert found["config"][ends] in ([name, 0, 0], [[name, 0, 0]]), found["name"]
    _, preprocessing = NETWORKS[found["name"]]
    inside = any('"Rescaling"' in layer or '"Normalization"' in layer for _, layer, _ in nodes)
    return {
        "name": found["name"], "options": found["options"], "release": release, "model": found["config"]["name"],
        "size": found["size"], "preprocessing": None if inside else preprocessing, "top": found["top"],
        "padded": found["padded"], "nodes": nodes, "weighted": [name for name, weighted in found["layers"] if weighted],
    }  # fmt: skip


def node_of(entry):
    """Return (layer as JSON, names of its inputs) of a config's entry."""
    from converters.readers.keras_words import in_new_words

    kind, config = in_new_words(entry["class_name"], entry["config"])
    inputs: list[str] = []
    layer = {"class_name": kind, "config": {}, "args": arguments_of(entry.get("inbound_nodes") or [], inputs)}
    module = entry.get("module") or ""
    if module.startswith("keras.src.ops."):
        assert set(config) == {"name"}, entry
        layer["module"] = module
    else:
        config = {**config, **old_words(kind, config)}
        layer["config"] = {word: config[word] for word in KEPT[kind] if word in config}
        unknown = {word for word in set(config) - set(layer["config"]) - LEFT_OUT if not word.endswith(OF_TRAINING)}
        unknown -= {
            word for word in unknown if config[word] is None or (word, config[word]) == ("data_format", "channels_last")
        }
        assert not unknown, (entry["class_name"], {word: config[word] for word in unknown})
        assert config.get("depth_multiplier", 1) == 1, entry
        assert {config.get("synchronized", False), config.get("renorm", False)} == {False}, entry
    return json.dumps(layer, sort_keys=True), inputs


def old_words(kind, config):
    """Return the settings that Keras 1 and 2 call otherwise, and those with several spellings in one."""
    found = {}
    axis = config.get("axis")
    if kind in ("BatchNormalization", "Concatenate", "LayerNormalization", "Normalization") and axis is not None:
        [axis] = axis if isinstance(axis, (list, tuple)) else [axis]
        found["axis"] = -1 if axis == 3 else axis
    if kind == "Reshape":  # whose numbers are of channels or classes: left to the arrays
        *ones, _ = config["target_shape"]
        assert set(ones) <= {1}, config
        found["target_shape"] = [*ones, -1]
    return found


def arguments_of(calls, inputs):
    """Return the arguments of a layer's only call, with None for each tensor, whose layer is appended to `inputs`."""
    if not calls:
        return []
    [call] = calls

    def one(value):
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
    assert all(tensor[1:3] == [0, 0] for tensor in tensors), call
    assert not words or len(tensors) == 1, call
    inputs += [tensor[0] for tensor in tensors]
    return [None, *words] if len(tensors) == 1 else [[None] * len(tensors)]


def pack(folder):
    """Return the bytes of the data file from all dumps of a folder."""
    releases = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: version_of(path.name))
    graphs = [
        graph_of(found, release.name)
        for name in NETWORKS
        for release in reversed(releases)
        if (release / f"{name}.json").exists()
        for found in json.loads((release / f"{name}.json").read_text())
    ]
    return packed(merged(graphs))


def version_of(release):
    """Return the numbers of a release, for sorting."""
    return [int(number) for number in re.findall(r"\d+", release)]


def merged(graphs):
    """Return the graphs that differ, those of one network together, its newest first."""
    found = {}
    for graph in graphs:
        key = json.dumps([graph["name"], graph["nodes"], graph["top"], graph["padded"]])
        found.setdefault(key, []).append(graph)
    return [
        {**same[0], "release": ", ".join([same[0]["release"], *(f"{k}={v}" for k, v in same[0]["options"].items())])}
        for same in found.values()
    ]


def packed(graphs):
    """Return the graphs as the bytes of the data file: equal layers stand once, inputs as steps back."""
    from converters.architectures import MOST, MOST_PACKED, layer_list, unpacked

    layers, entries = {}, []
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
        weighted = [name for name, _, has in layer_list(unpacked(entry, table)) if has]
        assert weighted == graph["weighted"], graph["name"]
    text = json.dumps({"layers": table, "graphs": entries}, separators=(",", ":")).encode()
    content = lzma.compress(text, check=lzma.CHECK_CRC32, preset=9 | lzma.PRESET_EXTREME)
    assert (len(text) <= MOST, len(content) <= MOST_PACKED) == (True, True), (len(text), len(content))
    print(f"{len(entries)} graphs, {len(table)} layers that differ, {len(text):,} bytes, packed {len(content):,}")
    return content


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("dump", "pack", "check"))
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.what == "dump":
        dump(arguments.folder)
        return
    sys.path.insert(0, str(HERE.parent))
    from converters.architectures import DATA

    DATA.write_bytes(pack(arguments.folder))


if __name__ == "__main__":
    main()
