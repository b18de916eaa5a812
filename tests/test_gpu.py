"""On CUDA every network answers as on the CPU, in every precision: logits, maps, Grad-CAM."""

from __future__ import annotations

import gc

import pytest
import torch

from convnets_torch import prepare, score_map
from convnets_torch.explain.gradcam import cams
from tests.reference.nearness import differ, with_statistics

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"),
]

# Of the largest number; bfloat16 has 8 bits, float16 has 11. "auto" is bfloat16 where the device has it.
MARGINS = {"exact": 1e-4, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2, "auto": 5e-2}


@pytest.fixture(autouse=True)
def without_tf32():
    """Convolutions in full float32, as PyTorch's products are by default: "exact" and "float32" are held to that."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("precision", MARGINS)
def test_every_network_answers_as_on_the_cpu(narrow, precision):
    with_statistics(narrow)
    images = torch.randn(2, 3, *narrow.size)
    larger = torch.randn(1, 3, narrow.size[0] + 64, narrow.size[1] + 96)
    ready = prepare(narrow, device=DEVICE, precision=precision)
    some = next(ready.parameters())
    assert some.device.type == DEVICE
    with torch.inference_mode():
        found = ready(images.to(some.device, some.dtype))
        assert differ(found.cpu(), narrow(images)) < MARGINS[precision]
        for options in ({}, {"cell_stride": 16}, {"max_memory": "2500kB"}):
            cells = score_map(ready, larger.to(some.device, some.dtype), **options)
            assert differ(cells.cpu(), score_map(narrow, larger, **options)) < MARGINS[precision]


@pytest.mark.parametrize("precision", ["exact", "float32"])
def test_grad_cam_is_that_of_the_cpu(narrow, precision):
    with_statistics(narrow)
    images = torch.randn(2, 3, *narrow.size)
    ready = prepare(narrow, device=DEVICE, precision=precision)
    wanted = cams(narrow, images, range(10))
    found = cams(ready, images.to(DEVICE), range(10))
    assert found.device.type == DEVICE
    assert differ(found.cpu(), wanted) < 1e-2  # what is near 0 before its ReLU may fall on either side


def test_compiled_networks_answer_the_same(narrow):
    with_statistics(narrow)
    images = torch.randn(2, 3, *narrow.size)
    ready = prepare(narrow, device=DEVICE, precision="float32", compiled=True)
    with torch.inference_mode(), pytest.warns(UserWarning, match="compiled for"):
        found = ready(images.to(DEVICE)).cpu()
    assert differ(found, narrow(images)) < 1e-4


def test_nothing_stays_on_the_device(narrow):
    before = torch.cuda.memory_allocated()
    ready = prepare(with_statistics(narrow), device=DEVICE, precision="float32")
    with torch.inference_mode():
        ready(torch.randn(2, 3, *narrow.size, device=DEVICE))
    del ready
    gc.collect()
    assert torch.cuda.memory_allocated() == before
