"""Eight threads on one network: whatever they call, each gets the answer that it would get alone."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convnets_torch as ct
from convnets_torch.card import Card
from convnets_torch.embeddings.probe import LabelledVectors, fit_probe
from convnets_torch.evaluation.calibration import with_temperature
from convnets_torch.evaluation.labels import GroundTruth
from convnets_torch.explain.activations import layer_names, run_to
from convnets_torch.explain.channels import activation_grids
from convnets_torch.explain.faithfulness import measure_faithfulness
from convnets_torch.explain.filters import class_patterns, first_kernels
from convnets_torch.explain.gradcam import cams
from convnets_torch.explain.patches import top_patches
from convnets_torch.explain.statistics import channel_statistics, zero_shares
from convnets_torch.images.preprocessing import preset
from convnets_torch.weights import with_last_layer
from tests.conftest import NARROW
from tests.finetuned import QUICK, draw_pictures

HEAVY = ("finetune", "filter_patterns")  # which are tried less often
Alone = tuple[list[Path], dict[tuple[str, Path], Any]]
CLASSES = tuple("abcdefghij")


torch.manual_seed(0)
FOREIGN = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


def make() -> ct.Network:
    torch.manual_seed(0)
    network = NARROW["alexnet"]().eval()
    arguments = {"classes": 10, "widths": (12, 32, 48, 48, 32), "hidden": (24, 40)}
    network.card = Card("alexnet", arguments, preset("alexnet"), CLASSES)
    return network


def pictures(folder: Path) -> list[Path]:
    numbers, paths = np.random.default_rng(0), []
    for number in range(3):
        paths.append(folder / f"{number}.png")
        small = numbers.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((320 + 8 * number, 260)).save(paths[-1])
        content = paths[-1].read_bytes()
        paths[-1].with_suffix(".cut").write_bytes(content[: len(content) // 2])
    return paths


def tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).resize((227, 227)), np.float32).transpose(2, 0, 1)[None] - 110)


def recorded(network: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    with torch.inference_mode(), ct.record_activations(network, ["conv_2", "relu_5", "head.relu_dense_1"]) as found:
        network(tensor(path))
    return found


def saved(network: ct.Network, path: Path) -> bytes:
    file = path.with_name(f"{threading.get_ident()}.safetensors")
    ct.save(network, file)
    return file.read_bytes()


def refused(path: Path) -> bool:
    with pytest.raises(OSError, match="broken"):
        ct.read_picture(path)
    return True


def evaluated(network: ct.Network, path: Path) -> Any:
    return ct.evaluate(network, GroundTruth(path.parent, (path,), np.array([3]))).logits


def finetuned(network: ct.Network, path: Path) -> Any:
    here = path.parent / str(threading.get_ident())
    if not here.exists():
        draw_pictures(here / "pictures", 3)
    settings = dataclasses.replace(QUICK, unfreeze="conv_5", dropout=True, head_epochs=1, epochs=1, batch=3)
    dataset = ct.find_dataset(here / "pictures")
    ct.finetune(network, dataset, here / "x.safetensors", settings, cache=here / "cache", allow_leaks=True)
    return ct.load(here / "x.safetensors")(tensor(path))


# Every public function that takes a network, on one picture.
CALLS: dict[str, Callable[[ct.Network, Path], Any]] = {
    "network": lambda network, path: network(tensor(path)),
    "classify": lambda network, path: ct.classify(network, path),
    "classify_each": lambda network, path: [row.predictions for row in ct.classify_each(network, [path, path])],
    "predict": lambda network, path: [row.logits for row in ct.predict(network, [path, path])],
    "embed": lambda network, path: ct.embed(network, path),
    "embed layers": lambda network, path: ct.embed_layers(network, tensor(path), ["pool_5", "relu_2"], pool="max"),
    "embed_each": lambda network, path: [row.logits for row in ct.embed_each(network, [path], logits=True)],
    "record_activations": recorded,
    "run_to": lambda network, path: run_to(network, "relu_3", tensor(path)),
    "layer_names": lambda network, path: layer_names(network),
    "activation_grids": lambda network, path: [
        grid.values for grid in activation_grids(network, path, ["relu_1", "pool_5"], channels=4)
    ],
    "channel_statistics": lambda network, path: [
        (layer.mean, layer.maximum) for layer in channel_statistics(network, [path], ["relu_2", "relu_5"]).layers
    ],
    "zero_shares": lambda network, path: zero_shares(network, path, "head.relu_dense_2").shares,
    "top_patches": lambda network, path: [
        (patch.row, patch.activation)
        for row in top_patches(network, [path], "relu_4", channels=[0, 1], count=2).patches
        for patch in row
    ],
    "gradcam": lambda network, path: ct.gradcam(network, path, 3).values,
    "gradcam_each": lambda network, path: [entry.maps[0].values for entry in ct.gradcam_each(network, [path], 1)],
    "gradcam_targets": lambda network, path: [found.values for found in ct.gradcam_targets(network, path, [1, 3])],
    "cams": lambda network, path: cams(network, tensor(path), [2], layer="relu_4"),
    "heatmap": lambda network, path: ct.heatmap(network, path, 3).values,
    "heatmap_each": lambda network, path: [entry.maps[0].values for entry in ct.heatmap_each(network, [path], 2)],
    "heatmap_targets": lambda network, path: [found.values for found in ct.heatmap_targets(network, path, [1, 3])],
    "contrast": lambda network, path: ct.contrast(network, path, 1, 2).values,
    "class_map": lambda network, path: ct.class_map(network, path).class_ids,
    "probability_map": lambda network, path: ct.probability_map(network, path).values,
    "score_map": lambda network, path: ct.score_map(network, tensor(path)),
    "cell_strides": lambda network, path: ct.cell_strides(network),
    "densify": lambda network, path: (
        ct.densify(nn.Sequential(network.features, *network.head).eval(), network.size).window
    ),
    "prepare": lambda network, path: ct.prepare(network, device="cpu", precision="float32")(tensor(path)),
    "filter_patterns": lambda network, path: ct.filter_patterns(network, "relu_2", [0, 1], steps=2, size=64).pictures,
    "first_kernels": lambda network, path: first_kernels(network).pictures,
    "class_patterns": lambda network, path: class_patterns(network, 1, steps=2, size=227).pictures,
    "measure_faithfulness": lambda network, path: (
        measure_faithfulness(network, ct.gradcam(network, path, 3), steps=3).deletion
    ),
    "with_last_layer": lambda network, path: with_last_layer(
        network, torch.ones(2, 40), torch.ones(2), "xy", "by a test"
    )(tensor(path)),
    "with_temperature": lambda network, path: with_temperature(network, 2.0)(tensor(path)),
    "evaluate": evaluated,
    "finetune": finetuned,
    "save": saved,
    "another's numbers": lambda network, path: torch.rand(100_000).shape,
    "another's module": lambda network, path: FOREIGN(tensor(path)),
    "strict": lambda network, path: refused(path.with_suffix(".cut")),
    "lenient": lambda network, path: ct.read_picture(path.with_suffix(".cut"), allow_truncated=True),
}


# Reference answers are those of networks of their own, so that the shared ones are cold when threads begin.
@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Alone:
    paths = pictures(tmp_path_factory.mktemp("pictures"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return paths, {
            (name, path): plain(call(make(), path))
            for name, call in CALLS.items()
            for path in (paths[:1] if name in HEAVY else paths)
        }


def plain(answer: Any) -> Any:
    """An answer as nested tuples of arrays and plain values."""
    if isinstance(answer, torch.Tensor):
        return answer.detach().numpy()
    if isinstance(answer, Mapping):
        return tuple((key, plain(value)) for key, value in answer.items())
    if isinstance(answer, list | tuple):
        return tuple(map(plain, answer))
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return tuple((field.name, plain(getattr(answer, field.name))) for field in dataclasses.fields(answer))
    return answer


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-3, atol=1e-5, equal_nan=True)
    if isinstance(wanted, tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == wanted or (isinstance(wanted, float) and abs(found - wanted) < 1e-5)


def faults(networks: list[ct.Network], alone: Alone, names: Collection[str] = CALLS, threads: int = 8) -> list[str]:
    """What goes wrong when threads make calls in a random order, on these networks in turn."""
    _, answers = alone
    wrong: list[str] = []
    jobs = [(name, path, network) for name, path in answers if name in names for network in networks]
    random.Random(0).shuffle(jobs)

    def work(job: tuple[str, Path, ct.Network]) -> None:
        name, path, network = job
        try:
            if not same(plain(CALLS[name](network, path)), answers[name, path]):
                wrong.append(f"{name}: another answer")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")

    warnings.simplefilter("ignore")  # the process's filters, which pytest sets back
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, jobs))
    return [f"{len(wrong)} of {len(jobs)}", *sorted(set(wrong))] if wrong else []


def test_threads_on_one_network_get_their_own_answers_cold_and_warm(alone):
    network = make()
    assert not faults([network], alone)
    assert not faults([network], alone)


@pytest.mark.slow
def test_threads_with_a_network_each_get_their_own_answers(alone):
    assert not faults([make() for _ in range(2)], alone)


def test_finetuning_draws_nothing_from_the_global_generator(alone):
    network, before = make(), torch.get_rng_state()
    finetuned(network, alone[0][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_to_thread_takes_the_block_that_records_along():
    network, images = make(), torch.zeros(1, 3, 227, 227)

    async def record() -> dict[str, torch.Tensor]:
        with ct.record_activations(network, "relu_3") as found:
            await asyncio.to_thread(network.forward, images)
        return found

    found = asyncio.run(record())
    wanted = run_to(network, "relu_3", images)
    torch.testing.assert_close(found, wanted)


# Runs a network in several threads, then in a process that is forked from this one, which prints whether it agrees.
FORKING = """
import os, sys, torch, convnets_torch as ct
from tests.test_threads import make, plain, same, CALLS
torch.set_num_threads(2)
network, path = make(), sys.argv[1]
calls = [CALLS[name] for name in ("classify", "heatmap", "gradcam", "embed layers", "record_activations")]
wanted = [plain(call(network, path)) for call in calls]
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0 if all(same(plain(call(network, path)), answer) for call, answer in zip(calls, wanted)) else 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_answers_as_its_parent(alone):
    program = [sys.executable, "-W", "ignore", "-c", FORKING, str(alone[0][0])]
    root = Path(__file__).parents[1]
    assert subprocess.run(program, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, timeout=100).returncode == 0


def test_the_network_has_no_hook_while_calls_run_but_in_a_block_that_records():
    network, hooks = make(), []
    network.features.register_forward_hook(lambda *_: hooks.append(hooks_in(network)))
    ct.embed_layers(network, torch.zeros(1, 3, 227, 227), ["relu_2", "pool_5"])
    cams(network, torch.zeros(1, 3, 227, 227), [2])
    assert hooks
    assert set(hooks) == {1}  # that of this test


def hooks_in(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.slow
def test_exports_and_engines_are_the_same_and_disturb_nobody_where_other_threads_run(alone, tmp_path):
    network, spoilt = make(), make()
    with torch.no_grad():
        for values in spoilt.head.parameters():
            values.fill_(float("nan"))
    ct.export(network, tmp_path / "alone.pt2")
    images = tensor(alone[0][0])
    with ThreadPoolExecutor(4) as pool:
        again = pool.submit(ct.export, network, tmp_path / "x.pt2")
        engine = pool.submit(ct.engine, network, precision="float32")
        refused = pool.submit(ct.export, spoilt, tmp_path / "none.pt2")
        wrong = []
        while not all(job.done() for job in (again, engine, refused)):
            wrong += faults([network], alone, ("classify", "heatmap", "another's module"), threads=2)
            time.sleep(0.3)
        torch.testing.assert_close(engine.result()(images), network(images), rtol=1e-4, atol=1e-5)
        again.result()
        with pytest.raises(ValueError, match=r"none\.pt2 was not written"):
            refused.result()
    assert not wrong
    assert (tmp_path / "x.pt2").read_bytes() == (tmp_path / "alone.pt2").read_bytes()


@pytest.mark.slow
def test_a_module_that_no_other_process_knows_is_followed_here():
    class Mine(nn.Sequential):
        pass

    module = Mine(*FOREIGN).eval()
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(ct.engine, module, precision="float32", size=32).result()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(made(images), module(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_probes_leave_threads_and_warnings_of_the_process_alone_where_another_thread_runs():
    from threadpoolctl import threadpool_info

    numbers = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 12)
    vectors = (numbers.normal(size=(36, 8)) + 2 * np.eye(8)[labels]).astype(np.float32)
    labelled = LabelledVectors(vectors, labels, ("ant", "bee", "cat"))
    alone = ct.probe(labelled, 3)  # which loads all libraries that it needs

    def settings() -> tuple[list[int], list[Any]]:
        return [library["num_threads"] for library in threadpool_info()], list(warnings.filters)

    before, seen, told = settings(), [], []
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(ct.probe, labelled, 3, progress=lambda *numbers: told.append(numbers))
        while not job.done():
            seen.append(settings())
            time.sleep(0.02)  # else these threads take the time of that one
        found = job.result()
        fitted = pool.submit(fit_probe, labelled, "svm").result()
        with pytest.raises(ValueError, match="only one class"):
            pool.submit(ct.probe, LabelledVectors(vectors, labels * 0, ("ant",)), 3).result()
    assert all(each == before for each in seen)
    assert told
    assert told[-1][0] == told[-1][1]
    for kind, accuracies in alone.accuracies.items():
        np.testing.assert_array_equal(found.accuracies[kind], accuracies)
    np.testing.assert_allclose(fitted.weight, fit_probe(labelled, "svm").weight, rtol=1e-9)
