"""Layout changes against the definitions of the operations that they stand between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch.nn import functional as F

from converters.layouts import ORDERS, chw_rows_from_hwc, flip
from tests.reference.theano_forward import convolve


def test_a_flipped_kernel_in_cross_correlation_is_the_kernel_in_true_convolution():
    random = np.random.default_rng(0)
    image, kernel, bias = random.random((3, 7, 9)), random.random((4, 3, 2, 3)), random.random(4)
    found = F.conv2d(torch.from_numpy(image)[None], torch.from_numpy(flip(kernel).copy()), torch.from_numpy(bias))
    np.testing.assert_allclose(found[0].relu().numpy(), convolve(image, (kernel, bias)), rtol=1e-12)


def test_the_true_convolution_of_the_reference_is_that_of_numpy():
    """A single row is `numpy.convolve`, whose definition nobody disputes."""
    random = np.random.default_rng(1)
    row, kernel = random.random(9), random.random(4)
    found = convolve(row[None, None], (kernel[None, None, None], np.zeros(1)))
    np.testing.assert_allclose(found[0, 0], np.convolve(row, kernel, "valid"), rtol=1e-12)


def test_a_transposed_dense_kernel_gives_the_same_products():
    random = np.random.default_rng(2)
    vector, kernel = random.random(5), random.random((5, 3))
    np.testing.assert_allclose(ORDERS[None](kernel) @ vector, vector @ kernel, rtol=1e-12)


def test_a_kernel_of_keras_2_in_its_own_sum_is_the_transposed_one_in_pytorch():
    """Keras: out[y, x, o] = sum of in[y + i, x + j, c] * kernel[i, j, c, o]."""
    random = np.random.default_rng(3)
    image, kernel = random.random((6, 7, 3)), random.random((2, 4, 3, 5))
    expected = np.einsum("yxcij,ijco->yxo", sliding_window_view(image, (2, 4), (0, 1)), kernel)
    found = F.conv2d(torch.from_numpy(image.transpose(2, 0, 1))[None], torch.from_numpy(ORDERS["hwio"](kernel).copy()))
    np.testing.assert_allclose(found[0].numpy().transpose(1, 2, 0), expected, rtol=1e-12)


def test_a_depthwise_kernel_in_its_own_sum_is_a_kernel_in_groups_in_pytorch():
    """TensorFlow: out[y, x, c * multiplier + q] = sum of in[y + i, x + j, c] * kernel[i, j, c, q]."""
    random = np.random.default_rng(4)
    image, kernel = random.random((6, 7, 3)), random.random((2, 4, 3, 5))
    expected = np.einsum("yxcij,ijcq->yxcq", sliding_window_view(image, (2, 4), (0, 1)), kernel).reshape(5, 4, 15)
    weight = torch.from_numpy(ORDERS["depthwise"](kernel).copy())
    found = F.conv2d(torch.from_numpy(image.transpose(2, 0, 1))[None], weight, groups=3)
    np.testing.assert_allclose(found[0].numpy().transpose(1, 2, 0), expected, rtol=1e-12)


def test_reordered_rows_give_the_same_products_behind_the_other_flatten():
    random = np.random.default_rng(5)
    maps, kernel = random.random((2, 3, 4)), random.random((24, 5))  # height, width, channels
    found = maps.transpose(2, 0, 1).reshape(-1) @ chw_rows_from_hwc(kernel, (2, 3))
    np.testing.assert_allclose(found, maps.reshape(-1) @ kernel, rtol=1e-12)


def test_rows_that_are_no_feature_map_are_refused():
    with pytest.raises(ValueError, match="25 rows are no multiple of the 2x3 cells of a feature map"):
        chw_rows_from_hwc(np.zeros((25, 5)), (2, 3))
