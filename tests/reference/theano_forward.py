"""convnets-keras from the definitions, in plain NumPy: what the arrays of a file mean to Keras 1 on Theano.

A second derivation, slow and short: it shares no code with the converter or the networks. Convolution is the
true one, out[y, x] = sum over i, j of kernel[i, j] * image[y - i, x - j], so nothing is ever flipped.
"""

from __future__ import annotations

import numpy as np


def convolve(image, layer, padding=0, stride=1):
    """image (C, H, W), layer: kernel (O, C, h, w) and bias (O,) -> rectified (O, H', W')."""
    kernel, bias = layer
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    height, width = kernel.shape[2:]
    rows = (image.shape[1] - height) // stride + 1
    columns = (image.shape[2] - width) // stride + 1
    total = np.zeros((len(kernel), rows * columns), image.dtype)
    for i in range(height):
        for j in range(width):
            # kernel[i, j] meets the pixel i above and j left of the far corner of its window
            top, left = height - 1 - i, width - 1 - j
            seen = image[:, top : top + rows * stride : stride, left : left + columns * stride : stride]
            total += kernel[:, :, i, j] @ seen.reshape(len(image), -1)
    return np.maximum(total.reshape(-1, rows, columns) + bias[:, None, None], 0)


def pool(image, size, stride):
    """The maximum of each window; windows that do not fit are left out."""
    rows = (image.shape[1] - size) // stride + 1
    columns = (image.shape[2] - size) // stride + 1
    windows = [
        image[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
        for i in range(size)
        for j in range(size)
    ]
    return np.max(windows, axis=0)


def normalize_across_channels(image, alpha=1e-4, k=2.0, beta=0.75, n=5):
    """Each value over (k + alpha * squares of its n neighbouring channels) ** beta."""
    scale = np.full_like(image, k)
    for channel in range(len(image)):
        near = image[max(0, channel - n // 2) : channel + n // 2 + 1]
        scale[channel] += alpha * np.square(near).sum(axis=0)
    return image / scale**beta


def dense(features, layers):
    """Flatten channels first, three dense layers, no softmax: logits (classes,)."""
    vector = features.reshape(-1)
    for name in ("dense_1", "dense_2"):
        kernel, bias = layers[name]
        vector = np.maximum(vector @ kernel + bias, 0)
    kernel, bias = layers["dense_3"]
    return vector @ kernel + bias


def in_two_groups(image, name, layers, padding):
    """Each half of the kernels sees one half of the channels."""
    halves = np.split(image, 2)
    return np.concatenate([convolve(half, layers[f"{name}_{i}"], padding) for i, half in enumerate(halves, 1)])


def alexnet(image, layers):
    """image (3, 227, 227) and layer name -> (kernel, bias) as stored -> logits."""
    image = normalize_across_channels(pool(convolve(image, layers["conv_1"], stride=4), 3, 2))
    image = normalize_across_channels(pool(in_two_groups(image, "conv_2", layers, 2), 3, 2))
    image = convolve(image, layers["conv_3"], padding=1)
    image = in_two_groups(in_two_groups(image, "conv_4", layers, 1), "conv_5", layers, 1)
    return dense(pool(image, 3, 2), layers)


def vgg(image, layers):
    """image (3, 224, 224) and layer name -> (kernel, bias) as stored -> logits."""
    for block in range(1, 6):
        for conv in range(1, 5):
            if f"conv{block}_{conv}" in layers:
                image = convolve(image, layers[f"conv{block}_{conv}"], padding=1)
        image = pool(image, 2, 2)
    return dense(image, layers)
