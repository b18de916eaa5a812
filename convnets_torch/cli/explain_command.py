"""`explain`, `activations`, `filters`, `gradcam` and `layers`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli.options import Device, Precision, load_network
from convnets_torch.cli.output import one_line, rows_done, say, show, warnings_as_lines
from convnets_torch.cli.picture_commands import AllowTruncated, BackgroundOption, DepthOption, MaxPixels, Weights

if TYPE_CHECKING:
    from convnets_torch.explain.channels import ChannelGrid
    from convnets_torch.explain.faithfulness import Faithfulness
    from convnets_torch.explain.filters import FilterPatterns
    from convnets_torch.explain.gradcam import Explained
    from convnets_torch.explain.gradcam_maps import GradCam
    from convnets_torch.explain.patches import Patch, TopPatches
    from convnets_torch.networks import Network


def explain(
    weights: Weights,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture, or - for standard input.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write, an .html file.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to explain.")] = 5,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers whose activations to show: names or patterns such as 'relu5_*'; several times for more.",
            show_default="five",
        ),
    ] = None,
    method: Annotated[
        Literal["gradcam", "gradcam++", "hirescam", "layercam"], typer.Option(help="How classes are explained.")
    ] = "gradcam",
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Write one page: the top classes of a picture, the heatmap and the Grad-CAM of each, and what layers give."""
    from convnets_torch.cli.output import prediction_lines
    from convnets_torch.explain import page
    from convnets_torch.files import check_page

    check_page(output, "an explanation")
    network = load_network(weights, device, precision)
    picture = sys.stdin.buffer if image == "-" else image
    with warnings_as_lines():
        found = page.explain(
            network,
            picture,
            top=top,
            layers=layer,
            method=method,
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
            depth=depth,
            background=background,
        )
    found.save(output)
    for line in prediction_lines(found.predictions):
        show(line)


ALL = "features.*"
CHANNELS, ORDER, SCALE = 64, "strongest", "channel"


def activations(
    weights: Weights,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="A picture, or - for standard input; of several, folders or patterns the statistics are computed.",
        ),
    ],
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer's name, Keras's name, prefix or quoted pattern, as in 'relu5_*'; several times for more.",
            show_default="all of the features",
        ),
    ] = None,
    order: Annotated[
        Literal["strongest", "number"] | None,
        typer.Option(help="Of the channels: by the mean of their absolute values, or by number.", show_default=ORDER),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Show so many of each layer.", show_default=str(CHANNELS))
    ] = None,
    scale: Annotated[
        Literal["channel", "layer"] | None,
        typer.Option(
            help="Colours reach to the largest absolute value of each channel, or of the layer.", show_default=SCALE
        ),
    ] = None,
    longest_side: Annotated[
        int | None,
        typer.Option(min=1, help="The whole picture, resized to so many pixels, instead of the centre of it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Of a picture: .png, .jpg, .webp (one page of all layers), .npz (numbers), or a folder for a .png of"
            " each layer. Of several: .json, .csv, .npz, or a chart (.png, .svg, .pdf): the histogram of the share of"
            " zeros of one layer.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each layer.")] = False,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Draw what the channels of layers give for a picture, or compute their statistics over many."""
    if output is None and not as_json:
        raise typer.BadParameter("name a file or folder with -o, or ask for --json (or both)")
    from convnets_torch.cli.heatmap_folders import is_many

    reading: dict[str, Any] = {
        "max_pixels": max_pixels,
        "allow_truncated": allow_truncated,
        "depth": depth,
        "background": background,
    }

    def load() -> Network:
        return load_network(weights, device, precision, whole=True)

    if is_many(images):
        if any(option is not None for option in (order, channels, scale, longest_side)):
            raise typer.BadParameter(
                "--order, --channels, --scale and --longest-side are for one picture; of several, statistics are taken"
            )
        failed = _statistics(load, images, layer, output, as_json, reading)
        raise typer.Exit(1 if failed else 0)
    from convnets_torch.explain.channels import WRITER, activation_grids
    from convnets_torch.files import check_kept

    folder = output is not None and (output.is_dir() or not output.suffix)
    if output is not None and not folder:
        WRITER.check(output)
        check_kept(output, images)
    network = load()
    with warnings_as_lines():
        grids = activation_grids(
            network,
            sys.stdin.buffer if images == ["-"] else images[0],
            layer,
            order=order or "strongest",
            channels=channels or CHANNELS,
            scale=scale,
            longest_side=longest_side,
            **reading,
        )
    if output is not None:
        _save(grids, output, folder)
    for grid in grids:
        show(json.dumps(_record(grid)) if as_json else _line(grid))


def _save(grids: list[ChannelGrid], output: Path, folder: bool) -> None:
    """One page or file of numbers; or a page of each layer in a folder."""
    from convnets_torch.explain.channels import save_grids

    if not folder:
        save_grids(grids, output)
        return
    output.mkdir(parents=True, exist_ok=True)
    for grid in grids:
        save_grids([grid], output / f"{grid.layer}.png")
    say(f"{output}: pages of {len(grids)} layers")


def _record(grid: ChannelGrid) -> dict[str, Any]:
    return {
        "layer": grid.layer,
        "shape": list(grid.shape),
        "channels": grid.channels.tolist(),
        "strengths": grid.strengths[grid.channels].tolist(),
        "left_out": grid.left_out,
        "dead": int((grid.strengths == 0).sum()),
    }


def _line(grid: ChannelGrid) -> str:
    best, dead = int(grid.strengths.argmax()), int((grid.strengths == 0).sum())
    return (
        f"{grid.layer}  {'x'.join(map(str, grid.shape))}  {len(grid.channels)} shown, {grid.left_out} left out,"
        f" {dead} dead; strongest {best} ({grid.strengths[best]:.3g})"
    )


def _statistics(
    load: Callable[[], Network],
    images: list[str],
    layers: list[str] | None,
    output: Path | None,
    as_json: bool,
    reading: dict[str, Any],
) -> int:
    """Statistics of layers over pictures, or the histogram of one; how many pictures failed."""
    from convnets_torch.explain import statistics
    from convnets_torch.files import check_kept
    from convnets_torch.images.finding import find_pictures
    from convnets_torch.visualization import charts

    if histogram := output is not None and output.suffix.lower() in charts.ENDINGS:
        charts.check_chart(output)
        if layers is None or len(layers) > 1 or as_json:
            raise typer.BadParameter(
                "of several pictures a picture is the histogram of one layer's zeros: name one with --layer, without"
                " --json; statistics go into .json, .csv or .npz"
            )
    elif output is not None:
        statistics.WRITER.check(output)
    network = load()
    if "-" in images:
        raise ValueError("standard input is one picture; name it alone")
    with warnings_as_lines():
        pictures = find_pictures(images)
    if output is not None:
        check_kept(output, pictures)
    errors: tuple[tuple[str, Exception], ...]
    if histogram and layers is not None and output is not None:
        shares = statistics.zero_shares(network, pictures, layers[0], **reading)
        charts.save_chart(shares.draw(), output)
        show(f"{shares.layer}  {len(shares.shares)} pictures  {shares.shares.mean():.3f} of the values are zero")
        errors = shares.errors
    else:
        found = statistics.channel_statistics(network, pictures, layers or [ALL], **reading)
        for remark in found.remarks:
            say(remark)
        if output is not None:
            statistics.save_statistics(found, output)
        if as_json:
            print(json.dumps(statistics.as_json(found)))
        else:
            for each in found.layers:
                show(
                    f"{each.layer}  {each.pictures} pictures  mean {each.mean.mean():.3g}"
                    f"  zeros {each.zeros.mean():.3f}  dead {int(each.dead.sum())} of {len(each.mean)}"
                )
        errors = found.errors
    for _, error in errors:
        say(one_line(error))
    return len(errors)


def filters(
    weights: Weights,
    layer: Annotated[
        str | None, typer.Option(help="Layer whose channels are excited; best before its ReLU.", show_default=False)
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write: .png, .jpg, .webp (a sheet), or .npz (arrays).")
    ],
    channels: Annotated[str | None, typer.Option(help="Channels such as 0-63,70.", show_default="the first 64")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A class to excite instead: a word, a wnid, a class id; several times for several."),
    ] = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="The first layer's kernels instead, as they are.")] = False,
    pictures: Annotated[
        list[str] | None,
        typer.Option(help="Pictures or a folder of them: beside each pattern the patches that excite it most."),
    ] = None,
    form: Annotated[
        Literal["fourier", "plain"], typer.Option(help="How: with natural scales and colours, or as in Chollet's book.")
    ] = "fourier",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the ascent.", show_default="64, of the plain form 40")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels of each picture's side.", show_default="128")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the noise at the start.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Draw what excites a layer's channels, or a class: patterns, kernels, patches of your pictures."""
    _check_together(layer, channels, target, kernels, pictures)
    from convnets_torch.explain.filters import WRITER

    WRITER.check(output)
    if pictures and output.suffix.lower() == ".npz":
        raise typer.BadParameter("--pictures draws a sheet; name an output that ends in .png, .jpg or .webp")
    numbers = _numbers(channels)
    network = load_network(weights, device, precision, whole=True)
    if kernels:
        _draw_kernels(network, output, as_json)
        return
    from convnets_torch.explain.filters import class_patterns, filter_patterns

    options: dict[str, Any] = {"form": form, "steps": steps, "size": size, "seed": seed}
    found = None
    if pictures:  # first: what is wrong with a layer or a channel is said before the long ascent
        assert layer is not None
        reading = {
            "max_pixels": max_pixels,
            "allow_truncated": allow_truncated,
            "depth": depth,
            "background": background,
        }
        found = _patches(network, layer, numbers, pictures, output, reading)
    with warnings_as_lines(), rows_done("steps") as progress:
        if target:
            patterns = class_patterns(network, target, **options, progress=progress)
        else:
            assert layer is not None
            patterns = filter_patterns(network, layer, numbers, **options, progress=progress)
    if found is None:
        patterns.save(output)
    else:
        found.save(output, patterns)
    _print(patterns, found, output, as_json)
    for _, error in found.failed if found else ():
        say(one_line(error))
    if found and found.failed:
        raise typer.Exit(1)


def _check_together(
    layer: str | None, channels: str | None, target: list[str] | None, kernels: bool, pictures: list[str] | None
) -> None:
    """Options that do not go together are a misuse."""
    if (layer is not None) + bool(target) + kernels != 1:
        raise typer.BadParameter("name one of --layer, --target and --kernels")
    if layer is None and (channels is not None or pictures):
        raise typer.BadParameter("--channels and --pictures go with --layer")


def _numbers(channels: str | None) -> list[int] | None:
    """Channels such as 0-63,70."""
    if channels is None:
        return None
    numbers: list[int] = []
    for part in channels.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise typer.BadParameter(f"--channels is {channels!r}; give numbers and ranges such as 0-63,70")
        numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return list(dict.fromkeys(numbers))


def _draw_kernels(network: Network, output: Path, as_json: bool) -> None:
    from convnets_torch.explain.filters import first_kernels

    found = first_kernels(network)
    found.save(output)
    if as_json:
        entries = [{"unit": number, "peak": float(peak)} for number, peak in enumerate(found.peaks)]
        print(json.dumps({"output": str(output), "layer": found.layer, "kernels": entries}))
        return
    count, height, width = found.pictures.shape[:3]
    show(f"{output}: {count} kernels of {height}x{width} pixels of {found.layer}")


def _patches(
    network: Network,
    layer: str,
    channels: list[int] | None,
    pictures: list[str],
    output: Path,
    reading: dict[str, Any],
) -> TopPatches:
    from convnets_torch.explain.patches import top_patches
    from convnets_torch.files import check_kept
    from convnets_torch.images.finding import find_pictures

    with warnings_as_lines(), rows_done("pictures") as progress:
        paths = find_pictures(pictures)
        check_kept(output, paths)
        return top_patches(
            network,
            paths,
            layer,
            channels,
            **reading,
            progress=None if progress is None else lambda done: progress(done, len(paths)),
        )


def _print(patterns: FilterPatterns, found: TopPatches | None, output: Path, as_json: bool) -> None:
    """A line for each unit: activation at the start and of the picture, and what it is."""
    from convnets_torch.explain.filters import words_of

    entries: list[dict[str, Any]] = []
    for place, unit in enumerate(patterns.units):
        entry: dict[str, Any] = {
            "unit": unit if isinstance(unit, int) else words_of(unit),
            "before": float(patterns.before[place]),
            "after": float(patterns.after[place]),
            "excited": bool(patterns.excited[place]),
        }
        if found is not None:
            entry["patches"] = [_described(patch) for patch in found.patches[place]]
        entries.append(entry)
    if as_json:
        about = {"layer": patterns.layer, "form": patterns.form, "steps": patterns.steps, "seed": patterns.seed}
        print(json.dumps({"output": str(output), **about, "patterns": entries}))
        return
    for entry in entries:
        note = "" if entry["excited"] else "  not excited"
        show(f"{entry['before']:>10.4g} {entry['after']:>10.4g}  {entry['unit']}{note}")
        for patch in entry.get("patches", ())[:1]:
            left, top, right, bottom = (round(edge) for edge in patch["box"])
            where = f"x {left} to {right}, y {top} to {bottom}"
            show(f"{'':>10} {patch['activation']:>10.4g}  {patch['picture']}, {where}")
    say(f"{output}: {len(entries)} patterns of {patterns.layer}; activation of the noise, and of the picture")


def _described(patch: Patch) -> dict[str, Any]:
    return {
        "picture": str(patch.picture),
        "activation": patch.activation,
        "cell": [patch.row, patch.column],
        "box": list(patch.box),
    }


def gradcam(
    weights: Weights,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="A picture, or - for standard input; or several, folders, patterns."),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="What to explain: a word, a wnid, a class id, or 'dog - wolf'; several times for a map of each."
            " By default the most probable class.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write: .png, .jpg, .webp, .json, .npz or .npy (numbers); of several pictures a folder.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="What counts against the target: why this rather than that.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Whose cells are looked at; Keras's names do, too.", show_default="the last convolution"),
    ] = None,
    method: Annotated[
        Literal["gradcam", "gradcam++", "hirescam", "layercam"], typer.Option(help="How cells are weighed.")
    ] = "gradcam",
    form: Annotated[
        Literal["png", "jpg", "webp", "json", "npz", "npy"],
        typer.Option("--format", help="Ending of the files of several pictures."),
    ] = "png",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture and line.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="File for how faithful each map is: deletion and insertion curves, average drop and increase.",
            show_default=False,
        ),
    ] = None,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Draw what in a picture speaks for a class: Grad-CAM and its relatives."""
    if output is None and not as_json and report is None:
        raise typer.BadParameter("name a file to write with -o, or ask for --json or a --report")
    if against is not None and not target:
        raise typer.BadParameter("--against goes with --target")
    from convnets_torch.cli.heatmap_folders import check_places, is_many, places_of
    from convnets_torch.cli.output import with_time_left
    from convnets_torch.explain.gradcam import gradcam_each
    from convnets_torch.explain.gradcam_maps import GradCam
    from convnets_torch.files import check_kept, check_writable, replacing, resolved
    from convnets_torch.images.finding import find_pictures

    several = is_many(images)
    places: list[tuple[Path, Path | None]]
    with warnings_as_lines():
        if several and output is not None:
            found = [place for name in images for place in places_of(name, output, form)]
            check_places(found, output)
            places = [(picture, output / file) for picture, file in found]
        elif several:
            places = [(place, None) for name in images for place in find_pictures(name)]
        else:
            places = [(Path(images[0]), output)]
    if output is not None and not several:
        GradCam.writer.check(output)
        check_kept(output, images)
    if report is not None:
        if report.suffix.lower() != ".json":
            raise typer.BadParameter(f"--report is {report}; name a file that ends in .json")
        check_writable(report)
        if any(file is not None and resolved(file) == resolved(report) for _, file in places):
            raise typer.BadParameter(f"--report and -o are both {report}; name two files")
    network = load_network(weights, device, precision)
    sources = [sys.stdin.buffer if str(picture) == "-" else picture for picture, _ in places]
    entries = gradcam_each(
        network,
        sources,
        target or None,
        against=against,
        layer=layer,
        method=method,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        depth=depth,
        background=background,
    )
    writer = _Writer(output if several else None, as_json, guessed=not target)
    measured: list[Faithfulness] = []
    records: list[dict[str, Any]] = []
    with warnings_as_lines(), contextlib.closing(entries):
        for (picture, file), entry in zip(places, with_time_left(entries, len(places)), strict=True):
            writer.write(str(picture), file, entry)
            if report is not None:
                records.append({"image": str(picture), **_judged(network, entry, measured)})
    if report is not None:
        from convnets_torch.explain.faithfulness import summary

        whole = {"summary": summary(measured) if measured else None, "images": records}
        with replacing(report) as temporary:
            temporary.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if measured:
            means = whole["summary"]
            assert isinstance(means, dict)
            say(
                f"{report}: average drop {means['average_drop']:.1%}, average increase {means['average_increase']:.1%},"
                f" area under deletion {means['deletion_area']:.3f}, insertion {means['insertion_area']:.3f}"
            )
    if several:
        say(f"{output or 'done'}: {len(places)} pictures, {writer.failed} of which failed")
    if writer.failed:
        raise typer.Exit(1)


class _Writer:
    """Writes the maps of one picture after another and says what became of it."""

    def __init__(self, folder: Path | None, as_json: bool, guessed: bool) -> None:
        self.folder, self.as_json, self.guessed = folder, as_json, guessed
        self.failed = 0

    def write(self, picture: str, file: Path | None, entry: Explained) -> None:
        """The maps into `file`, if there is one; a line for each on stdout."""
        from convnets_torch.explain.gradcam_maps import save_cams
        from convnets_torch.files import make_folder

        for remark in entry.remarks:
            say(remark)
        error = entry.error
        if error is None and file is not None:
            try:
                if self.folder is not None:
                    make_folder(self.folder, file.relative_to(self.folder).parent)
                save_cams(entry.maps, file)
            except (OSError, ValueError) as failure:
                if self.folder is None:
                    raise
                error = failure
        if error is not None:
            self.failed += 1
            say(one_line(error))
            if self.as_json:
                print(json.dumps({"image": picture, "error": one_line(error)}))
            return
        if self.guessed:
            say(f"{picture}: no --target; the most probable class is {entry.maps[0].label}")
        if self.as_json:
            named = {} if file is None else {"output": str(file)}
            print(json.dumps({"image": picture, **named, "maps": [found.to_dict() for found in entry.maps]}))
            return
        for found in entry.maps:
            show(_cam_line(str(file or picture), found))


def _cam_line(name: str, found: GradCam) -> str:
    x, y = found.peak_pixel
    where = f"peak at x {x:.0f}, y {y:.0f} (pixels)" if found.raw_maximum else "nothing speaks for it"
    return f"{name}: {found.label}: probability {found.probability:.3f}, {where}"


def _judged(network: Any, entry: Explained, measured: list[Faithfulness]) -> dict[str, Any]:
    """What the report says of one picture; its numbers also go to `measured`."""
    from convnets_torch.explain.faithfulness import measure_faithfulness

    if entry.error is not None:
        return {"error": one_line(entry.error)}
    maps = []
    for found in entry.maps:
        measured.append(measure_faithfulness(network, found))
        maps.append({**found.described(), **measured[-1].to_dict()})
    return {"maps": maps}


def layers(
    weights: Weights,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per layer and line.")] = False,
) -> None:
    """Print the layers of a network: what they give, and their stride and receptive field in pixels."""
    from convnets_torch.cli.weights_commands import print_columns
    from convnets_torch.explain.activations import layer_names
    from convnets_torch.weights import load

    found = layer_names(load(weights))
    if as_json:
        for layer in found:
            print(json.dumps(asdict(layer)))
        return
    rows = [("name", "kind", "shape", "stride", "receptive field", "Keras's name")]
    for layer in found:
        rows.append(
            (
                layer.name,
                layer.kind,
                _sides(layer.shape),
                _sides(layer.stride),
                _sides(layer.receptive_field),
                layer.keras_name or "-",
            )
        )
    print_columns(rows)


def _sides(numbers: tuple[int, ...] | None) -> str:
    return "-" if numbers is None else "x".join(map(str, numbers))
