"""Random weights for narrow networks of Keras, with outputs that tell right readings of a file from wrong ones."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from tests.reference.goldens import Golden

GAIN = 1.7  # kernels that sum to zero keep their variance through a ReLU at 1 / sqrt(1/2 - 1/2pi)
STEPS = 8  # weights are rounded to steps of about an eighth of their standard deviation
LEAST_RATIO = 1.01  # between successive probabilities among the best five
SPREAD = 1.5  # standard deviation of the logits over the classes, about
MOST_NOISE = 5e-5  # of the outputs, by rounding errors; deep narrow networks magnify them more or less
LEAST_MOVE = 0.03  # of the outputs that a wrong reading of the file must move: far more than float32 does


def on_grid(values: np.ndarray) -> np.ndarray:
    """Round to multiples of a power of two: such float32 numbers end in zeros and compress well."""
    step = 2.0 ** np.floor(np.log2((values.std() or np.abs(values).max()) / STEPS))
    return (np.round(values / step) * step).astype(np.float32)


def with_weights(model: Any) -> list[Any]:
    """The innermost layers of a model that have weights, in order."""
    found = []
    for layer in model.layers:
        found += with_weights(layer) if hasattr(layer, "layers") else [layer] if layer.weights else []
    return found


def is_oihw(golden: Golden) -> bool:
    """Whether convolution kernels are (out, in, height, width); else (height, width, in, out)."""
    return golden.version.startswith("1") and golden.data_format == "channels_first"


def set_random_weights(model: Any, golden: Golden, attempt: int) -> None:
    """Weights that keep activations alive; the statistics of batch normalisation are such that its epsilon shows."""
    random = np.random.RandomState(zlib.crc32(golden.answers.replace(".npz", ".h5").encode()) + attempt)
    normalised = not golden.network.startswith("vgg")
    scale = 0.2 if normalised else 1.0
    bias = 4.0 if golden.pixels == "keras-caffe" and not normalised else 0.1
    for number, layer in enumerate(with_weights(model)):
        shapes = [array.shape for array in layer.get_weights()]
        if type(layer).__name__ == "BatchNormalization":
            gamma = [random.uniform(0.6, 1.4, shapes[0])] if len(shapes) == 4 else []
            calm = 2 if golden.full and golden.network == "resnet50" else 1  # its 16 sums magnify rounding errors
            variance = calm * random.uniform(0.01, 0.08, shapes[0])
            statistics = [0.1 * random.standard_normal(shapes[0]), variance]
            layer.set_weights(
                [on_grid(array) for array in [*gamma, 0.3 * random.standard_normal(shapes[0]), *statistics]]
            )
            continue
        inputs = (1, 2, 3) if is_oihw(golden) else (0, 1, 2)
        axes = (0,) if len(shapes[0]) == 2 else inputs
        kernel = random.standard_normal(shapes[0])
        kernel -= kernel.mean(axes, keepdims=True)  # else ReLUs make all pictures look alike to deep layers
        kernel *= scale * GAIN / np.sqrt(np.prod([shapes[0][axis] for axis in axes]))
        if number == 0 and normalised and golden.pixels == "keras-caffe":
            kernel /= 64  # pixels are of the order of 64
        biases = [bias * random.standard_normal(shape) for shape in shapes[1:]]
        layer.set_weights([on_grid(array) for array in (kernel, *biases)])


def scale_logits(model: Any, pictures: np.ndarray, golden: Golden) -> None:
    """Scale the last layer by a power of two, so that some classes are likelier than others and none is certain."""
    last = with_weights(model)[-1]
    small = 2.0**-12  # at first: nothing saturates
    weights = last.get_weights()
    last.set_weights([array * np.float32(small) for array in weights])
    outputs = model.predict(pictures).astype(np.float64)
    logits = np.log(outputs / (1 - outputs)) if golden.activation == "sigmoid" else np.log(outputs)
    spread = np.abs(logits).mean() if golden.activation == "sigmoid" else logits.std(axis=1).mean()
    factor = small * 2.0 ** np.round(np.log2(SPREAD / spread))
    last.set_weights([array * np.float32(factor) for array in weights])


def useful(outputs: np.ndarray, golden: Golden) -> bool:
    """Whether rounding could not change the order of outputs, they do not saturate, and they depend on the picture."""
    if golden.top == "none":
        return bool((outputs.std(axis=(0, 2, 3)) > 0).mean() > 0.6)  # of the channels are alive
    best = np.sort(outputs, axis=1)[:, ::-1][:, :5]
    apart = golden.classes == 1 or (best[:, :-1] / best[:, 1:]).min() > LEAST_RATIO
    return bool(
        apart
        and 0.02 < best[:, 0].min() < best[:, 0].max() < 0.98
        and np.ptp(outputs, axis=0).max() > (0.005 if golden.full else LEAST_MOVE)
    )


def noise(model: Any, pictures: np.ndarray, outputs: np.ndarray) -> float:
    """How far rounding errors in all weights move the outputs, as a part of the largest: about what float32 does."""
    random, layers = np.random.RandomState(0), with_weights(model)
    right = [layer.get_weights() for layer in layers]
    for layer, arrays in zip(layers, right, strict=True):
        errors = [2.0**-22 * random.choice([-1, 1], array.shape) for array in arrays]
        layer.set_weights([array * (1 + error).astype(np.float32) for array, error in zip(arrays, errors, strict=True)])
    moved = np.abs(model.predict(pictures) - outputs).max() / np.abs(outputs).max()
    for layer, arrays in zip(layers, right, strict=True):
        layer.set_weights(arrays)
    return float(moved)


def choose_weights(model: Any, pictures: np.ndarray, golden: Golden) -> None:
    """Random weights, the first that give useful outputs which float32 computes well."""
    for attempt in range(20):
        set_random_weights(model, golden, attempt)
        if golden.top != "none":
            scale_logits(model, pictures, golden)
        outputs = model.predict(pictures)
        channels_first = np.moveaxis(outputs, -1, 1) if golden.data_format == "channels_last" else outputs
        calm = golden.full or golden.network.startswith("vgg")  # else only some weights are
        if useful(channels_first, golden) and (calm or noise(model, pictures, outputs) < MOST_NOISE):
            return
    raise ValueError(f"{golden.file}: no weights of 20 give useful outputs, the last ones {outputs}")


def check_that_mistakes_show(model: Any, pictures: np.ndarray, outputs: np.ndarray, golden: Golden) -> None:
    """Refuse a network that hardly minds unflipped kernels, or reordered rows in its first dense layer."""
    layers = with_weights(model)
    mistakes = {"unflipped": [layer for layer in layers if layer.get_weights()[0].ndim == 4]}
    dense = [layer for layer in layers if layer.get_weights()[0].ndim == 2]
    if golden.network.startswith("vgg") and golden.top in ("standard", "nested", "nested top"):
        mistakes["rows"] = dense[:1]
    for name, wrong in mistakes.items():
        right = [layer.get_weights() for layer in wrong]
        for layer, (kernel, *others) in zip(wrong, right, strict=True):
            if name == "rows":
                channels = golden.arguments["widths"][-1]
                kernel = kernel.reshape(-1, channels, kernel.shape[1]).swapaxes(0, 1).reshape(kernel.shape)
            else:
                kernel = kernel[:, :, ::-1, ::-1] if is_oihw(golden) else kernel[::-1, ::-1]
            layer.set_weights([np.ascontiguousarray(kernel), *others])
        other = model.predict(pictures)
        for layer, weights in zip(wrong, right, strict=True):
            layer.set_weights(weights)
        moved = np.abs(other - outputs).max() / np.abs(outputs).max()
        if moved < LEAST_MOVE:
            raise ValueError(f"{name} moves only {moved:.4f} of the largest value")
