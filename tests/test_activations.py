"""What layers give: recorded as it was, under grad and without, with nothing left on the network."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from convnets_torch.explain.activations import hooked, record_activations, run_to
from convnets_torch.explain.layer_names import candidates
from convnets_torch.networks import vgg16
from tests.conftest import NARROW


def images_of(network, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *network.size, generator=torch.Generator().manual_seed(1))


def hooks_of(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def layer_by_layer(network, x: Tensor) -> dict[str, Tensor]:
    """What each child of `features` and `head` gives, by calling one after the other."""
    outputs = {}
    for part in ("features", "head"):
        for name, layer in getattr(network, part).named_children():
            x = layer(x)
            outputs[f"{part}.{name}"] = x
    return outputs


def test_the_record_is_what_running_layer_by_layer_gives(narrow):
    images = images_of(narrow)
    with torch.inference_mode():
        wanted = layer_by_layer(narrow, images)
        with record_activations(narrow, wanted) as activations:
            logits = narrow(images)
        assert list(activations) == list(wanted)
        torch.testing.assert_close(activations, wanted, rtol=0, atol=0)
        torch.testing.assert_close(narrow(images), logits, rtol=0, atol=0)
    assert hooks_of(narrow) == 0


def in_place(network: nn.Module) -> bool:
    return any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.vgg11_bn])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_layers_that_overwrite_their_input_do_not_change_the_record(build, mode):
    """The same weights in a network that overwrites nothing: ReLUs not in place, additions of clones."""
    torch.manual_seed(0)
    network = build(weights=None).eval()
    assert in_place(network)
    wanted: dict[str, Tensor] = {}
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    def keep(name: str, output: Tensor) -> Tensor:
        wanted.setdefault(name, output.detach().clone())
        return output

    leaves = [name for name in candidates(network) if not list(network.get_submodule(name).children())]
    once = [name for name in leaves if not name.endswith("relu")]  # ResNet's blocks call theirs twice
    with mode():
        with hooked(network, once, keep):
            logits = network(images)
        with record_activations(network, [*once, "*"]) as activations:
            again = network(images)
    assert len(once) > 15
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    for name in once:
        torch.testing.assert_close(activations[name].detach(), wanted[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("layer", ["features.conv3_2", "features.relu4_3", "features.pool5", "head.dense_1"])
def test_gradients_reach_what_was_recorded(layer):
    """The second derivation: the layers behind it, run by hand on a leaf."""
    torch.manual_seed(0)
    network = NARROW["vgg16"]().eval()
    images = images_of(network)
    with record_activations(network, layer) as activations:
        score = network(images)[:, 3].sum()
    [found] = torch.autograd.grad(score, activations[layer])
    leaf = activations[layer].detach().requires_grad_()
    layers = [
        (f"{part}.{name}", child)
        for part in ("features", "head")
        for name, child in getattr(network, part).named_children()
    ]
    x = leaf
    for _, child in layers[[name for name, _ in layers].index(layer) + 1 :]:
        x = child(x)
    [wanted] = torch.autograd.grad(x[:, 3].sum(), leaf)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gradients_of_a_network_that_overwrites_are_those_of_one_that_does_not():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).double().eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = ["layer2.0.bn2", "layer2.0.conv1", "layer1"]
    gradients = []
    for overwrite in (True, False):
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = overwrite
        with record_activations(network, names) as activations:
            score = network(images)[0, 5]
        gradients.append(torch.autograd.grad(score, [activations[name] for name in names]))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize("where", ["block", "network", "hook"])
def test_no_hook_is_left_after_an_error(where):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LSTM(4, 4) if where == "hook" else nn.ReLU(), nn.Identity())
    if where == "network":
        network[2] = Broken()
    images = torch.zeros(1, 4, 4) if where == "hook" else torch.zeros(1, 3, 8, 8)
    activations: dict[str, Tensor] = {}

    def run() -> None:
        nonlocal activations
        with record_activations(network, "*") as activations:
            network[1 if where == "hook" else slice(None)](images)
            raise KeyError

    with pytest.raises((RuntimeError, KeyError, ValueError), match="1 gives tuple" if where == "hook" else None):
        run()
    assert hooks_of(network) == 0
    assert len(activations) == {"block": 3, "network": 2, "hook": 0}[where]


def test_an_unknown_layer_leaves_no_hook():
    network = NARROW["vgg16"]()
    with pytest.raises(ValueError, match="did you mean"), record_activations(network, ["relu5_1", "relu5_9"]):
        pass
    assert hooks_of(network) == 0


def test_records_within_records():
    network = NARROW["vgg16"]().eval()
    images = images_of(network, 1)
    with torch.inference_mode(), record_activations(network, ["relu1_1", "relu2_1"]) as outer:
        with record_activations(network, ["relu2_1", "relu3_1"]) as inner:
            network(images)
        first = inner["features.relu2_1"]
        network(images + 1)
    torch.testing.assert_close(first, inner["features.relu2_1"], rtol=0, atol=0)
    assert not torch.equal(outer["features.relu2_1"], inner["features.relu2_1"])
    assert list(inner) == ["features.relu2_1", "features.relu3_1"]
    assert hooks_of(network) == 0


def test_the_last_call_is_recorded_and_run_to_gives_the_first():
    network = torchvision.models.resnet18(weights=None).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    calls: list[Tensor] = []

    def see(name: str, output: Tensor) -> Tensor:
        calls.append(output)
        return output.clone()

    with torch.inference_mode():
        with hooked(network, ["layer1.0.relu"], see), record_activations(network, "layer1.0.relu") as activations:
            network(images)
        assert len(calls) == 2
        torch.testing.assert_close(activations["layer1.0.relu"], calls[1], rtol=0, atol=0)
        found = run_to(network, "layer1.0.relu", images)["layer1.0.relu"]
        torch.testing.assert_close(found, calls[0], rtol=0, atol=0)


def test_run_to_runs_no_further_and_gives_the_same(narrow):
    images = images_of(narrow, 1)
    names = [f"features.{name}" for name, _ in narrow.features.named_children()]
    wanted = names[len(names) // 2]
    reached: list[str] = []
    with torch.inference_mode():
        with hooked(narrow, names, lambda name, output: reached.append(name)):
            found = run_to(narrow, [names[0], wanted], images)
        with record_activations(narrow, [names[0], wanted]) as activations:
            narrow(images)
    torch.testing.assert_close(found, activations, rtol=0, atol=0)
    assert reached[-1] == wanted
    assert hooks_of(narrow) == 0


def test_run_to_takes_images_of_any_size_where_the_head_is_not_wanted():
    network = NARROW["vgg16"]().eval()
    images = torch.zeros(1, 3, 64, 96)
    assert run_to(network, "pool5", images)["features.pool5"].shape == (1, 64, 2, 3)
    with pytest.raises(ValueError, match=r"images are \(64, 96\) pixels"):
        run_to(network, ["pool5", "fc1"], images)
    headless = vgg16(None, widths=(2, 2, 2, 2, 2)).eval()
    assert run_to(headless, "block5_pool", images)["features.pool5"].shape == (1, 2, 2, 3)


class Shifted(nn.Module):
    """A user's module, whose features do not see the images as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.ReLU())
        self.unused = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images - 1)


def test_what_a_module_does_before_its_features_is_not_skipped():
    images = torch.full((1, 3, 2, 2), 3.0)
    found = run_to(Shifted(), "features.0", images)
    torch.testing.assert_close(found, {"features.0": images - 1}, rtol=0, atol=0)
    with pytest.raises(ValueError, match="unused is not run by Shifted; name another layer"):
        run_to(Shifted(), "unused", images)


def test_running_to_layers_keeps_what_a_later_one_overwrites():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)).eval()
    images = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = run_to(network, ["0", "2"], images)
        wanted = network[0](images)
    assert wanted.min() < 0
    torch.testing.assert_close(found["0"], wanted, rtol=0, atol=0)
