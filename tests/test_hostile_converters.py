"""Files and folders of strangers, given to the converter, the audit and the doctor."""

from __future__ import annotations

import copy
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from converters import convert
from converters.conversion import read_labels
from converters.doctor.evidence import Golden
from converters.keras_plan import plan_keras
from converters.plan import Wishes
from converters.readers.keras_file import KerasFile
from converters.readers.keras_graph import graph_of_config
from converters.readers.process import NEEDED
from converters.readers.pytorch_files import carry_out_tensors, describe_state_dict
from converters.readers.reading import read_keras
from tests.conftest import DATA, KERAS1, NARROW

pytestmark = pytest.mark.hostile

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sysconfig.get_path("scripts")) / "convnets-torch"


# A folder full of somebody's modules


@pytest.fixture
def trap(tmp_path):
    """A folder with a weights file, and modules of any name that is imported, each of which leaves a trace."""
    folder = tmp_path / "download"
    folder.mkdir()
    names = [name for name in sys.stdlib_module_names if not name.startswith("_")]
    for name in (*names, "numpy", "h5py", "torch", "converters", "convnets_torch", "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'a').write({name!r} + ' ')\n")
    shutil.copy(KERAS1 / "vgg16.h5", folder / "x.h5")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not COMMAND.exists(), reason="the command is not installed")
@pytest.mark.parametrize(
    "arguments", [("audit", "x.h5"), ("convert", "x.h5", "-o", "out.safetensors", "--backend=theano")]
)
def test_no_module_of_the_current_folder_is_run(trap, arguments):
    """The command's own script keeps the folder away from the first process; the others are ours to keep it from."""
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run([COMMAND, *arguments], cwd=trap, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (trap.parent / "trace").exists()


@pytest.mark.parametrize("forks", [True, False])
def test_nor_where_variables_and_the_callers_own_path_name_that_folder(trap, forks):
    """As in a notebook, whose path begins with "", the current folder."""
    if forks and not sys.platform.startswith("linux"):
        pytest.skip("there is no server that forks")
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from converters.readers import process
process.FORKS = {forks}
sys.path.insert(0, "")
os.environ |= {{"PYTHONPATH": ".", "PYTHONHOME": ".", "PYTHONSTARTUP": "json.py", "PYTHONUSERBASE": "."}}
with process.reading_process() as call:
    print(call("read", path="x.h5")["container"])
    call("forward", path="x.h5", described={{}}, folder=".", assumptions={{}})
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=trap, capture_output=True, text=True)
    assert done.stdout == "legacy\n", done.stderr
    assert "KeyError: 'layers'" in done.stderr  # what is only then imported was the library's own, and ran
    assert not (trap.parent / "trace").exists()


def test_packages_that_only_the_caller_finds_are_found(tmp_path):
    """On PYTHONPATH alone, where an isolated interpreter does not look."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in NEEDED:
        for place in Path(str(import_module(name).__file__)).parents[1].glob(f"{name}*"):
            (packages / place.name).symlink_to(place)
    code = f"""
from converters.readers import process
print(process._further_folders())
with process.reading_process() as call:
    print(call("read", path={str(KERAS1 / "vgg16.h5")!r})["container"])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    bare = getattr(sys, "_base_executable", sys.executable)  # without what is installed in this environment
    done = subprocess.run([bare, "-s", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == f"[{str(packages)!r}]\nlegacy\n", done.stderr


# State dicts of PyTorch


def torchvisions(network):
    """A narrow VGG16's arrays under torchvision's names."""
    from converters.pytorch import TORCHVISION

    [lineage] = [lineage for lineage in TORCHVISION if lineage.network == network]
    torch.manual_seed(0)
    ours = NARROW[network]().state_dict()
    return {
        f"{theirs}.{role}": ours[f"{module}.{role}"]
        for module, theirs in lineage.layers.items()
        for role in ("weight", "bias")
    }


@pytest.fixture(scope="module")
def state():
    return torchvisions("vgg16")


@pytest.fixture
def refused(refused, tmp_path):
    return lambda sentence, path=tmp_path / "x.pth", **options: refused(path, sentence, **options)


@pytest.mark.parametrize("is_zip", [True, False])
def test_both_layouts_and_all_real_types_are_read_as_torch_reads_them(state, tmp_path, is_zip):
    """Parameters, tensors out of the middle of a storage, transposed ones, one of no dimension and of no number."""
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int32, torch.int64,
              torch.uint8, torch.bool]  # fmt: skip
    many = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    odd = OrderedDict({f"{dtype}": (10 * many[3:7, 1:5].t()).to(dtype) for dtype in dtypes})
    odd |= {"part": many[3:9:2], "turned": many.t()[2:], "none": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    odd |= {"parameter": torch.nn.Parameter(many[0].clone()), "last": torch.ones(2, 3).to(torch.float64)}
    path = tmp_path / "x.pth"
    torch.save(odd, path, _use_new_zipfile_serialization=is_zip)
    told = describe_state_dict(path)
    assert {name: (tuple(one["shape"]), f"torch.{one['dtype']}") for name, one in told.items()} == {
        name: (tuple(one.shape), str(one.dtype)) for name, one in odd.items()
    }
    output, place = tmp_path / "values", 0
    jobs: list[Any] = []
    for name, tensor in odd.items():
        jobs.append({"source": name, "place": place, "shape": list(tensor.shape), "dtype": "float32"})
        place += 4 * tensor.numel()
    output.write_bytes(bytes(place))
    assert carry_out_tensors(str(path), str(output), jobs) == []
    found = np.fromfile(output, np.float32)
    wanted = np.concatenate([tensor.detach().float().numpy().ravel() for tensor in odd.values()])
    np.testing.assert_array_equal(found, wanted)
    half = {name: tensor.half() for name, tensor in state.items()}
    torch.save(half, path, _use_new_zipfile_serialization=is_zip)
    report = convert(path, tmp_path / "out.safetensors")
    assert report.rows[0].change == "float16 to float32"
    arrays = load_file(report.destination)
    for row in report.rows:
        torch.testing.assert_close(arrays[row.parameter], half[row.source].float(), rtol=0, atol=0)


def test_files_of_2016_are_read_as_torch_reads_them(tmp_path):
    """Written by Python 2: text of bytes, tensors that are made empty and then built, parameters around them."""

    def text(word):
        return b"U" + bytes([len(word)]) + word.encode()

    def storage(key, count):
        return (
            b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + bytes([75, count]) + b"NtQ"
        )

    built = b"ctorch\nFloatTensor\n)\x81(" + storage("94", 6) + b"K\x00K\x02K\x03\x86K\x03K\x01\x86tb"
    rebuilt = b"ctorch._utils\n_rebuild_tensor\n(" + storage("95", 3) + b"K\x01K\x02\x85K\x01\x85tR"
    parameter = b"ctorch.nn.parameter\nParameter\n" + rebuilt + b"\x88\x86R"
    pairs = b"](](" + text("one") + built + b"e](" + text("other") + parameter + b"ee"
    parts = [
        b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little"),
        b"M\xe9\x03", b"}" + text("little_endian") + b"\x88s",
        b"ccollections\nOrderedDict\n" + pairs + b"\x85R", b"](" + text("95") + text("94") + b"e",
    ]  # fmt: skip
    numbers = [np.arange(count, dtype=np.float32) for count in (3, 6)]
    path = tmp_path / "x.pth"
    path.write_bytes(
        b"".join(b"\x80\x02" + part + b"." for part in parts)
        + b"".join(len(one).to_bytes(8, "little") + one.tobytes() for one in numbers)
    )
    wanted = torch.load(path, weights_only=True)
    assert {name: list(one.shape) for name, one in wanted.items()} == {"one": [2, 3], "other": [2]}
    jobs: list[Any] = [
        {"source": "one", "place": 0, "shape": [2, 3], "dtype": "float32"},
        {"source": "other", "place": 24, "shape": [2], "dtype": "float32"},
    ]
    (tmp_path / "values").write_bytes(bytes(32))
    carry_out_tensors(str(path), str(tmp_path / "values"), jobs)
    found = np.fromfile(tmp_path / "values", np.float32)
    assert found.tolist() == [*wanted["one"].ravel().tolist(), *wanted["other"].tolist()]


def test_compressed_ones_are_read_as_stored_ones(state, tmp_path):
    torch.save(state, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "one.safetensors")
    repacked(tmp_path / "x.pth", zipfile.ZIP_DEFLATED)
    convert(tmp_path / "x.pth", tmp_path / "other.safetensors")
    one, other = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "other.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in other)


def repacked(path, form=zipfile.ZIP_STORED, **changed):
    """Write a zip anew, with some members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", form) as archive:
        for name, content in members.items():
            archive.writestr(name, changed.pop(name.rpartition("/")[2].replace(".", "_"), content))
        for name, content in changed.items():
            archive.writestr(f"{next(iter(members)).partition('/')[0]}/{name}", content)


def narrow_storage(path):
    """The storage of the first tensor with one number less than the pickle says."""
    repacked(path)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        content = archive.read(name)
    repacked(path, **{"0": content[:-4]})


def odd_tensors():
    matrix = torch.arange(12.0).reshape(3, 4)
    yield "a stride of zero", torch.zeros(1).expand(512, 4096), "stores fewer elements, some shared by several"
    yield (
        "rows that overlap",
        torch.as_strided(torch.zeros(9), (5, 5), (1, 1)),
        "stores fewer elements, some shared by several",
    )
    yield "sparse", matrix.to_sparse(), "not plain, dense and real"
    yield "sparse rows", matrix.to_sparse_csr(), "not plain, dense and real"
    yield "meta", matrix.to("meta"), "not plain, dense and real"
    yield "complex", matrix.to(torch.complex64), "ComplexFloatStorage"
    yield "quantized", torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8), "QInt8Storage|not plain, dense and real"
    yield "nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "more than tensors|not plain, dense"
    yield "eight bits", matrix.to(torch.float8_e5m2), "a tensor of float8_e5m2; real numbers of up to 64 bits"
    yield "no tensor", 3, "holds no state dict"
    yield "many dimensions", matrix.reshape(3, *(1,) * 12, 4), "a tensor of 14 dimensions"


@pytest.mark.filterwarnings("ignore")  # torch remarks on sparse rows and nested tensors
@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_that_are_no_weights_are_refused_by_name(state, tmp_path, refused, is_zip):
    for word, tensor, sentence in odd_tensors():
        if word == "nested" and not is_zip:
            continue
        torch.save(state | {"classifier.6.weight": tensor}, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
        refused(sentence)


def test_names_that_are_none_are_refused(state, tmp_path, refused):
    torch.save(state | {7: torch.zeros(3)}, tmp_path / "x.pth")
    refused("holds a tensor under 7 instead of a name")
    torch.save(state | {(7, "a"): torch.zeros(3)}, tmp_path / "x.pth")
    refused("holds more than tensors, or is broken")
    torch.save(state | {"evil\n\x1b[2J": torch.zeros(3)}, tmp_path / "x.pth")
    refused(r"evil .*is unknown|evil\\n")


def test_more_numbers_than_there_are_are_refused(state, tmp_path, refused):
    """torch would take what lies behind them in memory; the middle of a heap is no weight."""
    torch.save(state, tmp_path / "x.pth")
    narrow_storage(tmp_path / "x.pth")
    refused(r"holds features\.0\.weight, which is \(8, 3, 3, 3\), but not completely in the file")
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[:-1])
    refused("is truncated; download it again")


def test_a_few_bytes_that_stand_for_gigabytes_are_refused(state, tmp_path, refused):
    shared = torch.zeros(64 * 64 * 9)
    wide = {f"features.{place}.weight": shared.reshape(64, 64, 3, 3) for place in range(200)}
    torch.save(wide, tmp_path / "x.pth")
    refused("bytes for tensors of .* bytes that share memory")
    torch.save({"features.0.weight": torch.zeros(1000, 1000)}, tmp_path / "x.pth")
    repacked(tmp_path / "x.pth", zipfile.ZIP_DEFLATED)
    refused(r"member '.*/data/0' says 4000000 bytes, stored in")
    torch.save(state, tmp_path / "x.pth")
    repacked(tmp_path / "x.pth", data_pkl=b"\x80\x02" + b"N" * 3_000_000 + b".")
    refused("has a pickle of more than 2000000 instructions")
    repacked(tmp_path / "x.pth", data_pkl=bytes(17 << 20))
    refused("has a pickle of 17825792 bytes")


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("isolated", [True, False])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(state, tmp_path, refused, is_zip, isolated):
    (tmp_path / "x.pth").touch()
    torch.save(state | {"x": Payload(tmp_path / "trace")}, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
    refused(r"holds more than tensors, or is broken \((posix|nt)\.system\)", isolated=isolated)


@pytest.mark.parametrize(
    "program",
    [
        b"", b"\x80\x02", b"\x80\x02.", b"\x80\x02}", b"\x80\x02\x85.", b"\x80\x02(((.", b"\x80\x02t.", b"\x80\x02u.",
        b"\x80\x02}K\x01K\x02s.", b"\x80\x02])R.", b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.", b"\x80\x02h\x05.",
        b"\x80\x02}r\xff\xff\xff\xff0.", b"\x80\x02]K\x01b.", b"\x80\x02K\x01Q.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", b"\x80\x02ctorch\nFloatTensor\n)R.", b"\x80\x02\x8a\xff.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x80\x02X\xff\xff\xff\xff.", b"I" + b"9" * 5000 + b"\n.",
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", b"\x80\x02)" + b"\x85" * 100_000 + b".",
        b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
    ],
)  # fmt: skip
def test_pickles_that_torch_never_writes_are_refused(program, state, tmp_path, refused):
    torch.save(state, tmp_path / "x.pth")
    repacked(tmp_path / "x.pth", data_pkl=program)
    refused("holds no state dict|holds more than tensors, or is broken|without shape|not completely in the file")


def test_damaged_state_dicts_are_refused_in_a_sentence_or_read(state, tmp_path):
    """Bytes changed and files cut, in the part that says what there is."""
    random = np.random.default_rng(0)
    for is_zip in (True, False):
        stream = io.BytesIO()
        small = {name: tensor for name, tensor in state.items() if name.startswith("features")}
        torch.save(small, stream, _use_new_zipfile_serialization=is_zip)
        sound = stream.getvalue()
        ends = [place for place in range(4000)] + [len(sound) - place for place in range(1, 4000)]
        for _ in range(300):
            damaged = bytearray(sound)
            for _ in range(random.integers(1, 4)):
                damaged[random.choice(ends)] = random.integers(256)
            path = tmp_path / "x.pth"
            path.write_bytes(damaged[: random.integers(1, len(damaged)) if random.random() < 0.3 else None])
            try:
                describe_state_dict(path)
            except (OSError, ValueError) as error:
                assert str(path) in str(error)  # noqa: PT017
                assert str(error).isprintable()  # noqa: PT017


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_calling_process_stays_small(tmp_path):
    """A storage of 200 MB that no network has is refused by its shape, and not read."""
    torch.save({"features.0.weight": torch.zeros(50_000_000)}, tmp_path / "x.pth")
    code = f"""
import resource
from converters import convert
from converters import pytorch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    convert({str(tmp_path / "x.pth")!r}, {str(tmp_path / "out.safetensors")!r})
except ValueError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) < 50_000, done.stderr


def test_a_file_that_is_swapped_while_it_is_read_is_not_converted(state, tmp_path, monkeypatch):
    """The other one has the same size, and its time is set back."""
    from converters import conversion

    torch.save(state, tmp_path / "x.pth")
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "other.pth")
    fill = conversion._fill

    def swapped(source, *rest):
        os.utime(tmp_path / "other.pth", ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
        (tmp_path / "other.pth").replace(source)
        fill(source, *rest)

    monkeypatch.setattr(conversion, "_fill", swapped)
    with pytest.raises(ValueError, match=r"x\.pth changed while it was read; convert it again"):
        convert(tmp_path / "x.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# Configs of models


SOUND = read_keras(DATA / "keras231/vgg16_flat_first_model.h5").to_dict()


@pytest.fixture
def config():
    return copy.deepcopy(SOUND["config"])


def planned(config):
    """Plan what a sound file says of itself, under another config."""
    return plan_keras(KerasFile.from_dict(SOUND | {"config": config}), Wishes(preprocessing="unit"))


VALUES = [None, [], {}, "x", -1, 2.5, 10**18, True, [1, 2, 3], [None], {"a": 1}, ["a", "b"]]


@pytest.mark.slow
def test_a_config_that_lacks_or_mistakes_anything_is_planned_or_refused_in_a_sentence(config):
    """Every setting of one layer of each class, left out and of every kind, and the same of the model's own."""
    layers = config["config"]["layers"]
    first = {layer["class_name"]: number for number, layer in reversed(list(enumerate(layers)))}
    places: list[tuple[Any, ...]] = [("config", key) for key in config["config"]] + [("class_name",), ("config",)]
    for number in first.values():
        places += [("config", "layers", number, key) for key in layers[number]]
        places += [("config", "layers", number, "config", key) for key in layers[number]["config"]]
    random = np.random.default_rng(0)
    for place in places:
        for value in (..., VALUES[random.integers(len(VALUES))]):
            changed = copy.deepcopy(config)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if value is ...:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            try:
                planned(changed)
            except ValueError as error:
                assert "first_model.h5" in str(error), place  # noqa: PT017


@pytest.mark.parametrize("class_name", ["DepthwiseConv2D", "Dense", "BatchNormalization", "MaxPooling2D", "Add", "X"])
def test_a_convolution_that_is_said_to_be_another_layer_is_refused(config, class_name):
    changed = copy.deepcopy(config)
    layer = next(layer for layer in changed["config"]["layers"] if layer["class_name"] == "Conv2D")
    layer["class_name"] = class_name
    with pytest.raises(ValueError, match=r"first_model\.h5.*(block1_conv1 (has|\(X\) is of)|reads)"):
        planned(changed)


def test_layers_in_any_order_take_the_time_of_their_number():
    """A chain backwards took one pass for each layer."""
    count = 19_999
    chain = [
        {"class_name": "Dropout", "name": f"layer{number}", "config": {"name": f"layer{number}"},
         "inbound_nodes": [[[f"layer{number - 1}", 0, 0]]] if number else []}
        for number in range(count)
    ]  # fmt: skip
    ends = {"input_layers": [["layer0", 0, 0]], "output_layers": [[f"layer{count - 1}", 0, 0]]}
    config = {"class_name": "Model", "config": {"layers": chain[::-1], **ends}}
    began = time.process_time()
    found = graph_of_config(KerasFile(Path("m.h5"), "legacy", True, (), config=config), "channels_last")
    assert [node.name for node in found.nodes[1:]] == [layer["name"] for layer in chain[1:]]
    assert time.process_time() - began < 5


# Class names, recordings


def test_class_names_are_as_long_as_a_card_may_have_them(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\n" + "x" * 1001 + "\n")
    with pytest.raises(ValueError, match=r"labels\.txt: class name 2 has 1001 characters; at most 1000 are allowed"):
        read_labels(tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("cat\x07\n" + "x" * 1000 + "\n")
    assert read_labels(tmp_path / "labels.txt") == ("cat\x07", "x" * 1000)
    with pytest.raises(ValueError, match="classes: class name 1 has 5000 characters"):
        convert(KERAS1 / "vgg16.h5", tmp_path / "out.safetensors", backend="theano", classes=["y" * 5000] * 60)
    assert not (tmp_path / "out.safetensors").exists()
    with (tmp_path / "labels.txt").open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(ValueError, match=r"labels\.txt has 10,000,001 bytes"):
        read_labels(tmp_path / "labels.txt")


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 4, 4), }"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(1, 3, 4, 4)", "(1, 3, 1000000, 1000000)"),
        ("(1, 3, 4, 4)", "(1, 3, 99999999999999999999, 4)"),
        ("(1, 3, 4, 4)", "(-1, 3, 4, 4)"),
        ("(1, 3, 4, 4)", f"({'-' * 9000}1,)"),
        ("(1, 3, 4, 4)", f"{'(' * 300}1{')' * 300}"),
        ("(1, 3, 4, 4)", "(1.5, 'x')"),
        ("(1, 3, 4, 4)", "None"),
        ("'<f4'", "'|O'"),
        ("'<f4'", "[('a', '<f4'), ('b', '<f4')]"),
        ("'<f4'", "'<M8[s]'"),
        ("'<f4'", "'|V100000000000'"),
        ("'<f4'", "'x' * 3"),
        ("'<f4'", "'<c8'"),
        (HEADER, "__import__('os').system('touch trace')"),
    ],
)
def test_recordings_that_are_none_are_refused(tmp_path, monkeypatch, old, new):
    monkeypatch.chdir(tmp_path)
    header = HEADER.replace(old, new).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(192)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy (is not a \.npy file of numbers|holds)"):
        Golden.read(tmp_path / "x.npy", tmp_path / "x.npy")
    assert not (tmp_path / "trace").exists()


def test_recordings_of_absurd_size_are_refused_at_once(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 4, 4), np.float32))
    assert Golden.read(tmp_path / "x.npy", tmp_path / "x.npy").inputs.shape == (1, 3, 4, 4)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"x\.npy has 1,099,511,627,776 bytes"):
        Golden.read(tmp_path / "x.npy", tmp_path / "x.npy")


# Killed conversions

KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import converters.keras_plan, converters.pytorch, converters.readers.process
from converters import convert
source, out, options = Path(sys.argv[1]), Path(sys.argv[2]), {"backend": sys.argv[3] or None, "isolated": False}

def begun():
    child = os.fork()
    if child == 0:
        convert(source, out, **options)
        os._exit(0)
    return child

os.waitpid(begun(), 0)
new = out.read_bytes()
chance, left = random.Random(1), 0
for number in range(6):
    out.write_bytes(b"old")
    child = begun()
    until = time.monotonic() + 5
    while number % 2 and time.monotonic() < until and not list(out.parent.glob(".*.part")):
        time.sleep(0.001)  # every other one is killed while it writes
    time.sleep(chance.uniform(0, 0.02 if number % 2 else 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert out.read_bytes() in (b"old", new)
    left = max(left, len(list(out.parent.iterdir())) - 1)
os.waitpid(begun(), 0)
assert out.read_bytes() == new
print(left, *sorted(entry.name for entry in out.parent.iterdir()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(("name", "backend"), [("x.pth", ""), ("x.h5", "theano")])
def test_a_killed_conversion_leaves_the_old_file_or_the_new_and_nothing_after_the_next(state, tmp_path, name, backend):
    """Processes that convert are killed at random moments, between their start and beyond their end."""
    torch.save(state, tmp_path / "x.pth")
    shutil.copy(KERAS1 / "vgg16.h5", tmp_path / "x.h5")
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", KILLS, tmp_path / name, tmp_path / "out" / "out.safetensors", backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left, *names = done.stdout.split()
    assert names == ["out.safetensors"]
    assert int(left) == 1  # what a killed one leaves is gone after the next, which may be killed as well
