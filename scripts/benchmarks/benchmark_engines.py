"""Images to logits on the CPU, against other programs (`benchmark.py classify`).

The floor is the least time that the machine allows: the network's operations at the rate of the fastest matrix product
measured on it, or its weights at the memory read rate, whichever takes longer.
"""

from __future__ import annotations

import copy
import importlib
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmarks.machine import matrix_rate, memory_rate
from scripts.benchmarks.processes import Program, alternating, started
from scripts.benchmarks.rounds import Result, compared

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convnets_torch.inference.prepare import Precision

Builder = Callable[[], Program]


@dataclass(frozen=True)
class Work:
    """One row of the table: a torchvision network and a batch size."""

    name: str
    batch: int
    float32_only: bool = False
    timm: str | None = None  # its name in timm
    keras: str | None = None

    def __str__(self) -> str:
        return f"{self.name}, 224, batch {self.batch}{', float32 only' if self.float32_only else ''}"


WORKS = (
    Work("vgg16", 8, timm="vgg16", keras="VGG16"),
    Work("alexnet", 16),
    Work("resnet50", 8, timm="resnet50", keras="ResNet50"),
    Work("vgg16", 1, timm="vgg16", keras="VGG16"),
    Work("vgg16", 8, float32_only=True, timm="vgg16", keras="VGG16"),
)


EAGER = "torchvision eager float32"


def measure_classify(folder: Path, rounds: int) -> list[Result]:
    """Measure every row of the table, alternating all programs in each round."""
    results = []
    for work in WORKS:
        results += measure(work, rounds)
    return results


def measure(work: Work, rounds: int) -> list[Result]:
    """Measure one row: each of our programs against each peer, and the floor."""
    print(f"\n## {work}\n")
    ours, peers = own_programs(work), peer_programs(work)
    with started({**ours, **peers}) as timers:
        seconds = alternating(timers, rounds)
    print("| program | ms, median | lowest to highest | images/s | against eager float32 |")
    print("| --- | --- | --- | --- | --- |")
    eager = seconds[EAGER]
    for program, times in seconds.items():
        middle = statistics.median(times)
        ratio = statistics.median(one / other for one, other in zip(eager, times, strict=True))
        spread = f"{1000 * min(times):.1f} to {1000 * max(times):.1f}"
        print(f"| {program} | {1000 * middle:.1f} | {spread} | {work.batch / middle:.1f} | {ratio:.2f} |")
    mine, others = ([name for name in names if name in seconds] for names in (ours, peers))
    print_floor(work, {program: statistics.median(seconds[program]) for program in mine})
    return [compared(f"{work}: {one}", other, seconds[one], seconds[other]) for one in mine for other in others]


def own_programs(work: Work) -> dict[str, Builder]:
    """Our programs for the module."""
    best: Precision = "float32" if work.float32_only else "auto"
    programs: dict[str, Builder] = {"ours, prepare float32": partial(prepared, work, "float32")}
    if not work.float32_only:
        programs["ours, prepare auto"] = partial(prepared, work, "auto")
    programs[f"ours, prepare {best} compiled"] = partial(prepared, work, best, compiled=True)
    programs[f"ours, engine openvino {best}"] = partial(engine, work, best)
    if not work.float32_only:
        programs["ours, int8"] = partial(quantized, work)
        programs["ours, int8, engine openvino"] = partial(quantized, work, in_engine=True)
    return programs


def peer_programs(work: Work) -> dict[str, Builder]:
    """The peers' programs for the module."""
    programs: dict[str, Builder] = {EAGER: partial(eager, work, "torchvision", "float32")}
    libraries = ["torchvision", "timm"] if work.timm else ["torchvision"]
    if work.timm:
        programs["timm eager float32"] = partial(eager, work, "timm", "float32")
    for library in libraries:
        if work.float32_only:
            programs[f"{library} eager float32 channels-last"] = partial(eager, work, library, "float32", last=True)
        else:
            programs[f"{library} eager bfloat16 channels-last"] = partial(eager, work, library, "bfloat16", last=True)
    dtype = "float32" if work.float32_only else "bfloat16"
    programs[f"torch.compile freezing {dtype}"] = partial(eager, work, "torchvision", dtype, last=True, compiled=True)
    programs["ONNX Runtime float32"] = partial(onnx_runtime, work)
    programs["OpenVINO float32"] = partial(openvino, work, "f32")
    if not work.float32_only:
        programs["OpenVINO bfloat16"] = partial(openvino, work, "bf16")
    if work.keras:
        programs["Keras 3 on torch, float32"] = partial(keras, work)
    return programs


def module_of(work: Work, library: str = "torchvision") -> nn.Module:
    """Return the network with seeded random weights."""
    import torch

    torch.manual_seed(0)
    made: nn.Module
    if library == "timm":
        made = importlib.import_module("timm").create_model(work.timm, pretrained=False)
    else:
        made = getattr(importlib.import_module("torchvision.models"), work.name)(weights=None)
    return made.eval()


def images_of(work: Work) -> Tensor:
    """Return noise."""
    import torch

    return torch.randn(work.batch, 3, 224, 224)


def runs(network: Callable[[Tensor], object]) -> Callable[[Tensor], Program]:
    """Return a program that runs the network on images without gradients."""
    import torch

    def of(images: Tensor) -> Program:
        def run() -> object:
            with torch.inference_mode():
                return network(images)

        return run

    return of


def prepared(work: Work, precision: Precision, compiled: bool = False) -> Program:
    """Return our program without extras."""
    import torch

    from convnets_torch.inference.allocation import keep_memory
    from convnets_torch.inference.prepare import dtype_of, prepare

    keep_memory()  # as programs should at start
    made = prepare(module_of(work), device="cpu", precision=precision, compiled=compiled)
    dtype = dtype_of(precision, torch.device("cpu"))
    return runs(lambda images: made(images.to(dtype)).float())(images_of(work))


def engine(work: Work, precision: str) -> Program:
    """Return our program with the extra."""
    from convnets_torch.inference.engines import engine as engine_of

    made = engine_of(module_of(work), "openvino", precision=precision, size=224)  # type: ignore[arg-type]
    return runs(made)(images_of(work))


def quantized(work: Work, in_engine: bool = False) -> Program:
    """Return our program of 8-bit integers; calibrated on noise, since weights are random, too."""
    import numpy as np

    from convnets_torch import densify, quantize
    from convnets_torch.card import Card
    from convnets_torch.images.preprocessing import preset
    from convnets_torch.inference.allocation import keep_memory
    from convnets_torch.inference.engines import engine as engine_of
    from convnets_torch.inference.prepare import prepare
    from convnets_torch.networks import resnet50

    keep_memory()
    rule = preset("resnet50", "torchvision")
    network: Any
    if work.name == "resnet50":  # torchvision's adds maps without a layer, so that sums would not be integers
        network = resnet50(stride_in="3x3", bias=False).eval()
        network.card = Card("resnet50", {"classes": 1000, "stride_in": "3x3", "bias": False}, rule, "imagenet-1k")
    else:
        network = densify(module_of(work), 224, preprocessing=rule, classes="imagenet-1k")
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(8)]
    made = quantize(network, noise).network
    return runs(engine_of(made) if in_engine else prepare(made, device="cpu"))(images_of(work))


def eager(work: Work, library: str, precision: str, last: bool = False, compiled: bool = False) -> Program:
    """PyTorch in some precision, optionally channels-last, optionally compiled with frozen weights."""
    import torch

    dtype: torch.dtype = getattr(torch, precision)
    layout = torch.channels_last if last else torch.contiguous_format
    made = copy.deepcopy(module_of(work, library)).to(dtype, memory_format=layout)  # type: ignore[call-overload]
    program: Any = torch.compile(made, options={"freezing": True}) if compiled else made
    return runs(lambda images: program(images.to(dtype, memory_format=layout)).float())(images_of(work))


def onnx_runtime(work: Work) -> Program:
    """ONNX Runtime as documented: exported by PyTorch, a CPU session, defaults."""
    import torch

    library: Any = importlib.import_module("onnxruntime")
    importlib.import_module("onnxscript")
    example = torch.zeros(2, 3, 224, 224)
    batch = ({0: torch.export.Dim("batch")},)
    made = torch.onnx.export(
        module_of(work), (example,), dynamo=True, dynamic_shapes=batch, input_names=["x"], verbose=False
    )
    assert made is not None
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "x.onnx", external_data=False)
        session = library.InferenceSession(str(Path(folder) / "x.onnx"), providers=["CPUExecutionProvider"])
    return runs(lambda images: session.run(None, {"x": images.numpy()}))(images_of(work))


def openvino(work: Work, precision: str) -> Program:
    """OpenVINO in its fastest form: fixed batch, one stream, the given precision."""
    import torch

    library: Any = importlib.import_module("openvino")
    example = torch.zeros(work.batch, 3, 224, 224)
    model = library.convert_model(torch.export.export(module_of(work), (example,), strict=False))
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    made = library.Core().compile_model(model, "CPU", options)
    return runs(lambda images: made([images.numpy()]))(images_of(work))


def keras(work: Work) -> Program:
    """The network of Keras 3 Applications, on PyTorch."""
    assert work.keras is not None
    os.environ["KERAS_BACKEND"] = "torch"
    library: Any = importlib.import_module("keras")
    made = getattr(library.applications, work.keras)(weights=None, classifier_activation=None)
    images = images_of(work).permute(0, 2, 3, 1).contiguous()
    return runs(lambda images: made(images, training=False))(images)


def print_floor(work: Work, ours: dict[str, float]) -> None:
    """Print the floor and the ratio of our times to it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from convnets_torch.inference.prepare import dtype_of

    module = module_of(work)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(images_of(work))
    operations = counter.get_total_flops()
    numbers = sum(parameter.numel() for parameter in module.parameters())
    bandwidth = memory_rate()
    print(f"\n{operations / 1e9:.1f} GFLOP; memory is read at {bandwidth / 1e9:.1f} GB/s")
    for dtype in (torch.float32, torch.bfloat16):
        rate = matrix_rate(dtype)
        floor = max(operations / rate, numbers * dtype.itemsize / bandwidth)
        kind = str(dtype).removeprefix("torch.")
        print(f"{kind}: {rate / 1e9:.0f} GFLOP/s in the best matrix product; floor {1000 * floor:.1f} ms")
        for name, middle in ours.items():
            if dtype == (torch.float32 if "float32" in name else dtype_of("auto", torch.device("cpu"))):
                print(f"  {name} takes {middle / floor:.2f} of it")
