"""Statistics over pictures when memory runs out."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A process in which the activations of 16 pictures do not fit, and those of some do.
LIMITED = """
import resource, sys, warnings
import numpy as np
import torch
from convnets_torch.explain.statistics import channel_statistics, zero_shares
from convnets_torch import vgg16
from convnets_torch.card import Card
from convnets_torch.inference.batching import MemoryWarning
from convnets_torch.images.preprocessing import preset

torch.manual_seed(0)
network = vgg16(classes=None, widths=(4, 96, 8, 8, 8)).eval()
network.card = Card("vgg16", {"classes": None}, preset("vgg16"), None, "none")
pictures = list(np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), np.uint8))
layers = ["relu1_1", "relu2_1"]  # the second one is too large when the first has been added up
wanted = channel_statistics(network, pictures, layers, batch=1)
shares = zero_shares(network, pictures, "relu2_1", batch=1)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 320_000_000, -1))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = channel_statistics(network, pictures, layers)
    again = zero_shares(network, pictures, "relu2_1")
assert {each.category for each in caught} == {MemoryWarning}, [str(each.message) for each in caught]
for one, other in zip(found.layers, wanted.layers, strict=True):
    assert one.pictures == other.pictures == 16
    for name in ("mean", "standard_deviation", "zeros", "maximum"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-9)
np.testing.assert_allclose(again.shares, shares.shares, atol=1e-6)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_statistics_are_the_same_when_batches_are_halved():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "equal\n"
