"""Convert a file of another framework to safetensors.

Torch is imported only when the process that reads the file has begun (see `converters.readers.process`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from converters.plan import KerasStep, Plan, Row, Step, Wishes, stored_dtype
from converters.readers.process import Call, reading_process
from converters.writing import Job
from convnets_torch._version import __version__
from convnets_torch.card import KEY, Card, Source
from convnets_torch.files import cache_folder, check_writable, open_file, read_text, resolved, sha256
from convnets_torch.safetensors_io import Filling, filling
from convnets_torch.text import in_one_line
from convnets_torch.wordnet import synsets

if TYPE_CHECKING:
    from converters.proof.proof import ProofRow
    from converters.readers.pytorch_files import TensorJob

MOST_BYTES = 10_000_000
LONGEST = 1000  # letters of a name; a card with a longer one is refused


def check_names(what: str, names: Sequence[str]) -> None:
    """Raise ValueError for the first name that is too long for a card."""
    for number, name in enumerate(names, start=1):
        if len(name) > LONGEST:
            raise ValueError(f"{what}: class name {number} has {len(name)} letters; up to {LONGEST} are wanted")


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of classes 0, 1, 2, ... in the order of their lines (UTF-8).

    Raises:
        OSError: there is no such file.
        ValueError: it is no text, is empty, has an empty line before its last, or a name of over 1,000 letters.

    >>> from pathlib import Path
    >>> Path("labels.txt").write_text("cat\\ndog\\n")
    8
    >>> read_labels("labels.txt")
    ('cat', 'dog')
    """
    text = read_text(path, max_bytes=MOST_BYTES)
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names or not all(names):
        place = f"line {names.index('') + 1} is" if names else "all of it is"
        raise ValueError(f"{path}: {place} empty; one class name on each line is wanted")
    check_names(str(path), names)
    return names


HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PICKLE_MAGIC = b"\x80\x02"  # of PyTorch's files before 2020


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source: the file that was read.
        destination: the file that was written.
        card: what the weights are, as it stands in the file.
        rows: one for each of our parameters, in the order of the network.
        choices: sentences on what the file does not say and was therefore chosen.
        proof: the largest error of each layer; empty where no proof was asked for.
    """

    source: Path
    destination: Path
    card: Card
    rows: tuple[Row, ...]
    choices: tuple[str, ...] = ()
    proof: tuple[ProofRow, ...] = ()


@in_one_line()
def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None,
    *,
    backend: str | None = None,
    data_format: str | None = None,
    preprocessing: str | None = None,
    activation: str | None = None,
    hidden_activation: str | None = None,
    pool1_padding: bool | None = None,
    input_size: tuple[int, int] | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    layout: str | None = None,
    proof: bool = False,
    isolated: bool = True,
) -> Report:
    """Convert weights to a safetensors file with a card.

    Read are AlexNet, VGG16 and VGG19 of convnets-keras; VGG16, VGG19, ResNet50 and InceptionV3 of keras-applications;
    users' own models on them, with any dense head or none; in `.h5`, `.weights.h5` and `.keras` files of Keras 0.3 to
    3; and `.pth` files of torchvision's VGG16, VGG19 and ResNet50, and of EfficientNet-Lite0. Every array of the file
    and every parameter of the network is accounted for before anything is written. The same source and options give
    the same bytes.

    Args:
        source: the file to read.
        destination: the file to write; None puts it into the user's cache under the network's name.
        backend: "theano" or "tensorflow", what trained the weights; needed only where neither the file nor its
            lineage says it. Kernels trained by Theano are flipped.
        data_format: "channels_first" or "channels_last", how the network was trained; needed only for weights without
            config of Keras 2.0 and 2.1.
        preprocessing: a preset of the network or a JSON file with the fields of `Preprocessing`; None for the one of
            released weights, or of the model's own Rescaling layer.
        activation: "softmax", "sigmoid" or "none", of the outputs, where the file has no config; softmax by default.
        hidden_activation: between the dense layers of a head without config; relu by default.
        pool1_padding: whether ResNet50 pads before its first pooling, where no config says it.
        input_size: (height, width) in pixels of the pictures that a head of the user's own was trained on, where no
            config says it; for a Flatten without it, a square of as many cells as the dense layer reads.
        classes: names of the classes, or a text file with one on each line; None for ImageNet's where there are 1,000.
        layout: "torchvision" writes VGG under the names of torchvision's parameters.
        proof: compute what the source file means beside the converted network; nothing is written where they differ.
        isolated: read the file in a process of its own, which may crash.

    Returns:
        What was done with each array.

    Raises:
        OSError: `source` cannot be read or `destination` cannot be written; an older file there survives.
        ValueError: the file is not known or not complete, holds NaN or infinite values, needs an option, or fails
            its proof.

    >>> report = convert("alexnet_weights.h5", "converted.safetensors")
    >>> report.card.network, report.rows[0].source, report.rows[0].change
    ('alexnet', 'conv_1', 'flipped')
    """
    source = Path(source)
    if destination is not None:
        check_writable(Path(destination))
        if resolved(destination) == resolved(source):
            raise ValueError(f"{source} is source and destination; name another file to write")
    kind = _kind(source)
    before = _identity(source)
    with reading_process(isolated=isolated) as call:
        if kind == "zip":
            kind = "pytorch" if call("holds state dict", path=str(source)) else "keras"
        described = call("read" if kind == "keras" else "describe state dict", path=str(source))
        wishes = Wishes(backend, data_format, preprocessing, activation, hidden_activation, pool1_padding, input_size)
        plan = _plan(source, kind, described, wishes)
        class_names = _class_names(source, plan, classes)
        names = _names(source, plan, layout)
        shapes = {names[step.row.parameter]: (stored_dtype(step.row.parameter), step.row.shape) for step in plan.steps}
        destination = _in_cache(plan.network) if destination is None else Path(destination)
        with ThreadPoolExecutor(1) as beside:
            digest = beside.submit(sha256, source)
            # As long as the card with the digest, which takes its time.
            placeholder = _card(source, plan, class_names, layout, "0" * 64)
            with filling(destination, shapes, {KEY: placeholder.to_json()}) as file:
                _fill(source, plan, names, file, call)
                proven = _prove(source, kind, described, plan, placeholder, names, file, call) if proof else ()
                card = _card(source, plan, class_names, layout, digest.result())
                if _identity(source) != before:
                    raise ValueError(f"{source} has changed while it was read; convert it anew")
                file.metadata = {KEY: card.to_json()}
    return Report(source, destination, card, tuple(step.row for step in plan.steps), plan.choices, proven)


def _kind(source: Path) -> str:
    """ "keras", "pytorch", or "zip" that may be either, by what the file begins with."""
    with open_file(source) as file:
        start = file.read(8)
    if not start:
        raise OSError(f"{source} is empty; download it again")
    if start.startswith(b"PK") and source.suffix.lower() != ".keras":
        return "zip"
    if start.startswith(PICKLE_MAGIC):
        return "pytorch"
    if start.startswith((HDF5_MAGIC, b"PK")) or source.suffix.lower() in (".h5", ".hdf5", ".keras"):
        return "keras"  # whose reader says what else may be wrong
    raise ValueError(f"{source} is neither HDF5 (.h5), .keras nor a file of PyTorch (.pth); name a weights file")


def _identity(source: Path) -> tuple[int, ...]:
    """What is another where a file was changed, or another one took its name; the file is read more than once."""
    found = source.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _plan(source: Path, kind: str, described: dict[str, Any], wishes: Wishes) -> Plan:
    if kind == "keras":
        from converters.keras_plan import plan_keras
        from converters.readers.keras_file import KerasFile

        return plan_keras(KerasFile.from_dict(described), wishes)
    from converters.pytorch import Told, plan_pytorch

    tensors = {name: Told(tuple(told["shape"]), told["dtype"]) for name, told in described.items()}
    return plan_pytorch(source, tensors, wishes)


def _in_cache(network: str) -> Path:
    cache_folder().mkdir(parents=True, exist_ok=True)
    destination = cache_folder() / f"{network}.safetensors"
    check_writable(destination)
    return destination


def _class_names(
    source: Path, plan: Plan, classes: str | os.PathLike[str] | Sequence[str] | None
) -> Literal["imagenet-1k"] | tuple[str, ...] | None:
    wanted = plan.arguments["classes"]
    if classes is None:
        return "imagenet-1k" if wanted == 1000 else None
    if isinstance(classes, str | os.PathLike):
        names = read_labels(classes)
    else:
        names = tuple(classes)
        check_names("classes", names)
    if wanted is None:
        raise ValueError(f"{source} has no head, so no classes to name; leave out the class names")
    if len(names) != wanted:
        hint = " (the single output is the probability of the one class that it stands for)" if wanted == 1 else ""
        raise ValueError(
            f"{len(names)} class names for the {wanted} outputs of {source}{hint}; name each once, in order"
        )
    if [synsets.leading_wnid(name) for name in names] == [synsets.wnid(class_id) for class_id in range(1000)]:
        return "imagenet-1k"  # "n01440764 tench, Tinca tinca" and so on
    return names


def _names(source: Path, plan: Plan, layout: str | None) -> dict[str, str]:
    """Our parameter -> its name in the file to write."""
    ours = [step.row.parameter for step in plan.steps]
    if layout is None:
        return {name: name for name in ours}
    if layout != "torchvision":
        raise ValueError(f"unknown layout {layout!r}; known: torchvision")
    from converters.pytorch import torchvision_names

    return torchvision_names(source, plan)


def _card(
    source: Path,
    plan: Plan,
    class_names: Literal["imagenet-1k"] | tuple[str, ...] | None,
    layout: str | None,
    digest: str,
) -> Card:
    return Card(
        network=plan.network,
        arguments=plan.arguments,
        preprocessing=plan.preprocessing,
        class_names=class_names,
        activation=plan.activation,
        source=Source(
            file=source.name,
            sha256=digest,
            framework=plan.framework,
            backend=plan.backend,
            changes=(*_summary(plan), *plan.choices),
            converter=f"convnets-torch {__version__}",
        ),
        unknown={} if layout is None else {"layout": layout},
    )


def _summary(plan: Plan) -> tuple[str, ...]:
    """The changes, counted: "3 arrays flipped, concatenated"."""
    counts = Counter(step.row.change for step in plan.steps)
    return tuple(f"{count} arrays {change}" for change, count in counts.items())


def _fill(source: Path, plan: Plan, names: dict[str, str], file: Filling, call: Call) -> None:
    """Have the values of all parameters written, by the process that reads."""
    places = [
        (step, file.places[names[step.row.parameter]], file.arrays[names[step.row.parameter]]) for step in plan.steps
    ]
    orders = {
        "fill": [_job(step, place, array) for step, place, array in places if isinstance(step, KerasStep)],
        "fill tensors": [_tensor_job(step, place, array) for step, place, array in places if isinstance(step, Step)],
    }
    not_finite: list[str] = []
    for task, jobs in orders.items():
        if jobs:
            not_finite += call(task, path=str(source), output=str(file.path), jobs=jobs)
    if not_finite:
        raise ValueError(
            f"{source} holds NaN, infinite or (for float32) too large weights in"
            f" {', '.join(dict.fromkeys(not_finite))}; the training diverged, or the file is broken"
        )


def _prove(
    source: Path,
    kind: str,
    described: dict[str, Any],
    plan: Plan,
    card: Card,
    names: dict[str, str],
    file: Filling,
    call: Call,
) -> tuple[ProofRow, ...]:
    if kind != "keras":
        raise ValueError(f"{source} is a file of PyTorch, which means what it says; leave out the proof")
    from converters.proof.proving import prove

    arrays = {parameter: file.arrays[name] for parameter, name in names.items()}
    return prove(source, described, plan, card, arrays, call)


def _tensor_job(step: Step, place: int, array: NDArray[Any]) -> TensorJob:
    return {"source": step.row.source, "place": place, "shape": list(array.shape), "dtype": str(array.dtype)}


def _job(step: KerasStep, place: int, array: NDArray[Any]) -> Job:
    return {
        "source": step.row.source,
        "place": place,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "arrays": [
            {"path": str(entry.path), "place": entry.place, "shape": list(entry.shape), "dtype": entry.dtype}
            for entry in step.arrays
        ],
        "kernel_order": step.layout.kernel_order,
        "flipped": step.layout.flipped,
        "window": None if step.layout.window is None else list(step.layout.window),
        "constant": step.constant,
    }
