"""`convert`, `info`, `audit`, `doctor`, `quantize` and `export`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from convnets_torch.cli import options
from convnets_torch.cli.options import Images, ReadOptions, RunOptions, Shown, Weights, argument, command, option
from convnets_torch.cli.output import print_columns, rows_done, say, show, warnings_as_lines
from convnets_torch.text import shortened

if TYPE_CHECKING:
    from converters.audit import Audit

LONG = 2000  # characters; longer fields, such as the digests of pictures, are cut


@command()
def convert(
    source: Path = argument(..., "Keras weights (.h5, .keras) or PyTorch weights (.pth).", "IN", readable=False),
    destination: Path | None = argument(None, "", "OUT", readable=False, hidden=True),
    *,
    shown: Shown,
    output: Path | None = option(None, "File to write, .safetensors."),
    backend: str | None = option(
        None, "Backend that trained the weights, theano or tensorflow, if the file does not say."
    ),
    data_format: str | None = option(
        None, "Data format in training, channels_first or channels_last, if the file does not say."
    ),
    preprocessing: str | None = option(
        None,
        "Preset such as keras-caffe, or a JSON file; by default that of the released weights.",
        metavar="NAME|FILE.json",
    ),
    activation: str | None = option(None, "Output activation, softmax, sigmoid or none, if the file has no config."),
    hidden_activation: str | None = option(
        None, "Activation between the dense layers of your own head, if the file has no config."
    ),
    pool1_padding: str | None = option(
        None, "Whether ResNet50 pads before its first pooling; files with old names never say.", metavar="yes|no"
    ),
    input_size: str | None = option(
        None, "Input size of the model, if the file has no config or takes any size.", metavar="PIXELS|HxW"
    ),
    output_layer: str | None = option(None, "Output to convert, of a model with several.", metavar="NAME"),
    until: str | None = option(None, "Layer at which to cut the model.", metavar="NAME"),
    classes: Path | None = option(None, "Text file with the names of your classes, one per line.", readable=False),
    layout: str | None = option(None, "torchvision: write VGG with torchvision's names, for its load_state_dict."),
    architecture: Path | None = option(
        None, "JSON file with the model's to_json(), if the file has no config.", metavar="FILE.json", readable=False
    ),
    proof: bool = option(False, "Run the source file's network in NumPy and compare each layer with the result."),
    report: Path | None = option(
        None, "File for the table of the proof, .json or .html; implies --proof.", metavar="FILE", readable=False
    ),
    no_isolation: bool = option(False, "Read the file in this process, which a damaged file may crash."),
    cache: bool = option(False, "Write to the cache, under the network's name."),
) -> None:
    """Convert weights to a safetensors file that stores its network, classes and preprocessing."""
    if destination is not None:
        if output is not None:
            raise typer.BadParameter(f"both {destination} and -o {output} are given; name one output")
        options.deprecated(f"the second file, {destination},", f"-o {destination}")
        output = destination
    if cache == (output is not None):
        raise typer.BadParameter("give either -o FILE or --cache")
    options.check_weights(output)
    if pool1_padding not in (None, "yes", "no"):
        raise typer.BadParameter(f"--pool1-padding is {pool1_padding!r}; give yes or no")
    from converters import conversion

    done = conversion.convert(
        source,
        output,
        backend=backend,
        data_format=data_format,
        preprocessing=preprocessing,
        activation=activation,
        hidden_activation=hidden_activation,
        pool1_padding=None if pool1_padding is None else pool1_padding == "yes",
        input_size=None if input_size is None else _size(input_size),
        output=output_layer,
        until=until,
        classes=classes,
        layout=layout,
        architecture=architecture,
        proof=proof,
        report=report,
        isolated=not no_isolation,
    )
    if shown.as_json:
        fields = {"output": str(done.destination), "card": json.loads(done.card.to_json())}
        entries = [asdict(row) for row in done.rows]
        proven = [asdict(row) for row in done.proof]
        told = {"choices": list(done.choices), "layers": entries, "proof": proven, "verdict": done.verdict}
        print(json.dumps({**fields, **told}))
        return
    rows = [(row.source, row.parameter, "x".join(map(str, row.shape)) or "1", row.change) for row in done.rows]
    print_columns([("their layer", "our parameter", "shape", "done"), *rows])
    if done.proof:
        errors = [(row.layer, row.module, f"{row.error:.1e}") for row in done.proof]
        print()
        print_columns([("their layer", "our module", "largest error"), *errors])
        show(done.verdict or "")
    print()
    for choice in done.choices:
        show(f"note: {choice}")
    trained = f", trained by {done.card.source.backend}" if done.card.source and done.card.source.backend else ""
    show(f"{done.destination}: {done.card.network}{trained}, preprocessing {done.card.preprocessing.name}")


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(f"--input-size is {text!r}; give pixels, such as 150 or 150x200 (height x width)")
    return int(sides[0]), int(sides[-1])


@command()
def info(weights: Weights, shown: Shown) -> None:
    """Print the network, classes, preprocessing and origin of a weights file."""
    from convnets_torch.card import read_card
    from convnets_torch.files import find
    from convnets_torch.images.preprocessing import CHANNEL_WORDS

    path = find(weights)
    card = read_card(path)
    fields = json.loads(card.to_json())
    if card.proof is not None:
        fields["proof"] = {"verdict": card.proof.verdict, **fields["proof"]}
    if shown.as_json:
        print(json.dumps(fields))
        return
    source, rule, proof = fields.pop("source") or {}, fields.pop("preprocessing"), fields.pop("proof", {})
    if graph := fields["arguments"].pop("graph", None):
        fields["network"] = f"a graph of {len(graph['features']) + len(graph['head'] or ())} layers, {graph['name']}"
        reason = graph.get("no_map")
        height, width = graph["size"]
        fields["images"] = f"{CHANNEL_WORDS[card.preprocessing.channels]}, {height}x{width}{PIXELS}"
        height, width = graph["window"]
        cells = f"a window of {height}x{width} cells, {graph['stride']} pixels apart"
        fields["dense map"] = "none: no head" if not graph["head"] else f"none: {reason}" if reason else cells
        fields["arguments"]["size"] = graph["size"]
    rows = [("file", str(path))]
    rows += [(key, _plain(value)) for key, value in fields.items()]
    rows += [(f"preprocessing {key}", _plain(value)) for key, value in rule.items()]
    rows += [(f"source {key}", _plain(value)) for key, value in source.items()]
    rows += [(f"proof {key}", _plain(value)) for key, value in proof.items()]
    print_columns(rows)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value[:12])) + (f", ... ({len(value)})" if len(value) > 12 else "")
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    text = "-" if value is None else str(value)
    if len(text) > LONG:
        text = f"{text[:12]}... ({len(text)} characters)"
    return text if text.isprintable() else repr(text)


convert_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
convert_app.command(cls=options.Command, context_settings=options.HELP)(convert)


@command()
def audit(
    file: Path = argument(..., "An .h5 or .keras file of any Keras version; it need not be trusted.", "FILE"),
    no_isolation: bool = option(False, "Read the file in this process, which a damaged file may crash."),
    *,
    shown: Shown,
) -> None:
    """List the contents of a Keras file without building or running any of it: layers, code, links, odd sizes."""
    from converters.audit import Audit
    from converters.readers.process import reading_process

    with reading_process(isolated=not no_isolation) as call:
        found = Audit.from_dict(call("audit", path=str(file)))
    if shown.as_json:
        print(json.dumps(found.to_dict()))
        return
    for line in lines(found):
        show(shortened(line))  # --json prints it in full


def lines(found: Audit) -> Iterator[str]:
    """Yield an audit as lines of text; text from the file is not escaped."""
    yield f"{found.path}: {found.size:,} bytes"
    if found.framework:
        backend = f", trained on {found.backend}" if found.backend else ""
        yield f"{found.framework}{backend} ({found.container}), {found.parameters:,} parameters"
    for layer in found.layers:
        arrays = ", ".join(f"{role} {shape} {dtype}" for role, (shape, dtype) in layer.arrays.items())
        yield f"  {layer.name:<28}  {layer.kind:<20}  {arrays}".rstrip()
    if found.optimizer_arrays:
        yield f"optimizer: {found.optimizer_arrays} arrays, {found.optimizer_bytes:,} bytes"
    if found.training:
        yield f"training: {json.dumps(found.training)}"
    for word, entries in (("unlisted", found.unlisted), ("code", found.code), ("problem", found.problems)):
        for entry in entries:
            yield f"{word}: {entry}"
    if found.refused:
        yield f"not readable: {found.refused}"
    if found.clean:
        yield "nothing suspicious: no code, no links, no data in other files, no damage, no array outside of a layer"


SHOWN = 10  # hypotheses printed; --json has all


@command(old={"--write": "--output"})
def doctor(
    weights: Weights,
    images: list[str] | None = argument(
        None, "Pictures of known content: with --expect, or folders with one subfolder per class.", "FOLDER|IMAGE..."
    ),
    expect: str | None = option(None, "Class that all pictures show: a word, a wnid, a class id or name."),
    golden: tuple[Path, Path] | None = option(
        None, "Input and output recorded from the original framework, instead of pictures.", metavar="X.npy Y.npy"
    ),
    output: Path | None = option(None, "File for the corrected weights, .safetensors."),
    *,
    run: RunOptions,
    shown: Shown,
) -> None:
    """Find out why converted weights give wrong answers; exit 1 if undecided."""
    if (golden is None) == (not images):
        raise typer.BadParameter("give either pictures or a recording with --golden")
    if golden is not None and expect is not None:
        raise typer.BadParameter("--expect goes with pictures, not with --golden")
    from converters.doctor.doctor import diagnose
    from converters.doctor.evidence import Golden, labelled_pictures
    from convnets_torch.weights import save

    if run.precision not in (None, "exact", "float32"):
        raise typer.BadParameter(
            f"doctor compares errors of 1e-5, which --precision {run.precision} cannot represent; use float32"
        )
    options.check_weights(output)
    network = run.load(weights, plain=True)
    with warnings_as_lines():
        if golden is not None:
            diagnosis = diagnose(network, golden=Golden.read(*golden), batch=run.batch)
        else:
            if expect is not None:
                labelled = [(Path(picture), expect) for picture in run.find(images or [])]
            else:
                labelled = [
                    pair for folder in images or [] for pair in labelled_pictures(folder, exclude=run.exclude or ())
                ]
            diagnosis = diagnose(network, [path for path, _ in labelled], [name for _, name in labelled], **run.running)
    if output is not None and diagnosis.network is not None:
        save(diagnosis.network, output)
    written = str(output) if output is not None and diagnosis.network is not None else None
    if shown.as_json:
        tried = [{"changes": entry.changes, "figure": _finite(entry.figure)} for entry in diagnosis.hypotheses]
        fields = {"verdict": diagnosis.verdict, "sentence": diagnosis.sentence, "untold": diagnosis.untold}
        print(json.dumps({**fields, "figure": diagnosis.measure, "written": written, "hypotheses": tried}))
    else:
        for entry in diagnosis.hypotheses[:SHOWN]:
            show(f"{entry.figure:<8.3g}  {', '.join(entry.changes) or 'the file as it is'}")
        show(diagnosis.sentence)
    if output is not None:
        say(f"{output}: written" if written else f"{output}: not written, because nothing was decided")
    if diagnosis.winner is None:
        raise typer.Exit(1)


def _finite(number: float) -> float | None:
    """Replace infinity, which JSON lacks, by None."""
    return number if number < float("inf") else None


@command()
def quantize(
    weights: Weights,
    images: Images,
    *,
    output: Path = option(..., "File for the quantised weights, .safetensors."),
    target_agreement: float | None = option(
        None,
        "Share of held-out pictures that must keep their best class; layers stay in floating point until it is met.",
        metavar="0-1",
    ),
    report: Path | None = option(
        None, "File for what quantising each layer alone changes.", metavar="FILE.json", readable=False
    ),
    read: ReadOptions,
    shown: Shown,
) -> None:
    """Quantise weights to 8-bit integers, calibrated on your pictures, and say how much the answers change."""
    from convnets_torch.files import check_kept, check_output, replacing
    from convnets_torch.inference.quantization import quantize as quantized
    from convnets_torch.weights import load, save

    options.check_weights(output)
    if report is not None:
        check_output(report, [".json"], "a report")
    with warnings_as_lines():
        pictures = read.find(images)
    check_kept(output, pictures)
    network = load(weights)
    with warnings_as_lines(), rows_done("quantising") as progress:
        found = quantized(
            network,
            pictures,
            target_agreement=target_agreement,
            layer_errors=report is not None,
            progress=None if progress is None else lambda _, done, total: progress(done, total),
            **read.reading,
        )
    save(found.network, output)
    if report is not None:
        with replacing(report) as temporary:
            temporary.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    for name, error in found.errors:
        say(f"{name}: {error}")
    for note in found.notes:
        say(note)
    if shown.as_json:
        print(json.dumps({"output": str(output), **found.to_dict()["agreement"]}))
        return
    agreement = found.agreement
    print_columns(
        [
            ("file", str(output)),
            ("bytes", f"{output.stat().st_size:,}"),
            ("calibrated on", f"{agreement.pictures} pictures"),
            ("compared on", f"{agreement.images} held-out pictures"),
            ("same best class", f"{agreement.same_best:.1%}"),
            ("same best five", f"{agreement.same_five:.1%}"),
            ("difference of a probability", f"at most {agreement.largest:.3f}, {agreement.mean:.3f} on average"),
            ("in floating point", ", ".join(agreement.wide) or "no layer"),
        ]
    )


@command()
def export(
    weights: Weights,
    *,
    shown: Shown,
    output: Path = option(..., "File to write: .onnx or .pt2."),
    heatmap: bool = option(False, "Export the score map for larger images instead of the classifier."),
    with_preprocessing: bool = option(False, "Include preprocessing: the program takes uint8 RGB pixels."),
) -> None:
    """Export a network for ONNX Runtime (.onnx) or plain PyTorch (.pt2)."""
    from convnets_torch.files import check_writable
    from convnets_torch.inference.export import check_ending
    from convnets_torch.inference.export import export as write
    from convnets_torch.weights import load

    check_ending(output)
    check_writable(output)
    written = write(load(weights), output, heatmap=heatmap, with_preprocessing=with_preprocessing)
    if shown.as_json:
        print(json.dumps({**asdict(written), "path": str(written.path), "with_preprocessing": with_preprocessing}))
        return
    pixels = "normalised as the card says"
    if with_preprocessing:
        pixels = {1: "grey", 3: "RGB", 4: "RGBA"}[int(written.images[-1])] + ", 0 to 255"
    checked = f"not checked: {written.unchecked}"
    if written.difference is not None:
        checked = f"{written.difference:.1e} of the largest logit"
    print_columns(
        [
            ("file", str(written.path)),
            ("bytes", f"{written.bytes:,}"),
            ("images", f"{written.kind} {_shape(written.images)}, {pixels}"),
            ("logits", f"float32 {_shape(written.logits)}"),
            ("smallest images" if heatmap else "images of", "x".join(map(str, written.smallest)) + PIXELS),
            ("largest difference", checked),
        ]
    )


PIXELS = " pixels (height x width)"


def _shape(sides: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, sides))})"
