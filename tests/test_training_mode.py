"""Every public function that runs a network in eval mode refuses one in training mode, in the same sentence."""

from __future__ import annotations

import pytest

import convnets_torch as ct
from tests.test_threads import CALLS, make, pictures

EITHER = {  # answer in training mode too, or run no network of the caller's
    "network", "record_activations", "run_to", "score_map", "cell_strides", "densify", "first_kernels",
    "with_last_layer", "with_temperature", "save", "another's numbers", "another's module", "strict", "lenient",
}  # fmt: skip
FURTHER = {
    "export": lambda network, path: ct.export(network, path.with_suffix(".pt2")),
    "engine": lambda network, path: ct.engine(network),
}
RUN = {name: call for name, call in (CALLS | FURTHER).items() if name not in EITHER}


@pytest.mark.parametrize(
    "part", ["", *(pytest.param(part, marks=pytest.mark.slow) for part in ("head", "features.conv_2"))]
)
@pytest.mark.parametrize("name", sorted(RUN))
def test_training_mode_is_refused(name, part, tmp_path):
    network = make()
    module = network.get_submodule(part)
    module.train()
    path = pictures(tmp_path)[0]
    before = set(tmp_path.rglob("*.pt2"))
    sentence = r"^the network is in training mode, where its answers are random; call network\.eval\(\)$"
    with pytest.raises(ValueError, match=sentence):
        RUN[name](network, path)
    assert module.training  # left as it was
    assert set(tmp_path.rglob("*.pt2")) == before
