"""Translate class names, settings and weight names of all Keras versions to Keras 3's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from converters.readers.keras_file import DataFormat

OLD = {
    "Model": "Functional", "Container": "Functional", "Convolution1D": "Conv1D", "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D", "AtrousConvolution1D": "Conv1D", "AtrousConvolution2D": "Conv2D",
    "Deconvolution2D": "Conv2DTranspose", "Deconvolution3D": "Conv3DTranspose", "SeparableConvolution2D":
    "SeparableConv2D", "BatchNormalizationV1": "BatchNormalization", "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization", "CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU",
}  # fmt: skip

KERAS_EPSILON = 1e-3  # Keras's default epsilon of batch normalisation
CODE = ("Lambda", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer")  # contain Python code or call any function
IDENTITIES = (  # the identity at inference
    "InputLayer", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise",
    "ActivityRegularization", "Identity", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation",
    "RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth", "RandomShear", "RandomErasing",
    "RandomSaturation", "RandomHue", "RandomColorJitter", "RandomGrayscale", "RandomInvert", "RandomPosterization",
    "RandomSharpness", "RandomGaussianBlur", "RandomPerspective", "AugMix", "RandAugment",
)  # fmt: skip
FORMATS: Mapping[str, DataFormat] = {
    "channels_first": "channels_first", "channels_last": "channels_last",
    "th": "channels_first", "tf": "channels_last",
}  # fmt: skip
_MODES = {  # of Keras 1's Merge -> layer
    "sum": "Add", "mul": "Multiply", "concat": "Concatenate", "ave": "Average", "max": "Maximum", "dot": "Dot",
}  # fmt: skip
_SETTINGS = {  # Keras 1 -> Keras 2 and 3
    "subsample": "strides", "border_mode": "padding", "dim_ordering": "data_format", "atrous_rate": "dilation_rate",
    "concat_axis": "axis",
}  # fmt: skip

# Roles of a class's weights, in the order of `vars/0`, `vars/1`, ...
HOLDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("Dense", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
        ("kernel", "bias"),
    ),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), ("depthwise_kernel", "bias")),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), ("depthwise_kernel", "pointwise_kernel", "bias")),
    "LayerNormalization": ("gamma", "beta"),
    "GroupNormalization": ("gamma", "beta"),
    "Normalization": ("mean", "variance"),
    "PReLU": ("alpha",),
    "LayerScale": ("gamma",),
}
ACTIVATIONS = ("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax")
KINDS = (
    "Functional", "Sequential", "BatchNormalization", "UnitNormalization", "Rescaling", "Resizing", "CenterCrop",
    "ThresholdedReLU", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D",
    "AveragePooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "GlobalAveragePooling1D",
    "GlobalAveragePooling2D", "GlobalAveragePooling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D",
    "Cropping2D", "Cropping3D", "UpSampling1D", "UpSampling2D", "UpSampling3D", "Flatten", "Reshape", "Permute",
    "RepeatVector", "SpatialDropout3D", "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate",
    "Dot", "Merge", "Masking", "Embedding", "LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell", "RNN",
    "Bidirectional", "TimeDistributed", "Attention", "AdditiveAttention", "MultiHeadAttention", "EinsumDense",
    "RandomCrop", "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D",
    "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D", "AutoContrast", "CategoryEncoding",
    "ContrastLimitedAdaptiveHistogramEqualization", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "CutMix",
    "Discretization", "Equalization", "FlaxLayer", "GroupedQueryAttention", "HashedCrossing", "Hashing",
    "IntegerLookup", "JaxLayer", "MaxNumBoundingBoxes", "MelSpectrogram", "MixUp", "Pipeline", "RMSNormalization",
    "RandomColorDegeneration", "RandomElasticTransform", "ReversibleEmbedding", "STFTSpectrogram", "Solarization",
    "SpectralNormalization", "StackedRNNCells", "StringLookup", "TFSMLayer", "TextVectorization", "TorchModuleWrapper",
    "CustomScaleLayer", "StochasticDepth",
    *IDENTITIES, *ACTIVATIONS, *HOLDS, *CODE,
)  # fmt: skip
_BY_KEY = (
    {kind.lower(): kind for kind in KINDS} | {old.lower(): kind for old, kind in OLD.items()} | {"input": "InputLayer"}
)


def holds_arrays(kind: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a layer of a class has weights, or for a nested model one of its layers."""
    if "layers" in settings:
        return any(holds_arrays(kind_of_class(one["class_name"]), one["config"]) for one in settings["layers"])
    if kind == "Normalization":
        return settings.get("mean") is None
    return kind in HOLDS or kind == "BatchNormalization"


_LEAVES = {
    "kernel": "kernel", "bias": "bias", "W": "kernel", "b": "bias", "gamma": "gamma", "beta": "beta",
    "depthwise_kernel": "depthwise_kernel", "pointwise_kernel": "pointwise_kernel", "moving_mean": "moving_mean",
    "moving_variance": "moving_variance", "running_mean": "moving_mean", "running_std": "moving_variance",
    "running_var": "moving_variance", "alpha": "alpha", "alphas": "alpha",
}  # fmt: skip
_LEAF = re.compile(rf"(?:(?P<stem>.*?)_)??(?P<word>{'|'.join(sorted(_LEAVES, key=len, reverse=True))})(?:_\d+)?")


def kind_of_class(name: str) -> str:
    """Return a class name of any version in Keras 3's spelling; unknown names are unchanged.

    >>> kind_of_class("Convolution2D"), kind_of_class("MyLayer")
    ('Conv2D', 'MyLayer')
    """
    return OLD.get(name, name)


def in_new_words(kind: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a layer's class and settings in Keras 2 and 3's terms.

    Raises:
        ValueError: the layer is a Keras 1 Merge in a mode that no later layer has.

    >>> in_new_words("Convolution2D", {"nb_row": 3, "nb_col": 2, "subsample": [1, 1], "dim_ordering": "th"})
    ('Conv2D', {'strides': [1, 1], 'data_format': 'channels_first', 'kernel_size': (3, 2)})
    """
    settings = {_SETTINGS.get(word, word): value for word, value in config.items()}
    if isinstance(said := settings.get("data_format"), str):
        settings["data_format"] = FORMATS.get(said, said)
    if "nb_row" in settings:
        settings["kernel_size"] = (settings.pop("nb_row"), settings.pop("nb_col"))
    if kind == "Merge":
        mode = settings.get("mode")
        if settings.get("mode_type", "raw") != "raw":
            raise ValueError("a Merge runs Python code, which is not read from files; cut it off with --until")
        if mode not in _MODES:
            raise ValueError(f"a Merge of mode {mode!r:.40} is not known here; known: {', '.join(_MODES)}")
        kind, settings["axes"] = _MODES[mode], settings.get("dot_axes")
    return kind_of_class(kind), settings


def kind_of_name(name: str) -> str:
    """Return the class implied by an automatic name or a group of `.weights.h5`, or "".

    >>> kind_of_name("max_pooling2d_3"), kind_of_name("maxpooling2d_1"), kind_of_name("block1_conv1")
    ('MaxPooling2D', 'MaxPooling2D', '')
    """
    return _BY_KEY.get(re.sub(r"_\d+$", "", name).replace("_", ""), "") if name == name.lower() else ""


# Words in user-chosen names of layers without weights, and the class that each implies.
_TELLING = {
    **dict.fromkeys(("drop", "dropout", "do"), "Dropout"),
    **dict.fromkeys(("flat", "flatten", "flattened"), "Flatten"),
    **dict.fromkeys(("gap", "gap2d"), "GlobalAveragePooling2D"),
    **dict.fromkeys(("gmp", "gmp2d"), "GlobalMaxPooling2D"),
    **dict.fromkeys(("act", "activation"), "Activation"),
    "relu": "ReLU",
    **dict.fromkeys(("softmax", "probs", "probabilities"), "Softmax"),
    **{word: word for word in ("relu6", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus")},
    "swish": "silu",
}
_IDLE = frozenset(  # words that describe a layer's position, not its class
    ("fc", "head", "top", "my", "layer", "out", "output", "classifier", "hidden", "final", "last", "new", "dense")
)


def kind_of_words(name: str, others: str = "") -> str:
    """Return the class (or activation function) implied by the words of a user-chosen layer name, or "".

    Args:
        name: name of a layer without weights.
        others: names of layers with weights; their words are ignored.

    >>> kind_of_words("top_dropout_2"), kind_of_words("relu_scores", "scores"), kind_of_words("head_tanh")
    ('Dropout', 'ReLU', 'tanh')
    >>> kind_of_words("relu_gate"), kind_of_words("x1")
    ('', '')
    """
    words = _words(name) - _words(others) - _IDLE
    if {"global"} < words <= {"global", "average", "avg", "max", "pool", "pooling", "pooling2d"}:
        return "GlobalMaxPooling2D" if "max" in words else "GlobalAveragePooling2D" if len(words) > 2 else ""
    return _TELLING.get(words.pop(), "") if len(words) == 1 else ""


def _words(name: str) -> set[str]:
    """Split a name into words without trailing digits: "fc1_relu" and "fc1Relu" into fc and relu; "relu6" is kept."""
    spaced = re.sub(r"([a-z\d])([A-Z])", r"\1 \2", name).lower()
    found = re.findall(r"[a-z][a-z\d]*", spaced)
    return {word if word in (*_TELLING, "pooling2d") else word.rstrip("0123456789") for word in found}


def group_name(class_name: str) -> str:
    """Return a class name as spelled in the groups of `.weights.h5`, by Keras's own rule.

    >>> group_name("Conv2D"), group_name("MaxPooling2D"), group_name("BatchNormalization")
    ('conv2d', 'max_pooling2d', 'batch_normalization')
    """
    name = re.sub(r"\W+", "", class_name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def owner_and_role(name: str) -> tuple[str, str]:
    """Split a weight's name of any Keras version into (path of its layer, role); the path may be empty.

    >>> owner_and_role("sequential/dense/kernel"), owner_and_role("dense_1/kernel:0")
    (('sequential/dense', 'kernel'), ('dense_1', 'kernel'))
    >>> owner_and_role("block1_conv1_W_1:0"), owner_and_role("conv1/conv1_W:0")
    (('block1_conv1', 'kernel'), ('conv1', 'kernel'))
    >>> owner_and_role("bn_conv1_running_std:0"), owner_and_role("prelu/alpha:0")
    (('bn_conv1', 'moving_variance'), ('prelu', 'alpha'))
    >>> owner_and_role("separable/depthwise_kernel"), owner_and_role("conv_1_pointwise_kernel")
    (('separable', 'depthwise_kernel'), ('conv_1', 'pointwise_kernel'))
    """
    path, _, leaf = re.sub(r":\d+$", "", name).rpartition("/")
    found = _LEAF.fullmatch(leaf)
    if found is None:
        return path, leaf
    return path or found["stem"] or "", _LEAVES[found["word"]]


def roles_by_count(kind: str, shapes: Sequence[tuple[int, ...]], config: Mapping[str, Any] | None) -> list[str]:
    """Return the roles of arrays that have only numbers: `vars/0`, `vars/1`, ... or `param_0`, `param_1`, ...

    Batch normalisation holds gamma and beta unless its config omits them. Three arrays without a config are beta, mean
    and variance, as Keras's own networks use `scale=False`.
    """
    count = len(shapes)
    if kind == "BatchNormalization" or (kind == "LayerNormalization" and config is not None):
        if config is not None:
            first = [role for role, flag in (("gamma", "scale"), ("beta", "center")) if config.get(flag, True)]
        else:
            first = {4: ["gamma", "beta"], 3: ["beta"], 2: []}.get(count, ["gamma", "beta"])
        roles = [*first, "moving_mean", "moving_variance"][: count if kind == "BatchNormalization" else len(first)]
    else:
        roles = list(HOLDS.get(kind, ()))
        if kind.startswith("Separable") and count == 2:
            roles = roles[:2]
    return [*roles, *map(str, range(len(roles), count))][:count]


def kind_and_roles(shapes: Sequence[tuple[int, ...]]) -> tuple[str, list[str]]:
    """Return class and roles of arrays without names if unambiguous: kernel and bias, or a batch normalisation.

    >>> kind_and_roles([(3, 3, 3, 8), (8,)]), kind_and_roles([(7,), (7,), (7,), (7,)])[0], kind_and_roles([(5,)])
    (('Conv2D', ['kernel', 'bias']), 'BatchNormalization', ('', ['0']))
    """
    if len(shapes) == 4 and len(set(shapes)) == 1 and len(shapes[0]) == 1:
        return "BatchNormalization", roles_by_count("BatchNormalization", shapes, None)
    roles = ["kernel", "bias"][: len(shapes)]
    if len(shapes) in (1, 2) and (kind := kind_of_arrays(dict(zip(roles, shapes, strict=True)))):
        return kind, roles
    return "", [str(number) for number in range(len(shapes))]


def kind_of_arrays(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the class that roles and shapes determine unambiguously, or ""."""
    roles = set(shapes)
    if {"depthwise_kernel", "pointwise_kernel"} <= roles <= {"depthwise_kernel", "pointwise_kernel", "bias"}:
        return {4: "SeparableConv2D", 3: "SeparableConv1D"}.get(len(shapes["depthwise_kernel"]), "")
    if {"depthwise_kernel"} <= roles <= {"depthwise_kernel", "bias"}:
        return {4: "DepthwiseConv2D", 3: "DepthwiseConv1D"}.get(len(shapes["depthwise_kernel"]), "")
    if {"moving_mean", "moving_variance"} <= roles <= {"moving_mean", "moving_variance", "gamma", "beta"}:
        return "BatchNormalization"
    if not {"kernel"} <= roles <= {"kernel", "bias"}:
        return ""
    kernel, bias = shapes["kernel"], shapes.get("bias")
    if len(kernel) == 2 and bias in (None, kernel[1:]):
        return "Dense"
    if len(kernel) != 4:
        return ""
    one = kernel[3] == 1 and kernel[2] > 1  # either a Keras 3 depthwise kernel or a Conv2D with a single filter
    if bias is None:
        return "" if one else "Conv2D"
    if len(bias) == 1 and bias[0] in (kernel[0], kernel[3]):
        return "Conv2D"
    return "DepthwiseConv2D" if bias == (kernel[2] * kernel[3],) and one else ""


# Settings of layers in a uniform format


def activation_of(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (name, parameters) of a layer's activation, which Keras writes as a name or an object holding it."""
    value = settings.get("activation")
    if isinstance(value, Mapping):
        inner = value.get("config")
        if isinstance(inner, Mapping):  # an activation layer instead of a function
            return layer_activation(str(value["class_name"]), inner)
        value = inner or value.get("class_name")
    return str(value or "linear"), {}


def layer_activation(kind: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (name, parameters) of an activation layer, one of `ACTIVATIONS`."""
    if kind == "Activation":
        return activation_of(settings)
    if kind == "ReLU":
        words = ("max_value", "threshold", "negative_slope")
        return "relu", {word: None if settings.get(word) is None else number_of(settings[word]) for word in words}
    if kind == "LeakyReLU":
        slope = settings.get("negative_slope", settings.get("alpha", 0.3))
        return "leaky_relu", {"negative_slope": number_of(slope)}
    if kind == "ELU":
        return "elu", {"alpha": number_of(settings.get("alpha", 1.0))}
    if kind == "Softmax":
        axis = settings.get("axis", -1)
        return "softmax", {"axis": axis_of(axis)}
    raise ValueError(f"the activation {kind} is not known here")


def number_of(value: Any) -> float:
    """Return a number, also if stored as {"type": "ndarray", "value": 0.1}, as Keras 1 and 2 wrote some."""
    return float(value["value"] if isinstance(value, Mapping) else value)


def axis_of(value: Any) -> int:
    """Return an axis not counting the batch: 1 becomes 0, -1 stays -1; tf_keras writes a one-element list."""
    axis = int(value[0] if isinstance(value, list | tuple) else value)
    return axis if axis < 0 else axis - 1


def pair_of(value: Any) -> tuple[int, int]:
    """Return a value for each axis; a single number applies to both."""
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)


def edges_of(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ((top, bottom), (left, right)) of a ZeroPadding2D's `padding`, in any of Keras's formats."""
    if isinstance(padding, Mapping):
        top, bottom, left, right = (int(padding.get(f"{side}_pad", 0)) for side in ("top", "bottom", "left", "right"))
        return (top, bottom), (left, right)
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if len(padding) == 4:
        return pair_of(padding[:2]), pair_of(padding[2:])
    rows, columns = padding
    return pair_of(rows), pair_of(columns)
