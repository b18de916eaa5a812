"""`explain`, `activations`, `filters`, `gradcam` and `layers`."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from convnets_torch.cli import options
from convnets_torch.cli.options import Images, RunOptions, Shown, Weights, argument, command, option
from convnets_torch.cli.output import (
    complain,
    one_line,
    prediction_lines,
    print_columns,
    rows_done,
    say,
    show,
    warnings_as_lines,
    with_time_left,
)

if TYPE_CHECKING:
    from convnets_torch.explain.channels import ChannelGrid
    from convnets_torch.explain.faithfulness import Faithfulness
    from convnets_torch.explain.filters import FilterPatterns
    from convnets_torch.explain.gradcam import Explained
    from convnets_torch.explain.patches import TopPatches
    from convnets_torch.networks import Network


@command()
def explain(
    weights: Weights,
    image: str = argument(..., "A picture, or - for standard input.", "IMAGE"),
    *,
    output: Path = option(..., "Page to write, .html."),
    top: options.Top = 5,
    layer: options.Layers = None,
    method: options.Method = "gradcam",
    run: RunOptions,
    shown: Shown,
) -> None:
    """Write one page: the top classes of a picture, the heatmap and Grad-CAM of each, and activations of layers.

    Without --layer, five layers are shown.
    """
    from convnets_torch.explain import page
    from convnets_torch.files import check_page

    check_page(output, "an explanation")
    network = run.load(weights)
    with warnings_as_lines():
        found = page.explain(network, options.opened(image), top=top, layers=layer, method=method, **run.reading)
    found.save(output)
    if shown.as_json:
        answers = [asdict(entry) for entry in found.predictions]
        print(json.dumps({"image": image, "output": str(output), "predictions": answers}))
        return
    for line in prediction_lines(found.predictions):
        show(line)


ALL = "features.*"
CHANNELS, ORDER, SCALE = 64, "strongest", "channel"


@command(old={"--scale": "--color-scale", "--channels": "--most-channels"})
def activations(
    weights: Weights,
    images: Images,
    layer: options.Layers = None,
    order: Literal["strongest", "number"] | None = option(
        None, "Order of the channels: by mean absolute value, or by number.", show_default=ORDER
    ),
    most_channels: int | None = option(
        None, "Maximum number of channels per layer.", min=1, show_default=str(CHANNELS)
    ),
    color_scale: Literal["channel", "layer"] | None = option(
        None, "Scale colours by the largest absolute value of each channel, or of the layer.", show_default=SCALE
    ),
    longest_side: options.LongestSide = None,
    output: Path | None = option(
        None,
        "For one picture: .png, .jpg, .webp (one page of all layers), .npz (numbers), or a folder for one .png per"
        " layer. For several: .json, .csv, .npz, or a chart (.png, .svg, .pdf): the histogram of the share of"
        " zeros in one layer.",
    ),
    *,
    run: RunOptions,
    shown: Shown,
) -> None:
    """Draw the activations of layers for one picture, or compute channel statistics over several.

    Without --layer, all layers of the features are taken. Without --longest-side, the network sees the centre crop.
    """
    if output is None and not shown.as_json:
        raise typer.BadParameter("give -o FILE or FOLDER, --json, or both")
    from convnets_torch.cli.heatmap_folders import is_many

    if is_many(images):
        if any(option is not None for option in (order, most_channels, color_scale, longest_side)):
            raise typer.BadParameter("--order, --most-channels, --color-scale and --longest-side need a single picture")
        failed = _statistics(weights, images, layer, output, shown.as_json, run)
        raise typer.Exit(1 if failed else 0)
    from convnets_torch.explain.channels import WRITER, activation_grids, save_grids
    from convnets_torch.files import check_kept

    folder = output is not None and (output.is_dir() or not output.suffix)
    if output is not None and not folder:
        WRITER.check(output)
        check_kept(output, images)
    network = run.load(weights, whole=True)
    with warnings_as_lines():
        grids = activation_grids(
            network,
            options.opened(images[0]),
            layer,
            order=order or "strongest",
            channels=most_channels or CHANNELS,
            scale=color_scale,
            longest_side=longest_side,
            **run.reading,
        )
    if output is not None and folder:
        output.mkdir(parents=True, exist_ok=True)
        for grid in grids:
            save_grids([grid], output / f"{grid.layer}.png")
        say(f"{output}: pages of {len(grids)} layers")
    elif output is not None:
        save_grids(grids, output)
    for grid in grids:
        show(json.dumps(_record(grid)) if shown.as_json else _line(grid))


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
    weights: str,
    images: list[str],
    layers: list[str] | None,
    output: Path | None,
    as_json: bool,
    run: RunOptions,
) -> int:
    """Write statistics of layers over pictures, or the histogram of one layer; return how many pictures failed."""
    from convnets_torch.explain import statistics
    from convnets_torch.files import check_kept
    from convnets_torch.visualization import charts

    if histogram := output is not None and output.suffix.lower() in charts.ENDINGS:
        charts.check_chart(output)
        if layers is None or len(layers) > 1 or as_json:
            raise typer.BadParameter(
                "a chart of several pictures is the histogram of one layer's zeros: name one --layer, without --json;"
                " statistics go into .json, .csv or .npz"
            )
    elif output is not None:
        statistics.WRITER.check(output)
    network = run.load(weights, whole=True)
    if "-" in images:
        raise ValueError("standard input is one picture; name it alone")
    with warnings_as_lines():
        pictures = run.find(images)
    passing = {**run.running, "batch": run.batch_size or statistics.BATCH_SIZE}
    if output is not None:
        check_kept(output, pictures)
    errors: tuple[tuple[str, Exception], ...]
    if histogram and layers is not None and output is not None:
        shares = statistics.zero_shares(network, pictures, layers[0], **passing)
        charts.save_chart(shares.draw(), output)
        show(f"{shares.layer}  {len(shares.shares)} pictures  {shares.shares.mean():.3f} of the values are zero")
        errors = shares.errors
    else:
        found = statistics.channel_statistics(network, pictures, layers or [ALL], **passing)
        for note in found.notes:
            say(note)
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
        complain(error)
    return len(errors)


@command()
def filters(
    weights: Weights,
    layer: options.Layer = None,
    *,
    output: Path = option(..., "File to write: .png, .jpg, .webp (a sheet), or .npz (arrays)."),
    channels: str | None = option(None, "Channel numbers such as 0-63,70.", show_default="the first 64"),
    target: options.Targets = None,
    kernels: bool = option(False, "Draw the first layer's kernels instead."),
    pictures: list[str] | None = option(
        None, "Pictures or folders; the patches with the highest activation are drawn beside each pattern."
    ),
    form: Literal["fourier", "plain"] = option(
        "fourier", "Parametrisation: Fourier, with natural scales and colours, or pixels as in Chollet's book."
    ),
    steps: int | None = option(None, "Steps of gradient ascent.", min=1, show_default="64, plain 40"),
    size: int | None = option(None, "Side of each pattern in pixels.", min=1, show_default="128"),
    seed: int = option(0, options.SEED, min=0, max=2**63 - 1),
    run: RunOptions,
    shown: Shown,
) -> None:
    """Draw patterns that maximise a layer's channels or a class, and the picture patches that excite them most.

    Give one of --layer (best before its ReLU), --target and --kernels.
    """
    if (layer is not None) + bool(target) + kernels != 1:
        raise typer.BadParameter("give one of --layer, --target and --kernels")
    if layer is None and (channels is not None or pictures):
        raise typer.BadParameter("--channels and --pictures go with --layer")
    from convnets_torch.explain.filters import WRITER, class_patterns, filter_patterns
    from convnets_torch.explain.patches import top_patches
    from convnets_torch.files import check_kept

    WRITER.check(output)
    if pictures and output.suffix.lower() == ".npz":
        raise typer.BadParameter("--pictures draws a sheet; name an output that ends in .png, .jpg or .webp")
    numbers = _numbers(channels)
    network = run.load(weights, whole=True)
    if kernels:
        _draw_kernels(network, output, shown.as_json)
        return
    passing: dict[str, Any] = {"form": form, "steps": steps, "size": size, "seed": seed}
    if run.batch_size is not None:
        passing["batch"] = run.batch_size
    found = None
    if pictures:  # first, so that a wrong layer or channel is reported before the long ascent
        assert layer is not None
        with warnings_as_lines(), rows_done("pictures") as bar:
            paths = run.find(pictures)
            check_kept(output, paths)
            report = None if bar is None else lambda done: bar(done, len(paths))
            found = top_patches(network, paths, layer, numbers, workers=run.workers, **run.reading, progress=report)
    with warnings_as_lines(), rows_done("steps") as progress:
        if target:
            patterns = class_patterns(network, target, **passing, progress=progress)
        else:
            assert layer is not None
            patterns = filter_patterns(network, layer, numbers, **passing, progress=progress)
    if found is None:
        patterns.save(output)
    else:
        found.save(output, patterns)
    _print(patterns, found, output, shown.as_json)
    for _, error in found.failed if found else ():
        complain(error)
    if found and found.failed:
        raise typer.Exit(1)


def _numbers(channels: str | None) -> list[int] | None:
    """Parse channel numbers such as 0-63,70."""
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


def _print(patterns: FilterPatterns, found: TopPatches | None, output: Path, as_json: bool) -> None:
    """Print a line per unit: activation of the noise, activation of the pattern, name."""
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
            entry["patches"] = [
                {
                    "picture": str(patch.picture),
                    "activation": patch.activation,
                    "cell": [patch.row, patch.column],
                    "box": list(patch.box),
                }
                for patch in found.patches[place]
            ]
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
    say(f"{output}: {len(entries)} patterns of {patterns.layer}; activation of the noise and of the pattern")


@command()
def gradcam(
    weights: Weights,
    images: Images,
    target: options.Targets = None,
    output: Path | None = option(
        None, "File to write: .png, .jpg, .webp, .json, .npz or .npy (numbers); a folder for several pictures."
    ),
    against: options.Against = None,
    layer: options.Layer = None,
    method: options.Method = "gradcam",
    form: Literal["png", "jpg", "webp", "json", "npz", "npy"] = option(
        "png", "File format for several pictures.", "--format"
    ),
    report: Path | None = option(
        None,
        "Folder for report.json: how faithful each map is, by deletion and insertion curves, average drop and"
        " increase.",
    ),
    *,
    run: RunOptions,
    shown: Shown,
) -> None:
    """Draw which parts of a picture support a class, by Grad-CAM, Grad-CAM++, HiResCAM or LayerCAM.

    Each target gets its own map. The default target is the most probable class, the default layer the last
    convolution.
    """
    as_json = shown.as_json
    if output is None and not as_json and report is None:
        raise typer.BadParameter("give -o FILE, --json or --report FOLDER")
    if against is not None and not target:
        raise typer.BadParameter("--against goes with --target")
    from convnets_torch.cli.heatmap_folders import check_places, is_many, places_of
    from convnets_torch.explain.gradcam import gradcam_each
    from convnets_torch.explain.gradcam_maps import GradCam
    from convnets_torch.files import check_kept, check_writable, replacing, resolved

    several = is_many(images)
    places: list[tuple[Path, Path | None]]
    with warnings_as_lines():
        if several and output is not None:
            found = [place for name in images for place in places_of(name, output, form, run.exclude or ())]
            check_places(found, output)
            places = [(picture, output / file) for picture, file in found]
        elif several:
            places = [(Path(place), None) for place in run.find(images)]
        else:
            places = [(Path(images[0]), output)]
    if output is not None and not several:
        GradCam.writer.check(output)
        check_kept(output, images)
    if report is not None:
        if report.suffix.lower() == ".json" and not report.is_dir():
            options.deprecated(f"--report {report}, a file,", f"--report FOLDER, which gets a {REPORT}")
        else:
            if report.exists() and not report.is_dir():
                raise NotADirectoryError(f"{report} is not a folder; name one for the report")
            report.mkdir(parents=True, exist_ok=True)
            report = report / REPORT
        check_writable(report)
        if any(file is not None and resolved(file) == resolved(report) for _, file in places):
            raise typer.BadParameter(f"--report and -o both write {report}; name two places")
    network = run.load(weights)
    sources = [options.opened(str(picture)) for picture, _ in places]
    entries = gradcam_each(network, sources, target or None, against=against, layer=layer, method=method, **run.running)
    failed = 0
    measured: list[Faithfulness] = []
    records: list[dict[str, Any]] = []
    with warnings_as_lines(), contextlib.closing(entries):
        for (picture, file), entry in zip(places, with_time_left(entries, len(places)), strict=True):
            failed += not _written(entry, str(picture), file, output if several else None, as_json, not target)
            if report is not None:
                records.append({"image": str(picture), **_measured(network, entry, measured)})
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
        say(f"{output or 'done'}: {len(places)} pictures, {failed} of which failed")
    if failed:
        raise typer.Exit(1)


REPORT = "report.json"


def _written(
    entry: Explained, picture: str, file: Path | None, folder: Path | None, as_json: bool, guessed: bool
) -> bool:
    """Save the maps of a picture to `file`, if given, and print a line for each; return whether that worked."""
    from convnets_torch.explain.gradcam_maps import save_cams
    from convnets_torch.files import make_folder

    for note in entry.notes:
        say(note)
    error = entry.error
    if error is None and file is not None:
        try:
            if folder is not None:
                make_folder(folder, file.relative_to(folder).parent)
            save_cams(entry.maps, file)
        except (OSError, ValueError) as failure:
            if folder is None:
                raise
            error = failure
    if error is not None:
        complain(error)
        if as_json:
            print(json.dumps({"image": picture, "error": one_line(error)}))
        return False
    if guessed:
        say(f"{picture}: no --target; the most probable class is {entry.maps[0].label}")
    if as_json:
        named = {} if file is None else {"output": str(file)}
        print(json.dumps({"image": picture, **named, "maps": [found.to_dict() for found in entry.maps]}))
        return True
    for found in entry.maps:
        x, y = found.peak_pixel
        where = f"peak at x {x:.0f}, y {y:.0f} (pixels)" if found.raw_maximum else "no positive evidence"
        show(f"{file or picture}: {found.label}: probability {found.probability:.3f}, {where}")
    return True


def _measured(network: Any, entry: Explained, measured: list[Faithfulness]) -> dict[str, Any]:
    """Return the report's record of a picture; append its measures to `measured`."""
    from convnets_torch.explain.faithfulness import measure_faithfulness

    if entry.error is not None:
        return {"error": one_line(entry.error)}
    maps = []
    for found in entry.maps:
        measured.append(measure_faithfulness(network, found))
        maps.append({**found.described(), **measured[-1].to_dict()})
    return {"maps": maps}


@command()
def layers(weights: Weights, shown: Shown) -> None:
    """Print the layers of a network: output shape, stride and receptive field in pixels, and Keras's name."""
    from convnets_torch.explain.activations import layer_names
    from convnets_torch.weights import load

    found = layer_names(load(weights))
    if shown.as_json:
        for layer in found:
            print(json.dumps(asdict(layer)))
        return
    rows: list[tuple[str, ...]] = [("name", "kind", "shape", "stride", "receptive field", "Keras's name")]
    for layer in found:
        sides = map(_sides, (layer.shape, layer.stride, layer.receptive_field))
        rows.append((layer.name, layer.kind, *sides, layer.keras_name or "-"))
    print_columns(rows)


def _sides(numbers: tuple[int, ...] | None) -> str:
    return "-" if numbers is None else "x".join(map(str, numbers))
