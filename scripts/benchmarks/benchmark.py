"""Measure speed as ratios against a peer in the same run.

    python scripts/benchmarks/benchmark.py import load cold-start convert formats proof folder heatmap strips dilation
                                gradcam filters classify pipeline gpu search maps training evaluate
                                [--rounds 7] [--json FILE]

Peers and ours alternate, so that a slower machine affects both; the result is the median of the rounds'
ratios. Inputs are full-size files with random weights, created in a temporary folder. All but
`gpu` run on the CPU; the files are in the page cache, as after a download.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.benchmarks.rounds import Result, alternate


def run(code: str) -> Callable[[], object]:
    """Run Python code in a fresh process."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def make_inputs(folder: Path) -> None:
    """Write full-size VGG16 as .h5 of Keras 1, safetensors with a card, and torch's own files."""
    import torch
    from torchvision.models import vgg16

    from converters import convert
    from tests.reference.keras1_files import FULL, random_layers, write_keras1

    write_keras1(folder / "vgg16.h5", random_layers(FULL["vgg16"]))
    convert(folder / "vgg16.h5", folder / "vgg16.safetensors")
    from convnets_torch.weights import load

    torch.save(load(folder / "vgg16.safetensors").state_dict(), folder / "ours.pth")
    torch.save(vgg16().state_dict(), folder / "torchvision.pth")


def measure_import(folder: Path, rounds: int) -> list[Result]:
    """Import the package and print the help, against the start of Python alone, which both include."""
    script = Path(sys.executable).parent / "convnets-torch"
    helped = lambda: subprocess.run([script, "--help"], check=True, stdout=subprocess.DEVNULL)  # noqa: E731
    return [
        alternate("import convnets_torch", "bare python", run("import convnets_torch"), run("pass"), rounds),
        alternate("convnets-torch --help", "bare python", helped, run("pass"), rounds),
    ]


def measure_load(folder: Path, rounds: int) -> list[Result]:
    """Load VGG16, ready to classify; ours and the first peer do not touch the file's pages."""
    import torch
    from torchvision.models import vgg16 as torchvision_vgg16

    from convnets_torch.networks import vgg16
    from convnets_torch.weights import load

    def by_hand() -> None:
        with torch.device("meta"):
            network = vgg16()
        state = torch.load(folder / "ours.pth", mmap=True, weights_only=True)
        network.load_state_dict(state, assign=True)
        network.eval()

    def usual() -> None:
        network = torchvision_vgg16()
        network.load_state_dict(torch.load(folder / "torchvision.pth", weights_only=True))
        network.eval()

    def ours() -> None:
        load(folder / "vgg16.safetensors")

    return [
        alternate("load VGG16", "meta device, torch.load(mmap=True), assign", ours, by_hand, rounds * 5),
        alternate("load VGG16", "torchvision vgg16() and load_state_dict", ours, usual, rounds),
    ]


def measure_cold_start(folder: Path, rounds: int) -> list[Result]:
    """Time from process start to the first logits of a photograph, against the usual script."""
    from PIL import Image

    from tests.reference.pictures import picture

    Image.fromarray(picture(1, 480, 640)).save(folder / "photo.jpg")
    ours = f"""
from convnets_torch import classify, load
print(classify(load({str(folder / "vgg16.safetensors")!r}), {str(folder / "photo.jpg")!r}))
"""
    usual = f"""
import torch
from PIL import Image
from torchvision import models, transforms
network = models.vgg16()
network.load_state_dict(torch.load({str(folder / "torchvision.pth")!r}, weights_only=True))
network.eval()
prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
with torch.inference_mode():
    print(network(prepare(Image.open({str(folder / "photo.jpg")!r}))[None]).softmax(1).topk(5))
"""
    return [
        alternate("process start to first logits, VGG16", "usual torchvision script", run(ours), run(usual), rounds)
    ]


def measure_convert(folder: Path, rounds: int) -> list[Result]:
    """Convert full VGG16 from `.h5`, including its sha256, against copying the file; also measure memory."""
    return [converted(folder, source, rounds) for source in ("vgg16.h5",)]


def measure_formats(folder: Path, rounds: int) -> list[Result]:
    """The same for formats in which real Keras 3 saves VGG16 and ResNet50; needs the `dev` extra and 3 GB of disk."""
    write = [sys.executable, "-W", "ignore", "-m", "tests.reference.keras3_files", str(folder / "keras3")]
    command = [
        *write,
        "--full",
        "--models",
        "vgg16",
        "resnet50",
        "--forms",
        "weights",
        "model",
        ".weights.h5",
        ".keras",
    ]
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    names = [f"vgg16.{form}" for form in ("legacy.h5", "h5", "weights.h5", "keras")] + ["resnet50.h5", "resnet50.keras"]
    return [converted(folder, f"keras3/{name}", rounds) for name in names]


def converted(folder: Path, source: str, rounds: int) -> Result:
    """Time a conversion against a copy, alternating, and print the memory that it adds."""
    from converters import convert

    def copy() -> None:
        (folder / "copy").unlink(missing_ok=True)  # both write a new file
        with (folder / source).open("rb") as file, (folder / "copy").open("wb") as target:
            shutil.copyfileobj(file, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())

    def ours() -> None:
        (folder / "out.safetensors").unlink(missing_ok=True)
        convert(folder / source, folder / "out.safetensors")

    size = (folder / source).stat().st_size / 1e6
    result = alternate(f"convert {source} ({size:.0f} MB)", "copy the file, fsync", ours, copy, rounds)
    small = ROOT / "tests" / "data" / "keras1" / "vgg16.h5"  # imports torch and starts the reading process
    code = f"""
from converters import convert
convert({str(small)!r}, {str(folder / "small")!r})
print("ready", flush=True)
input()
convert({str(folder / source)!r}, {str(folder / "out.safetensors")!r})
"""
    growth = memory_growth(code)[1] / (folder / source).stat().st_size
    print(f"memory that converting {source} adds to all its processes: {growth:.2f} of the file's size\n")
    return result


def memory_growth(code: str) -> tuple[str, int]:
    """Return the line that a program prints when ready, and its peak memory growth (bytes, with children) from then on.

    The program prints one line and waits for another.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        most = before = resident(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None:
            most = max(most, resident(process.pid))
            time.sleep(0.01)
    return said, most - before


def resident(number: int) -> int:
    """Resident bytes of a process and its descendants; shared memory counts for each."""
    total = 0
    with contextlib.suppress(OSError):  # it has ended
        status = Path(f"/proc/{number}/status").read_text()
        total += sum(int(kilobytes) * 1024 for kilobytes in re.findall(r"VmRSS:\s+(\d+)", status))
        for task in Path(f"/proc/{number}/task").iterdir():
            total += sum(resident(int(child)) for child in (task / "children").read_text().split())
    return total


def measure_proof(folder: Path, rounds: int) -> list[Result]:
    """Time a conversion with and without proof, and an audit against bare Python."""
    command = [sys.executable, "-m", "converters", str(folder / "vgg16.h5"), "-o", str(folder / "out.safetensors")]

    def process(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

    audit = "import sys; from convnets_torch.cli.app import main; sys.argv[:1] = ['convnets-torch', 'audit']; main()"
    audited = process(sys.executable, "-c", audit, str(folder / "vgg16.h5"))
    proven, plain = process(*command, "--proof"), process(*command)
    return [
        alternate("convert VGG16 --proof, whole process", "without --proof", proven, plain, rounds),
        alternate("audit VGG16 (553 MB), whole process", "bare python", audited, run("pass"), rounds),
    ]


def measure_folder(folder: Path, rounds: int) -> list[Result]:
    """Classify a folder of photographs with VGG16, against the bare loop over inputs in memory."""
    import numpy as np
    import torch
    from PIL import Image

    from convnets_torch.images.decoding import read_picture
    from convnets_torch.images.finding import find_pictures
    from convnets_torch.inference.classification import classify_each, square_input
    from convnets_torch.inference.pipeline import BATCH
    from convnets_torch.weights import load
    from tests.reference.pictures import picture

    (folder / "photographs").mkdir(exist_ok=True)
    for number in range(2 * BATCH):
        Image.fromarray(picture(number, 480, 640)).save(folder / "photographs" / f"{number:03}.jpg", quality=90)
    network = load(folder / "vgg16.safetensors", mapped=False)
    paths = find_pictures(folder / "photographs")
    card = network.card
    assert card is not None

    def inputs() -> list[np.ndarray]:
        return [square_input(read_picture(path, exif=card.preprocessing.exif), card) for path in paths]

    decoded = inputs()

    def bare() -> None:
        for start in range(0, len(decoded), BATCH):
            with torch.inference_mode():
                network(torch.from_numpy(np.stack(decoded[start : start + BATCH]))).softmax(dim=1).topk(5)

    def ours() -> None:
        assert all(entry.error is None for entry in classify_each(network, paths))

    def one_after_another() -> None:
        inputs()
        bare()

    start = time.perf_counter()
    inputs()
    each = (time.perf_counter() - start) / len(paths)
    print(f"decoding and cropping one photograph of 480x640 in one thread: {1000 * each:.1f} ms\n")
    work = f"classify a folder of {len(paths)} photographs, VGG16"
    return [
        alternate(work, "bare loop over inputs in memory", ours, bare, rounds),
        alternate(work, "decode, then the bare loop", ours, one_after_another, rounds),
    ]


def of_module(name: str) -> Callable[[Path, int], list[Result]]:
    """Return a function that imports a benchmark module on demand and runs it."""

    def measure(folder: Path, rounds: int) -> list[Result]:
        measured: list[Result] = getattr(importlib.import_module(f"scripts.{MODULES[name]}"), f"measure_{name}")(
            folder, rounds
        )
        return measured

    return measure


MODULES = {
    "heatmap": "benchmark_heatmaps",
    "strips": "benchmark_heatmaps",
    "dilation": "benchmark_dilation",
    "filters": "benchmark_filters",
    "gradcam": "benchmark_gradcam",
    "pipeline": "benchmark_pipeline",
    "classify": "benchmark_engines",
    "gpu": "benchmark_gpu",
    "search": "benchmark_search",
    "maps": "benchmark_maps",
    "training": "benchmark_training",
    "evaluate": "benchmark_evaluate",
}
WORK: dict[str, Callable[[Path, int], list[Result]]] = {
    "import": measure_import,
    "load": measure_load,
    "cold-start": measure_cold_start,
    "convert": measure_convert,
    "formats": measure_formats,
    "proof": measure_proof,
    "folder": measure_folder,
    **{name: of_module(name) for name in MODULES},
}


def main() -> None:
    """Run the named benchmarks, print a table, and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", choices=[*WORK, []], help="what to measure; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the results here")
    arguments = parser.parse_args()
    from scripts.benchmarks.machine import facts

    machine = facts()
    print("; ".join(f"{name} {fact}" for name, fact in machine.items()))
    print(f"{arguments.rounds} rounds, medians; ratio = peer / ours (lowest to highest of the rounds)\n")
    results = []
    with tempfile.TemporaryDirectory() as name:
        no_inputs = {"import", "dilation", "classify", "pipeline", "gpu", "search", "maps", "evaluate"}
        if set(arguments.work or WORK) - no_inputs:
            make_inputs(Path(name))
        for work in arguments.work or WORK:
            results += WORK[work](Path(name), arguments.rounds)
    print("| work | peer | ours, s | peer, s | ratio | spread |\n| --- | --- | --- | --- | --- | --- |")
    for row in results:
        print(
            f"| {row.work} | {row.peer} | {row.ours_s:.4f} | {row.peer_s:.4f}"
            f" | {row.ratio:.2f} | {row.ratio_low:.2f} to {row.ratio_high:.2f} |"
        )
    if arguments.json:
        record = {"machine": machine, "rounds": arguments.rounds, "results": [asdict(row) for row in results]}
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
