"""The doctor runs its networks where it is told to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converters.doctor.doctor import diagnose
from converters.doctor.evidence import Golden
from convnets_torch.images.preprocessing import normalize
from convnets_torch.weights import load, save
from tests.reference.pictures import picture
from tests.test_doctor import flipped


@pytest.fixture
def golden(vgg) -> Golden:
    """Pictures, and what the network answers to them."""
    pictures = np.stack([picture(seed, *vgg.size) for seed in range(3)])
    with torch.inference_mode():
        inputs = np.stack([normalize(each, vgg.card.preprocessing) for each in pictures])
        return Golden(pictures, vgg(torch.from_numpy(inputs)).numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_fault_is_found_on_cuda(vgg, golden, tmp_path):
    diagnosis = diagnose(flipped(vgg).to("cuda"), golden=golden)
    assert (diagnosis.verdict, len(diagnosis.winner.changes)) == ("corrected", 1)
    save(diagnosis.network, tmp_path / "mended.safetensors")
    assert all(
        torch.equal(array, vgg.state_dict()[name])
        for name, array in load(tmp_path / "mended.safetensors").state_dict().items()
    )


def test_the_command_takes_a_device(vgg, golden, tmp_path, command):
    weights, recorded = tmp_path / "flipped.safetensors", ["--golden", tmp_path / "x.npy", tmp_path / "y.npy"]
    save(flipped(vgg), weights)
    np.save(recorded[1], golden.inputs)
    np.save(recorded[2], golden.outputs)
    code, out, _ = command("doctor", weights, *recorded, "--device", "cpu")
    assert (code, "kernels are flipped" in out) == (0, True), out
    code, _, said = command("doctor", weights, *recorded, "--device", "cuda:99")
    assert (code, "device cuda:99 is not available" in said) == (1, True)
