"""Convert a file of another framework to safetensors.

Torch is imported only after the reading process has started (see `converters.readers.process`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from numpy.typing import NDArray

from converters.plan import Plan, Row, Step, Wishes, stored_dtype
from converters.readers.foreign import check_folder, check_foreign
from converters.readers.process import Call, reading_process
from converters.writing import Job
from convnets_torch._version import __version__
from convnets_torch.card import KEY, Card, Source, network_digest
from convnets_torch.files import cache_folder, check_writable, open_file, read_text, resolved, sha256
from convnets_torch.safetensors_io import Filling, filling
from convnets_torch.text import check_choice, printable_errors
from convnets_torch.wordnet import synsets

if TYPE_CHECKING:
    from converters.proof.proof import ProofRow

MOST_BYTES = 10_000_000
LONGEST = 1000  # characters of a class name; cards refuse longer ones


def check_names(what: str, names: Sequence[str]) -> None:
    """Raise ValueError for the first name that is too long for a card."""
    for number, name in enumerate(names, start=1):
        if len(name) > LONGEST:
            raise ValueError(f"{what}: class name {number} has {len(name)} characters; at most {LONGEST} are allowed")


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the names of classes 0, 1, 2, ..., one per line (UTF-8).

    Raises:
        OSError: the file does not exist.
        ValueError: the file is not text, is empty, has an empty line other than at its end, or has a name of more than
            1,000 characters.

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
        raise ValueError(f"{path}: {place} empty; write one class name per line")
    check_names(str(path), names)
    return names


HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PICKLE_MAGIC = b"\x80\x02"  # start of PyTorch files from before 2020


@dataclass(frozen=True)
class Report:
    """The result of a conversion.

    Attributes:
        source: the file that was read.
        destination: the file that was written.
        card: the card in the written file.
        rows: one for each of our parameters, in network order.
        choices: notes on assumptions made because the file does not specify something.
        proof: the largest error of each layer, and last of the output; empty if no proof was requested.
    """

    source: Path
    destination: Path
    card: Card
    rows: tuple[Row, ...]
    choices: tuple[str, ...] = ()
    proof: tuple[ProofRow, ...] = ()

    @property
    def verdict(self) -> str | None:
        """The result of the proof in one sentence; None if no proof was requested."""
        return None if self.card.proof is None else self.card.proof.verdict


@printable_errors()
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
    output: str | None = None,
    until: str | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    layout: str | None = None,
    architecture: str | os.PathLike[str] | None = None,
    proof: bool = False,
    report: str | os.PathLike[str] | None = None,
    isolated: bool = True,
) -> Report:
    """Convert weights to a safetensors file with a card.

    Supported are whole models of Keras 1 to 3 (`.h5`, `.keras`) made of the layers in docs/any-model.md; weights alone
    (`.h5`, `.weights.h5`, of Keras 0.3 to 3) of the networks of convnets-keras and Keras Applications, also without a
    head or with one's own dense head, and of any other model with its `architecture`; and `.pth` files of torchvision's
    VGG16, VGG19 and ResNet50, and of EfficientNet-Lite0. Every array of the file and every parameter of the network is
    accounted for before anything is written. The same source and options give the same bytes.

    Args:
        source: the file to read.
        destination: the file to write; None writes to the user's cache, under the network's name.
        backend: "theano" or "tensorflow", whichever trained the weights; needed only if neither the file nor its
            lineage determines it. Kernels trained by Theano are flipped.
        data_format: "channels_first" or "channels_last", the format used in training; needed only for weights without
            config of Keras 2.0 and 2.1.
        preprocessing: a preset of the network or a JSON file with the fields of `Preprocessing`; None for that of the
            released weights, or of the model's own Rescaling layer.
        activation: output activation, "softmax", "sigmoid" or "none", for a file without config; softmax by default.
        hidden_activation: activation between the dense layers of a head without config; relu by default.
        pool1_padding: whether ResNet50 pads before its first pooling, for a file without config.
        input_size: (height, width) in pixels of the pictures that a custom head was trained on, for a file without
            config; by default, the size of a Flatten's map is inferred as a square from the dense layer's rows.
            Required for a model that takes pictures of any size.
        output: name of the output to convert, for a model with several.
        until: name of a layer at which to cut the model, whose output becomes the network's.
        classes: class names, or a text file with one per line; None for ImageNet's if there are 1,000 outputs.
        layout: "torchvision" writes VGG with torchvision's parameter names.
        architecture: JSON file with the model's `to_json()`, of any version of Keras, for a file without config.
        proof: also compute the source model in NumPy and compare every layer; the card keeps the verdict. Nothing but
            the report is written if the converted network differs from it.
        report: file for the table of the proof, .json or .html; implies `proof`.
        isolated: read the file in a separate process, so that a crash of the reader does not end this one.

    Returns:
        A report of what was done with each array.

    Raises:
        OSError: `source` cannot be read or `destination` cannot be written; an existing destination is kept.
        ValueError: the file is unknown or incomplete, holds NaN or infinite values, needs an option, or fails its
            proof.

    >>> report = convert("alexnet_weights.h5", "converted.safetensors")
    >>> report.card.network, report.rows[0].source, report.rows[0].change
    ('alexnet', 'conv_1', 'flipped')
    """
    source = Path(source)
    if destination is not None:
        check_writable(Path(destination))
        if resolved(destination) == resolved(source):
            raise ValueError(f"{source} is source and destination; name another file to write")
    if report is not None:
        from converters.proof.report import WRITER

        WRITER.check(report)
        if resolved(report) in {resolved(path) for path in (source, destination) if path is not None}:
            raise ValueError(f"{report} is also read or written by the conversion; name another file for the report")
    proof = proof or report is not None
    kind = _kind(source)
    before = _identity(source)
    with reading_process(isolated=isolated) as call:
        if kind == "zip":
            kind = call("kind of zip", path=str(source))
        described = call("read" if kind == "keras" else "describe state dict", path=str(source))
        wishes = Wishes(
            backend, data_format, preprocessing, activation, hidden_activation, pool1_padding, input_size, output, until
        )
        listed = described
        described, plan = _plan(source, kind, described, wishes, architecture)
        class_names = _class_names(source, plan, classes)
        names = _names(source, plan, layout)
        shapes = {names[step.row.parameter]: (stored_dtype(step.row.parameter), step.row.shape) for step in plan.steps}
        destination = (
            _in_cache(plan.arguments.get("graph", {}).get("name", plan.network))
            if destination is None
            else Path(destination)
        )
        with ThreadPoolExecutor(1) as beside:
            digest = beside.submit(sha256, source)
            # A card at least as long as the final one: the header's size must be known before digest and proof are.
            card = _card(source, plan, class_names, layout, "0" * 64, proof=proof)
            with filling(destination, shapes, {KEY: card.to_json()}) as file:
                _fill(source, plan, names, file, call)
                if proof and described is not listed:
                    _prove_list(listed, described, architecture)
                rows = _prove(source, kind, described, plan, card, names, file, call) if proof else ()
                card = _card(source, plan, class_names, layout, digest.result())
                if proof:
                    card = _proven(card, plan, rows, {ours: file.arrays[name] for ours, name in names.items()}, report)
                if _identity(source) != before:
                    raise ValueError(f"{source} changed while it was read; convert it again")
                file.metadata = {KEY: card.to_json()}
    if report is not None:
        from converters.proof.report import WRITER, contents

        WRITER.write(report, contents(card, rows, plan.choices, None))
    return Report(source, destination, card, tuple(step.row for step in plan.steps), plan.choices, rows)


def _kind(source: Path) -> str:
    """Return "keras", "pytorch" or (for a zip, which may be either) "zip", by the file's first bytes.

    Raises:
        OSError, ValueError: it is something else, or cannot be read.
    """
    check_folder(source)
    with open_file(source) as file:
        start = file.read(8)
        if not start.startswith((HDF5_MAGIC, b"PK")):
            check_foreign(source, file)
    if not start:
        raise OSError(f"{source} is empty; download it again")
    if start.startswith(b"PK") and source.suffix.lower() != ".keras":
        return "zip"
    if start.startswith(PICKLE_MAGIC):
        return "pytorch"
    if start.startswith((HDF5_MAGIC, b"PK")) or source.suffix.lower() in (".h5", ".hdf5", ".keras"):
        return "keras"  # its reader reports any other problem
    raise ValueError(f"{source} is neither HDF5 (.h5), .keras nor a PyTorch file (.pth); give a weights file")


def _identity(source: Path) -> tuple[int, ...]:
    """Return values that differ once a file is modified or replaced: the file is read more than once."""
    found = source.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _plan(
    source: Path, kind: str, described: dict[str, Any], wishes: Wishes, architecture: str | os.PathLike[str] | None
) -> tuple[dict[str, Any], Plan]:
    """Return the file's description, with a config that was given or derived, and the plan."""
    if kind == "keras":
        from converters.keras_plan import plan_keras
        from converters.readers.keras_file import KerasFile
        from converters.weights_only import with_architecture

        read = KerasFile.from_dict(described)
        file, plan = plan_keras(read if architecture is None else with_architecture(read, architecture), wishes)
        return (described if file is read else file.to_dict()), plan
    if architecture is not None:
        raise ValueError(f"{source} is a PyTorch file; leave out the architecture")
    from converters.pytorch import TensorInfo, plan_pytorch

    tensors = {name: TensorInfo(tuple(told["shape"]), told["dtype"]) for name, told in described.items()}
    return described, plan_pytorch(source, tensors, wishes)


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
        hint = " (a single output is the probability of one class)" if wanted == 1 else ""
        raise ValueError(
            f"{len(names)} class names for the {wanted} outputs of {source}{hint}; name each once, in order"
        )
    if [synsets.leading_wnid(name) for name in names] == [synsets.wnid(class_id) for class_id in range(1000)]:
        return "imagenet-1k"  # names like "n01440764 tench, Tinca tinca"
    return names


def _names(source: Path, plan: Plan, layout: str | None) -> dict[str, str]:
    """Return our parameter -> its name in the file to write."""
    ours = [step.row.parameter for step in plan.steps]
    if layout is None:
        return {name: name for name in ours}
    check_choice(layout, ("torchvision",), "layout")
    from converters.pytorch import torchvision_names

    return torchvision_names(source, plan)


def _card(
    source: Path,
    plan: Plan,
    class_names: Literal["imagenet-1k"] | tuple[str, ...] | None,
    layout: str | None,
    digest: str,
    *,
    proof: bool = False,
) -> Card:
    """Return the card; with `proof`, it holds the longest one."""
    from converters.proof.report import PLACEHOLDER

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
        proof=PLACEHOLDER if proof else None,
    )


def _proven(
    card: Card,
    plan: Plan,
    rows: tuple[ProofRow, ...],
    arrays: dict[str, NDArray[Any]],
    report: str | os.PathLike[str] | None,
) -> Card:
    """Return the card with the proof; write the report and raise ValueError if it fails."""
    from converters.proof.proof import check
    from converters.proof.report import WRITER, contents, proof_of

    try:
        check(rows)
    except ValueError as error:
        if report is not None:
            WRITER.write(report, contents(card, rows, plan.choices, str(error)))
        raise
    return replace(card, proof=proof_of(rows, network_digest(card, arrays)))


def _summary(plan: Plan) -> tuple[str, ...]:
    """Return the number of arrays for each change: "3 arrays flipped, concatenated"."""
    counts = Counter(step.row.change for step in plan.steps)
    return tuple(f"{count} array{'s' * (count > 1)} {change}" for change, count in counts.items())


def _fill(source: Path, plan: Plan, names: dict[str, str], file: Filling, call: Call) -> None:
    """Write the values of all parameters, in the reading process."""
    jobs = []
    for step in plan.steps:
        name = names[step.row.parameter]
        jobs.append(_job(step, file.offsets[name], file.arrays[name]))
    task = "fill tensors" if plan.framework == "PyTorch" else "fill"
    not_finite = call(task, path=str(source), output=str(file.path), jobs=jobs) if jobs else ()
    if not_finite:
        raise ValueError(
            f"{source} holds NaN, infinite or (for float32) too large weights in"
            f" {', '.join(dict.fromkeys(not_finite))}; the training diverged, or the file is broken"
        )


def _prove_list(listed: dict[str, Any], described: dict[str, Any], architecture: Any) -> None:
    """Check that the config that was given or derived has the layers that the file lists."""
    from converters.layer_lists import oriented
    from converters.proof.listing import check_list
    from converters.readers.keras_file import KerasFile

    check_list(oriented(KerasFile.from_dict(listed)), described["config"], names=architecture is None)


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
        raise ValueError(f"{source} is a PyTorch file; only Keras files can be proven, so leave out the proof")
    from converters.proof.proving import prove

    arrays = {parameter: file.arrays[name] for parameter, name in names.items()}
    return prove(source, described, plan, card, arrays, call)


def _job(step: Step, place: int, array: NDArray[Any]) -> Job:
    arrays = [asdict(entry) | {"path": str(entry.path)} for entry in step.arrays]
    target = {"source": step.row.source, "place": place, "shape": list(array.shape), "dtype": str(array.dtype)}
    return cast(Job, {**target, "arrays": arrays, "constant": step.constant, **asdict(step.layout)})
