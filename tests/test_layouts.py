"""Layout changes against the definitions of the operations that they stand between."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from converters.layouts import flip, transpose_dense
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
    np.testing.assert_allclose(transpose_dense(kernel) @ vector, vector @ kernel, rtol=1e-12)
