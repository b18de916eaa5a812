"""Options of the command line: which command has which, and that they mean the same everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from convnets_torch import save
from convnets_torch.card import read_card
from convnets_torch.cli.app import PANELS, app
from tests.finetuned import small_resnet
from tests.reference.pictures import picture

TREE: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = {  # those of a group are called "batch plan"
    f"{name} {inner}".strip(): each
    for name, entry in TREE.commands.items()
    for inner, each in getattr(entry, "commands", {"": entry}).items()
}
TALK = "--json --quiet --verbose"
READ = "--max-pixels --allow-truncated --exclude --depth --background"
RUN = f"{READ} --device --precision --engine --batch-size --workers"
LABELS = "--truth --columns --partial"
CHANGES = (
    "--strength --scale --crop --rotation --skew --flip --vertical-flip --no-flip-class --tint --hue --blur"
    " --randaugment --mixup --cutmix"
)
WORK = "--executor --address --actors --cpus --tries"
FETCH = f"{WORK} --fetch-threads --allow-bad"
OPTIONS = {  # command -> its options, besides those of TALK
    "batch check": "",
    "batch collect": f"{LABELS} --evaluate --id-table --labels --incomplete",
    "batch errors": "--kind",
    "batch plan": f"{READ} --precision --weights --outputs --target --layer --pool --normalize --half --top --shard"
    " --column --longest-side --reduced",
    "batch retry": "--kind",
    "batch run": f"{FETCH} --device --batch-size --workers --weights --strict",
    "batch status": "",
    "activations": f"{RUN} --output --layer --order --most-channels --color-scale --longest-side",
    "audit": "--no-isolation",
    "augment": f"{READ} {CHANGES} --output --weights --views --seed",
    "classify": f"{RUN} --output --top --target --backoff --csv --table",
    "convert": "--output --cache --backend --data-format --preprocessing --activation --hidden-activation"
    " --pool1-padding --input-size --output-layer --until --classes --layout --architecture --proof --report"
    " --no-isolation",
    "demo": "--output",
    "doctor": f"{RUN} --output --expect --golden",
    "duplicates": "--output --min-similarity --between --job --executor --address",
    "embed": f"{RUN} --output --layer --pool --normalize --zeros",
    "evaluate": f"{RUN} {LABELS} --output --id-table --labels --crops --predictions --temperature --save-temperature"
    " --resume-folder --reduced",
    "explain": f"{RUN} --output --top --layer --method",
    "export": "--output --heatmap --with-preprocessing",
    "filters": f"{RUN} --output --layer --target --channels --kernels --pictures --form --steps --size --seed",
    "finetune": f"{RUN} {LABELS} {CHANGES} --output --head-epochs --views --head-lr --epochs --unfreeze --optimizer"
    " --lr --momentum --weight-decay --class-weights --label-smoothing --dropout --patience --seed --activation"
    " --val-share --allow-leaks --leak-threshold --resume --checkpoint --tensorboard",
    "gradcam": f"{RUN} --output --target --against --layer --method --format --report",
    "heatmap": f"{RUN} --output --target --against --argmax --all --longest-side --upscale --cell-stride --scales"
    " --fuse --max-memory --resume-folder --format --threshold --reduced --plain",
    "index": f"{RUN} {FETCH} --output --layer --pool --half --pca --hash-all --prune --job --shard --column",
    "index-vectors": f"{WORK} --segments --metric",
    "info": "",
    "layers": "",
    "map": f"{RUN} --output --png --save --on --perplexity --title",
    "quantize": f"{READ} --output --target-agreement --report",
    "probe": f"{RUN} {LABELS} --output --folds --choose --report",
    "search": f"{RUN} --output -k --metric --target --box --approximate --refine --in-place --address --weights",
    "synsets": "--tree --search",
}
OTHERWISE = {  # option -> commands where its type, default or help differs from that in the others
    "--executor": {"duplicates"},  # with --job alone
    "--output": set(OPTIONS),  # what is written
    "--report": {"convert", "gradcam", "probe", "quantize"},  # contents of the folder; a table
    "--precision": {"finetune"},  # mixed precision
    "--batch-size": {"finetune"},  # per step, which changes the result
    "--workers": {"finetune"},  # processes
    "--activation": {"finetune"},  # of the network to train; in convert, of the given one
    "--views": {"augment", "finetune"},  # on a sheet; of cached features
    "--weights": {"augment", "search", "batch plan", "batch run"},  # an option: for the card, new pictures, a job
    "--strength": {"augment"},  # a stronger default
    "--address": {"duplicates", "search"},  # with --job alone; reads vectors there, and computes none
    "--format": {"heatmap"},  # also .html
    "--layer": {"filters", "gradcam", "index", "batch plan"},  # one; elsewhere several
}
OLD = [  # deprecated spellings: command, old, new
    ("activations", "--scale", "--color-scale"),
    ("activations", "--channels", "--most-channels"),
    ("classify", "--only", "--target"),
    ("doctor", "--write", "--output"),
    ("duplicates", "--threshold", "--min-similarity"),
    ("evaluate", "--batch", "--batch-size"),
    ("evaluate", "--report", "--output"),
    ("evaluate", "--resume", "--resume-folder"),
    ("finetune", "--batch", "--batch-size"),
    ("finetune", "--head-rate", "--head-lr"),
    ("finetune", "--rate", "--lr"),
    ("heatmap", "--resume", "--resume-folder"),
    ("index", "--db", "--output"),
    ("search", "--ann", "--approximate"),
    ("search", "--class", "--target"),
]


def options(name):
    found = (each for each in COMMANDS[name].params if each.param_type_name == "option" and not each.hidden)
    return {max(each.opts, key=len): each for each in found}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(small_resnet(), path)
    return path


@pytest.fixture
def street(tmp_path):
    path = tmp_path / "street.png"
    Image.fromarray(picture(3, 120, 160)).save(path)
    return path


def test_each_command_has_its_options():
    assert OPTIONS.keys() == COMMANDS.keys()
    for name, wanted in OPTIONS.items():
        assert sorted(options(name)) == sorted(f"{wanted} {TALK}".split()), name


def test_an_option_is_the_same_in_all_commands():
    for option in sorted({each for name in OPTIONS for each in options(name)}):
        others = [name for name in OPTIONS if option in options(name) and name not in OTHERWISE.get(option, ())]
        kinds = set()
        for name in others:
            found = options(name)[option]
            context = typer.Context(COMMANDS[name])
            kind = found.display_type_rich(ctx=context), str(found.default), str(found.show_default), found.help
            kinds.add((*kind, found.rich_help_panel, tuple(sorted([*found.opts, *found.secondary_opts]))))
        assert len(kinds) <= 1, (option, kinds)


def test_what_differs_has_a_reason_and_a_name():
    for option, names in OTHERWISE.items():
        assert all(option in options(name) for name in names if option != "--output"), option
    for short, long in (("-o", "--output"), ("-q", "--quiet"), ("-v", "--verbose")):
        assert all(short in options(name)[long].opts for name in OPTIONS if long in options(name))


def test_every_option_has_a_help_text_and_every_command_a_panel():
    assert {entry.rich_help_panel for entry in TREE.commands.values()} == {*PANELS}
    for name, entry in COMMANDS.items():
        assert all(each.help for each in entry.params if not each.hidden), name


def test_the_help_lists_the_commands_in_groups(command):
    code, out, _ = command("-h")
    assert code == 0
    assert [out.index(f" {panel} ") for panel in PANELS] == sorted(out.index(f" {panel} ") for panel in PANELS)
    assert "--install-completion" in out
    assert command("classify", "-h")[1] == command("classify", "--help")[1]


def test_python_m_runs_the_command_line():
    done = subprocess.run([sys.executable, "-m", "convnets_torch", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


def test_a_shell_completes_commands_and_options():
    told = {
        "_CONVNETS_TORCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "convnets-torch classify --bat",
        "COMP_CWORD": "2",
    }
    code = "import sys; sys.argv = ['convnets-torch']; from convnets_torch.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **told})
    assert done.stdout.split() == ["--batch-size"], done.stderr


@pytest.mark.parametrize(("name", "old", "new"), OLD, ids=[f"{name} {old}" for name, old, _ in OLD])
def test_an_old_spelling_is_said_and_taken(name, old, new, command):
    """The command then fails because of another argument."""
    assert old not in options(name)
    assert new in options(name)
    for word in (old, f"{old}=1"):
        code, _, error = command(name, *([word] if "=" in word else [word, "1"]))
        assert code == 2
        assert f"convnets-torch: DeprecationWarning: {old} is now {new}; " in error
        assert "No such option" not in error
        complaints = ("Missing argument", f"Invalid value for '{new}'", f"Option '{new}' does not take a value")
        assert any(each in error for each in complaints)


def test_a_word_after_two_dashes_is_no_old_spelling(weights, command):
    code, _, error = command("classify", weights, "--", "--only")
    assert (code, error) == (1, "convnets-torch: --only does not exist; name a file\n")


def test_old_spellings_give_what_the_new_ones_give(weights, street, tmp_path, command):
    new = command("classify", weights, street, "--target", "0", "--target", "1")
    assert new[0] == 0
    assert len(new[1].splitlines()) == 2
    for words in (["--only", "0 + 1"], ["--only=0 + 1"]):
        code, out, error = command("classify", weights, street, *words)
        assert (code, out, error.count("\n")) == (0, new[1], 1)
    report = tmp_path / "report.json"
    code, _, error = command("gradcam", weights, street, "--target", "0", "--report", report)
    assert (code, f"--report {report}, a file, is now --report FOLDER" in error, report.is_file()) == (0, True, True)
    code, _, error = command("gradcam", weights, street, "--target", "0", "--report", tmp_path / "faithful")
    assert (code, "Deprecation" in error) == (0, False)
    assert (tmp_path / "faithful" / "report.json").read_bytes() == report.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["activations", "WEIGHTS", "STREET"],
        ["augment", "STREET"],
        ["classify", "WEIGHTS", "STREET"],
        ["convert", "STREET"],
        ["doctor", "WEIGHTS", "STREET", "--expect", "0"],
        ["duplicates", "INDEX"],
        ["embed", "WEIGHTS", "STREET"],
        ["explain", "WEIGHTS", "STREET"],
        ["export", "WEIGHTS"],
        ["filters", "WEIGHTS", "--layer", "conv1"],
        ["finetune", "WEIGHTS", "FOLDER"],
        ["gradcam", "WEIGHTS", "STREET"],
        ["heatmap", "WEIGHTS", "STREET", "--target", "0"],
        ["map", "WEIGHTS", "FOLDER"],
        ["probe", "WEIGHTS", "FOLDER"],
        ["search", "INDEX", "STREET"],
    ],
    ids=lambda words: words[0],
)
def test_an_unknown_ending_is_refused_before_any_work(words, weights, street, tmp_path, command):
    named = {"WEIGHTS": weights, "STREET": street, "FOLDER": tmp_path, "INDEX": tmp_path / "none.lance"}
    output = tmp_path / "out.pth"
    code, out, error = command(*(named.get(word, word) for word in words), "-o", output)
    assert code in (1, 2)
    assert out == ""
    words = " ".join(error.replace("│", " ").split())
    assert "ending" in words or "is written as" in words
    assert list(tmp_path.iterdir()) == [street]


@pytest.mark.parametrize(
    "words",
    [
        ["activations", "STREET", "--json"],
        ["doctor", "STREET", "--expect", "0"],
        ["embed", "STREET", "--json"],
        ["explain", "STREET", "-o", "OUT.html"],
        ["filters", "--kernels", "-o", "OUT.png"],
        ["finetune", "FOLDER", "-o", "OUT.safetensors"],
        ["gradcam", "STREET", "--json"],
        ["index", "STREET", "-o", "OUT.lance"],
        ["map", "STREET", "-o", "OUT.html"],
        ["probe", "FOLDER"],
    ],
    ids=lambda words: words[0],
)
def test_an_engine_is_refused_where_it_cannot_do_the_work(words, weights, street, tmp_path, command):
    folder = tmp_path / "classes"
    for number in range(10):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 70, 80)).save(folder / "ab"[number % 2] / f"{number}.png")
    named = {"STREET": street, "FOLDER": folder}
    words = [named.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in words]
    code, out, error = command(words[0], weights, *words[1:], "--engine", "openvino")
    assert (code, out) == (2, "")
    assert "needs more of the network" in " ".join(error.replace("│", " ").split())


def test_quiet_leaves_results_and_errors(weights, street, tmp_path, command):
    out_file = tmp_path / "x.csv"
    missing = tmp_path / "none.png"
    code, out, error = command("classify", weights, street, missing, "-o", out_file)
    assert (code, out, error.count("\n")) == (1, "", 2)
    code, out, error = command("classify", weights, street, missing, "-o", out_file, "-q")
    assert (code, out, error) == (1, "", f"convnets-torch: {missing} does not exist; name a file\n")
    wanted = command("heatmap", weights, street, "--target", "0", "-o", tmp_path / "x.png")
    code, out, error = command("heatmap", weights, street, "--target", "0", "-o", tmp_path / "x.png", "--quiet")
    assert (code, out, error) == (0, wanted[1], "")
    assert wanted[2] != ""


def test_verbose_says_device_precision_and_time(weights, street, command):
    code, out, error = command("classify", weights, street, "-v", "--device", "cpu", "--precision", "float32")
    assert (code, out) == (0, command("classify", weights, street, "--precision", "float32")[1])
    assert "the network runs on cpu, precision float32" in error
    assert error.splitlines()[-1].endswith(" s")
    code, _, error = command("info", street, "--verbose")
    assert (code, "Traceback" in error) == (1, True)
    assert "Traceback" not in command("info", street)[2]


@pytest.mark.parametrize(("ending", "start"), [("csv", "image,rank,"), ("jsonl", "{"), ("json", "{"), ("txt", "0.")])
def test_the_ending_decides_how_answers_are_written(ending, start, weights, street, tmp_path, command):
    output = tmp_path / f"answers.{ending}"
    assert command("classify", weights, street, "-o", output)[:2] == (0, "")
    assert output.read_text().startswith(start)
    flags = {"csv": ["--json", "--table"], "txt": ["--json", "--csv"]}.get(ending, ["--csv", "--table"])
    for flag in flags:
        code, _, error = command("classify", weights, street, "-o", output, flag)
        assert (code, f"{flag} does not go with" in " ".join(error.replace("│", " ").split())) == (2, True)


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["heatmap", "STREET", "--target", "0", "-o", "OUT.png"], {"image", "output", "picture", "threshold", "maps"}),
        (["heatmap", "STREET", "--argmax", "-o", "OUT.png"], {"image", "output", "picture", "threshold", "maps"}),
        (["heatmap", "STREET", "--all", "-o", "OUT.npz"], {"image", "output"}),
        (["explain", "STREET", "-o", "OUT.html"], {"image", "output", "predictions"}),
        (["gradcam", "STREET", "-o", "OUT.png"], {"image", "output", "maps"}),
        (["info"], {"network", "preprocessing", "class_names"}),
    ],
    ids=lambda words: " ".join(words[:3]) if isinstance(words, list) else "",
)
def test_json_is_one_object(words, keys, weights, street, tmp_path, command):
    named = [{"STREET": street}.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in words]
    code, out, error = command(named[0], weights, *named[1:], "--json")
    assert code == 0, error
    assert keys <= json.loads(out).keys()


def test_batches_and_workers_change_no_answer(weights, street, tmp_path, command):
    for number in range(5):
        Image.fromarray(picture(number, 90, 110)).save(tmp_path / f"{number}.png")
    for words in (
        ["classify", "--json"], ["embed", "--json"], ["gradcam", "--json"], ["activations", "--json"],
        ["heatmap", "--target", "0", "-o", tmp_path / "maps", "--json"],
    ):  # fmt: skip
        found = [
            command(words[0], weights, tmp_path, *words[1:], "--exclude", "maps", *more)
            for more in ([], ["--batch-size", 2, "--workers", 1], ["--exclude", "[0-9].png"])
        ]
        rows = [[json.loads(line) for line in out.splitlines()] for _, out, _ in found]
        assert [code for code, _, _ in found] == [0, 0, 0], found
        assert numbers(rows[0]) == pytest.approx(numbers(rows[1]), rel=1e-4, abs=1e-5)
        assert numbers(rows[0]) != numbers(rows[2])


def numbers(value):
    """Return all numbers in a JSON value, in order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [] if isinstance(value, str | None) else [float(value)]


@pytest.fixture
def twelve_bits(tmp_path):
    """Two classes of 16-bit pictures with 12-bit values."""
    for number in range(8):
        grey = picture(number, 80, 90)[:, :, 0].astype(np.uint16) * 16
        folder = tmp_path / "classes" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(folder / f"{number}.png")
    return tmp_path / "classes"


def test_depth_acts_in_training_and_search(weights, twelve_bits, tmp_path, cache, command):
    probe = ("probe", weights, twelve_bits, "--folds", 2, "--json")
    plain, deep = (json.loads(command(*probe, *more)[1]) for more in ([], ["--depth", "12"]))
    assert plain["remarks"] != deep["remarks"]  # the warning about unused bits
    assert numbers(plain) == numbers(json.loads(command(*probe)[1]))  # from the cache, separate from that of 12 bits
    losses = []
    for more in ([], ["--depth", "12"]):
        output = tmp_path / "mine.safetensors"
        code, out, error = command(
            "finetune", weights, twelve_bits, "-o", output, "--batch-size", 2, "--epochs", 0, "--head-epochs", 1,
            "--allow-leaks", "--json", *more,
        )  # fmt: skip
        assert code == 0, error
        losses.append(json.loads(out)["best"]["val_loss"])
        assert read_card(output).unknown["finetuning"]["data"].get("depth") == (more[1] if more else None)
    assert losses[0] != losses[1]
    place = tmp_path / "x.lance"
    assert command("index", weights, twelve_bits / "class 0", "-o", place)[0] == 0
    search = ("search", place, twelve_bits / "class 1", "-k", 1, "--json")
    scores = []
    for more in ([], ["--depth", "12"], ["--exclude", "3.png"]):
        code, out, error = command(*search, *more)
        assert code == 0, error
        scores.append(numbers([json.loads(line) for line in out.splitlines()]))
    assert scores[0] != scores[1]
    assert len(scores[2]) < len(scores[0])


def test_the_cache_keeps_vectors_of_cut_files_apart(weights, tmp_path, cache, command):
    for number in range(8):
        folder = tmp_path / "classes" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 80, 90)).save(folder / f"{number}.jpg")
    cut = tmp_path / "classes" / "a" / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-400])
    arguments = ("probe", weights, tmp_path / "classes", "--folds", 2)
    assert [command(*arguments, *more)[0] for more in ([], ["--allow-truncated"], [])] == [1, 0, 1]


@pytest.mark.parametrize(
    "words",
    [
        ["classify"], ["embed", "--json"], ["gradcam", "--json"], ["activations", "--json"], ["probe", "--folds", "2"],
        ["heatmap", "--target", "0", "-o", "OUT"], ["index", "-o", "OUT.lance"], ["map", "-o", "OUT.html"],
        pytest.param(["doctor", "--expect", "0"], marks=pytest.mark.slow), ["evaluate"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_as_many_go_together_as_are_asked_for(words, weights, tmp_path, cache, command, monkeypatch):
    """The batch size is measured at the convolutions."""
    for number in range(10):
        folder = tmp_path / "pictures" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 90, 110)).save(folder / f"{number}.png")
    together, convolve = [], torch.nn.Conv2d.forward

    def counted(self, images):
        together.append(len(images))
        return convolve(self, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    name, *more = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    largest = []
    for size in ([], ["--batch-size", "3", "--workers", "1"]):
        together.clear()
        code, _, error = command(name, weights, tmp_path / "pictures", *more, *size)
        assert code == (1 if name == "doctor" else 0), error
        largest.append(max(together, default=0))
        for made in (*tmp_path.glob("out*"), *cache.glob("features")):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    assert largest[0] > 3
    assert largest[1] == 3
