"""Make the golden test data of tests/data with the original frameworks: real Keras 1 and 0.3 on real Theano.

    python scripts/make_fixtures.py keras1 tests/data/keras1    # in an environment with Keras 1.2.2
    python scripts/make_fixtures.py keras0 tests/data/keras0    # in an environment with Keras 0.3.3

The networks are those of convnets-keras (keras1) and of the VGG gists before it (keras0), with fewer channels. Their
weights are random, from explicit seeds, on a coarse binary grid so that the files compress well.

Each of the two environments is a Python 3.11 with a C++ compiler and OpenBLAS (Debian's g++ and libopenblas-dev):

    pip install 'setuptools<65' wheel numpy==1.23.5 scipy==1.10.1 h5py==3.8.0 six pyyaml
    pip install --no-build-isolation --no-deps Theano==1.0.5 Keras==1.2.2    # or Keras==0.3.3

The script sets the environment variables of Theano and Keras, and restores what newer Pythons removed.
Keras is therefore imported inside functions, after `revive_theano`.
"""

import argparse
import collections
import collections.abc
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.reference.pictures import picture  # needs the line above
from tests.reference.random_weights import GAIN, LEAST_RATIO, on_grid

MEAN = {"rgb": (123.68, 116.779, 103.939), "bgr": (103.939, 116.779, 123.68)}  # of ImageNet, on pixels 0 to 255
VGG_WIDTHS = (64, 128, 256, 512, 512)  # channels of the five blocks, before they are divided
VGG16, VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)  # convolutions in each block
DENSE = (24, 40)  # widths of the first two dense layers: unequal, so that a swap shows
BIAS = 4.0  # standard deviation; activations are of order 20 to 200
LEAST_LRN_EFFECT = 0.1  # of the probability goes to other classes when alpha of the LRN is five times off


@dataclass(frozen=True)
class Fixture:
    """One network and its inputs; sizes are (height, width) in pixels, seeds those of `picture`."""

    build: Callable[..., Any]  # returns the Keras model; called with heatmap=True where there is a heatmap_size
    channels: str  # "rgb" or "bgr"
    size: tuple[int, int]  # of the pictures for `softmax`
    weight_seed: int
    logit_gain: float  # scales the last layer: with random weights it decides how certain the softmax is
    seeds: tuple[int, ...] = (11, 12)  # one picture each
    heatmap_size: tuple[int, int] | None = None  # of the pictures for `heatmap`
    heatmap_seeds: tuple[int, ...] = (13,)


ArgSpec = collections.namedtuple("ArgSpec", "args varargs keywords defaults")  # what `inspect.getargspec` returned


def revive_theano() -> None:
    """Make Theano 1.0.5 and the Keras of its time importable; call it before anything imports them."""
    home = os.environ["HOME"]
    os.environ["KERAS_BACKEND"] = "theano"
    os.environ["THEANO_FLAGS"] = (
        "device=cpu,floatX=float32,cxx=g++,blas.ldflags=-lopenblas,gcc.cxxflags=-fpermissive,"
        f"base_compiledir={home}/.theano"
    )
    for name in ("Callable", "Iterable", "Mapping", "MutableSet", "ValuesView"):
        setattr(collections, name, getattr(collections.abc, name))  # left `collections` in Python 3.10
    vars(inspect)["getargspec"] = lambda function: ArgSpec(*inspect.getfullargspec(function)[:4])  # left in Python 3.11
    sys.setrecursionlimit(50_000)  # Theano walks the graph of a whole network recursively
    with tempfile.TemporaryDirectory() as os.environ["HOME"]:  # Keras writes settings there, which Keras 3 would obey
        backend = import_module("keras.backend")
    os.environ["HOME"] = home
    import_module("theano.ifelse")  # Keras uses it without importing it
    if hasattr(backend, "set_image_dim_ordering"):  # Keras 0.3 takes the order at each layer, Theano's by default
        backend.set_image_dim_ordering("th")
    read_names_as_bytes()


def read_names_as_bytes() -> None:
    """Let h5py 3 return the text in a file as bytes, as h5py 2 did and Keras 1 and 2 expect of it."""
    attributes = import_module("h5py").AttributeManager
    read = attributes.__getitem__

    def as_bytes(self: Any, name: str) -> Any:
        value = read(self, name)
        if isinstance(value, np.ndarray) and value.dtype == object:
            return [text.encode() if isinstance(text, str) else text for text in value]
        return value.encode() if isinstance(value, str) else value

    attributes.__getitem__ = as_bytes


def vgg_features(depths: tuple[int, ...], divisor: int, size: tuple[int | None, int | None]) -> Any:
    """Return the convolutions of a VGG as a Sequential, for Keras 0.3 and 1."""
    conv = import_module("keras.layers.convolutional")
    model = import_module("keras.models").Sequential()
    for block, (width, depth) in enumerate(zip(VGG_WIDTHS, depths, strict=True), start=1):
        for number in range(1, depth + 1):
            first = {} if model.layers else {"input_shape": (3, *size)}
            model.add(conv.ZeroPadding2D((1, 1), **first))
            model.add(conv.Convolution2D(width // divisor, 3, 3, activation="relu", name=f"conv{block}_{number}"))
        model.add(conv.MaxPooling2D((2, 2), strides=(2, 2)))
    return model


def vgg(*, depths: tuple[int, ...], heatmap: bool = False, classes: int = 60) -> Any:
    """VGG16 or VGG19 as convnets-keras has it, an eighth as wide."""
    layers = import_module("keras.layers")
    model = vgg_features(depths, divisor=8, size=(None, None) if heatmap else (224, 224))
    if heatmap:
        model.add(layers.Convolution2D(DENSE[0], 7, 7, activation="relu", name="dense_1"))
        model.add(layers.Convolution2D(DENSE[1], 1, 1, activation="relu", name="dense_2"))
        model.add(layers.Convolution2D(classes, 1, 1, name="dense_3"))
        model.add(softmax_4d())
    else:
        model.add(layers.Flatten(name="flatten"))
        model.add(layers.Dense(DENSE[0], activation="relu", name="dense_1"))
        model.add(layers.Dropout(0.5))
        model.add(layers.Dense(DENSE[1], activation="relu", name="dense_2"))
        model.add(layers.Dropout(0.5))
        model.add(layers.Dense(classes, name="dense_3"))
        model.add(layers.Activation("softmax", name="softmax"))
    return model


def old_vgg(*, depths: tuple[int, ...], classes: int = 60) -> Any:
    """VGG16 or VGG19 as the gists for Keras 0.x have it, a sixteenth as wide: the softmax is part of the last layer."""
    core = import_module("keras.layers.core")
    model = vgg_features(depths, divisor=16, size=(224, 224))
    model.add(core.Flatten())
    model.add(core.Dense(DENSE[0], activation="relu"))
    model.add(core.Dropout(0.5))
    model.add(core.Dense(DENSE[1], activation="relu"))
    model.add(core.Dropout(0.5))
    model.add(core.Dense(classes, activation="softmax"))
    return model


def alexnet(*, heatmap: bool = False, classes: int = 1000, lrn_alpha: float = 1e-4) -> Any:
    """AlexNet as convnets-keras has it, an eighth as wide."""
    layers = import_module("keras.layers")

    def conv(filters: int, side: int, name: str, x: Any) -> Any:
        return layers.Convolution2D(filters // 8, side, side, activation="relu", name=name)(x)

    def two_groups(filters: int, side: int, name: str, x: Any) -> Any:
        halves = [conv(filters // 2, side, f"{name}_{half + 1}", split_channels(half)(x)) for half in range(2)]
        return layers.merge(halves, mode="concat", concat_axis=1, name=name)

    inputs = layers.Input(shape=(3, None, None) if heatmap else (3, 227, 227))
    x = layers.Convolution2D(96 // 8, 11, 11, subsample=(4, 4), activation="relu", name="conv_1")(inputs)
    x = layers.MaxPooling2D((3, 3), strides=(2, 2))(x)
    x = normalise_across_channels(lrn_alpha, name="convpool_1")(x)
    x = two_groups(256, 5, "conv_2", layers.ZeroPadding2D((2, 2))(x))
    x = layers.MaxPooling2D((3, 3), strides=(2, 2))(x)
    x = normalise_across_channels(lrn_alpha)(x)
    x = conv(384, 3, "conv_3", layers.ZeroPadding2D((1, 1))(x))
    x = two_groups(384, 3, "conv_4", layers.ZeroPadding2D((1, 1))(x))
    x = two_groups(256, 3, "conv_5", layers.ZeroPadding2D((1, 1))(x))
    x = layers.MaxPooling2D((3, 3), strides=(2, 2), name="convpool_5")(x)
    if heatmap:
        x = layers.Convolution2D(DENSE[0], 6, 6, activation="relu", name="dense_1")(x)
        x = layers.Convolution2D(DENSE[1], 1, 1, activation="relu", name="dense_2")(x)
        x = layers.Convolution2D(classes, 1, 1, name="dense_3")(x)
        x = softmax_4d()(x)
    else:
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(DENSE[0], activation="relu", name="dense_1")(x)
        x = layers.Dropout(0.5)(x)
        x = layers.Dense(DENSE[1], activation="relu", name="dense_2")(x)
        x = layers.Dropout(0.5)(x)
        x = layers.Dense(classes, name="dense_3")(x)
        x = layers.Activation("softmax", name="softmax")(x)
    return import_module("keras.models").Model(input=inputs, output=x)


def normalise_across_channels(alpha: float, k: float = 2, beta: float = 0.75, n: int = 5, **name: str) -> Any:
    """The Lambda layer that convnets-keras calls `crosschannelnormalization`: it adds alpha times each of n squares."""
    backend = import_module("keras.backend")

    def normalise(x: Any) -> Any:
        channels = x.shape[1]
        channels_last = backend.permute_dimensions(backend.square(x), (0, 2, 3, 1))
        padded = backend.spatial_2d_padding(channels_last, (0, n // 2))  # the last axis, which here holds the channels
        squares = backend.permute_dimensions(padded, (0, 3, 1, 2))
        scale = k
        for neighbour in range(n):
            scale += alpha * squares[:, neighbour : neighbour + channels, :, :]
        return x / scale**beta

    return import_module("keras.layers").Lambda(normalise, output_shape=lambda shape: shape, **name)


def split_channels(half: int) -> Any:
    """The Lambda layer that convnets-keras calls `splittensor`: the first or second half of the channels."""

    def split(x: Any) -> Any:
        width = x.shape[1] // 2
        return x[:, half * width : (half + 1) * width, :, :]

    return import_module("keras.layers").Lambda(split, output_shape=lambda shape: (shape[0], shape[1] // 2, *shape[2:]))


def softmax_4d() -> Any:
    """The layer `Softmax4D(axis=1)` of convnets-keras: Keras 1 has no softmax over the channels of a map."""
    backend = import_module("keras.backend")

    def softmax(x: Any) -> Any:
        e = backend.exp(x - backend.max(x, axis=1, keepdims=True))
        return e / backend.sum(e, axis=1, keepdims=True)

    return import_module("keras.layers").Lambda(softmax, output_shape=lambda shape: shape, name="softmax")


def set_random_weights(model: Any, fixture: Fixture) -> None:
    """Give every layer random weights that keep activations alive, and biases."""
    random = np.random.RandomState(fixture.weight_seed)
    with_weights = [layer for layer in model.layers if layer.get_weights()]
    for layer in with_weights:
        kernel_shape, bias_shape = (array.shape for array in layer.get_weights())
        inputs = (
            (1, 2, 3) if len(kernel_shape) == 4 else (0,)
        )  # axes: OIHW of a convolution, (in, out) of a dense layer
        kernel = random.standard_normal(kernel_shape)
        kernel -= kernel.mean(inputs, keepdims=True)  # else ReLUs make all pictures look alike to deep layers
        kernel *= GAIN / np.sqrt(np.prod([kernel_shape[axis] for axis in inputs]))
        bias = BIAS * random.standard_normal(bias_shape)
        if layer is with_weights[-1]:
            kernel, bias = kernel * fixture.logit_gain, bias * fixture.logit_gain
        layer.set_weights([on_grid(kernel), on_grid(bias)])


def as_heatmap(model: Any, heatmap_model: Any) -> Any:
    """Copy the weights of `model` as convnets-keras does; the flip undoes that of the Theano convolution to come."""
    for layer in heatmap_model.layers:
        if layer.name.startswith("conv"):
            layer.set_weights(model.get_layer(layer.name).get_weights())
        elif layer.name.startswith("dense"):
            kernel, bias = model.get_layer(layer.name).get_weights()
            filters, channels, rows, columns = layer.get_weights()[0].shape
            kernel = kernel.reshape((channels, rows, columns, filters)).transpose((3, 0, 1, 2))
            layer.set_weights([kernel[:, :, ::-1, ::-1], bias])
    return heatmap_model


def batch(seeds: tuple[int, ...], size: tuple[int, int], channels: str) -> np.ndarray:
    """Pictures (N, 3, H, W), float32, normalised as convnets-keras does: the mean subtracted, RGB or BGR."""
    pixels = np.stack([picture(seed, *size) for seed in seeds]).astype(np.float32)
    if channels == "bgr":
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray((pixels - np.array(MEAN[channels], np.float32)).transpose(0, 3, 1, 2))


def predict(model: Any, pictures: np.ndarray) -> np.ndarray:
    """Run a model's own `predict`, which Keras 0.3 allows only after compiling."""
    model.compile(optimizer="sgd", loss="categorical_crossentropy")
    return model.predict(pictures).astype(np.float32)  # Keras 0.3 puts the float32 of Theano into float64


def check_spread(softmax: np.ndarray) -> None:
    """Raise if rounding could change the order of probabilities, or if they hardly depend on the weights."""
    classes = softmax.shape[1]
    for row in softmax:
        ids = row.argsort()[::-1][:5]
        best = row[ids]
        ratios = best[:-1] / best[1:]
        print(f"  best five {ids.tolist()}: {np.array2string(best, precision=4)}, ratios {ratios.round(3)}")
        if ratios.min() < LEAST_RATIO:
            raise ValueError(f"two of the best five are a factor {ratios.min():.4f} apart; try another weight_seed")
        if not 4 / classes < best[0] < 0.8:
            raise ValueError(f"the best of {classes} classes has {best[0]:.4f}; try another logit_gain")


def check_lrn(path: Path, pictures: np.ndarray, softmax: np.ndarray) -> None:
    """Raise if AlexNet weights cannot distinguish this LRN from one that divides or multiplies alpha by n."""
    for alpha in (1e-4 / 5, 1e-4 * 5):
        other = alexnet(lrn_alpha=alpha)
        other.load_weights(str(path))
        moved = np.abs(predict(other, pictures) - softmax).sum(axis=1).min() / 2
        print(f"  LRN with alpha {alpha:.0e} moves {moved:.2f} of the probability to other classes")
        if moved < LEAST_LRN_EFFECT:
            raise ValueError(f"alpha {alpha:.0e} moves only {moved:.4f} of the probability; use larger weights")


def make_fixture(name: str, fixture: Fixture, folder: Path) -> None:
    """Write `<name>.h5` by `save_weights` of Keras, and `<name>.npz` with what the reloaded network predicts."""
    common = import_module("keras.backend.common")
    if hasattr(common, "reset_uids"):  # Keras 1 numbers layers without a name, from 1 in a fresh process
        common.reset_uids()
    path = folder / f"{name}.h5"
    model = fixture.build()
    set_random_weights(model, fixture)
    model.save_weights(str(path), overwrite=True)

    reloaded = fixture.build()
    reloaded.load_weights(str(path))
    pictures = batch(fixture.seeds, fixture.size, fixture.channels)
    softmax = predict(reloaded, pictures)
    np.testing.assert_array_equal(softmax, predict(model, pictures))
    print(f"{name}: {path.stat().st_size:,} bytes, {len(model.layers)} layers, {model.count_params():,} parameters")
    check_spread(softmax)
    outputs: dict[str, Any] = {"softmax": softmax, "seeds": fixture.seeds, "size": fixture.size}

    if fixture.heatmap_size is not None:
        large = batch(fixture.heatmap_seeds, fixture.heatmap_size, fixture.channels)
        heatmap = predict(as_heatmap(reloaded, fixture.build(heatmap=True)), large)
        print(f"  heatmap {heatmap.shape}, best classes {heatmap[0].argmax(axis=0).tolist()}")
        outputs |= {"heatmap": heatmap, "heatmap_seeds": fixture.heatmap_seeds, "heatmap_size": fixture.heatmap_size}
    if fixture.build is alexnet:
        check_lrn(path, pictures, softmax)
    np.savez_compressed(folder / f"{name}.npz", **outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make golden test data with the original frameworks.")
    parser.add_argument("keras", choices=FIXTURES, help="keras1 needs Keras 1.2.2, keras0 needs Keras 0.3.3")
    parser.add_argument("folder", type=Path, help="where the .h5 and .npz files go, as tests/data/keras1")
    arguments = parser.parse_args()
    version, fixtures = FIXTURES[arguments.keras]
    revive_theano()
    found = import_module("keras").__version__
    if found != version:
        raise ImportError(f"this is Keras {found}, but {arguments.keras} is made by {version}; see the docstring")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, fixture in fixtures.items():
        make_fixture(name, fixture, arguments.folder)


LARGE = (288, 352)  # gives a VGG heatmap of 3 x 5
KERAS1 = {
    "alexnet": Fixture(alexnet, "rgb", (227, 227), heatmap_size=(291, 355), weight_seed=1, logit_gain=0.12),
    "vgg16": Fixture(partial(vgg, depths=VGG16), "bgr", (224, 224), heatmap_size=LARGE, weight_seed=2, logit_gain=0.01),
    "vgg19": Fixture(partial(vgg, depths=VGG19), "bgr", (224, 224), heatmap_size=LARGE, weight_seed=7, logit_gain=0.01),
}
KERAS0 = {
    "vgg16": Fixture(partial(old_vgg, depths=VGG16), "bgr", (224, 224), weight_seed=4, logit_gain=0.012),
    "vgg19": Fixture(partial(old_vgg, depths=VGG19), "bgr", (224, 224), weight_seed=5, logit_gain=0.012),
}
FIXTURES = {"keras1": ("1.2.2", KERAS1), "keras0": ("0.3.3", KERAS0)}

if __name__ == "__main__":
    main()
