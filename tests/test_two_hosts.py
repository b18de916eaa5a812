"""Fine-tuning by `torchrun` on two hosts: kills, a host that goes away, a folder that one of them does not see.

The hosts are two network namespaces with a cable between them, and as `ip netns exec` gives each program mounts of its
own, a folder may be another one there; where the system does not allow it, the hosts are two loopback addresses.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from convnets_torch import save
from tests.finetuned import draw_pictures, small_resnet

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
EPOCHS = 8
# A minute without a sign of life is long for a test.
PROGRAM = """
import sys
from convnets_torch.training import distributed
distributed.BEAT, distributed.SILENT = 1.0, 8.0
from convnets_torch.cli.app import main
main()
"""


@dataclass
class Host:
    """A place for programs: what starts them there, and its address."""

    prefix: list[str]
    address: str
    cache: Path


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[list[Host]]:
    names = [f"ct{os.getpid()}{letter}" for letter in "ab"]
    caches = [tmp_path_factory.mktemp(f"cache{number}") for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield [Host(["ip", "netns", "exec", name], f"10.77.0.{number}", cache)
               for number, (name, cache) in enumerate(zip(names, caches, strict=True), start=1)]  # fmt: skip
    except (OSError, subprocess.CalledProcessError):  # no rights, or no such system
        yield [Host([], f"127.0.0.{number}", cache) for number, cache in enumerate(caches, start=1)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with weights and pictures."""
    folder = tmp_path_factory.mktemp("training")
    save(small_resnet(), folder / "small.safetensors")
    draw_pictures(folder / "pictures")
    return folder


def start(hosts, data, output, *more, restarts=0, before=("", ""), processes=1, **variables) -> list[subprocess.Popen]:
    """Start torchrun on both hosts; `before` are shell commands of each."""
    program = data / "program.py"
    program.write_text(PROGRAM)
    found = []
    for number, host in enumerate(hosts):
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", processes,
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].address}:29417", "--rdzv-id", output.stem,
            "--rdzv-conf", f"is_host={1 - number},join_timeout=40", "--local-addr", host.address,
            "--max-restarts", restarts,
        ]  # fmt: skip
        training = [
            program, "finetune", data / "small.safetensors", data / "pictures", "--output", output, "--resume",
            "--batch-size", 8, "--head-epochs", 1, "--head-lr", 3e-4, "--epochs", EPOCHS, "--lr", 3e-5, "--patience", 0,
            "--unfreeze", "conv5_block3", "--allow-leaks", *more,
        ]  # fmt: skip
        shell = ["sh", "-c", f'{before[number] or ":"}; exec "$@"', "sh"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(host.cache)}
        command = [*host.prefix, *shell, *map(str, (*torchrun, *training))]
        pipe = subprocess.PIPE
        found.append(subprocess.Popen(command, env=environment | variables, stdout=pipe, stderr=pipe, text=True))
    return found


def heard(process, words) -> str:
    """Read what a process says until it says these words."""
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def ended(processes, code=0, timeout=200) -> list[str]:
    """Wait for both; return what they say."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * 2, said
    return said


def workers(agent) -> list[int]:
    """The processes that torchrun has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == agent.pid:
                found.append(int(path.name))
    return sorted(found)


def result(output) -> tuple[bytes, list[list[str]]]:
    """The weights, and the history but for its times."""
    rows = output.with_suffix(".history.csv").read_text().splitlines()
    return output.read_bytes(), [row.split(",")[:-1] for row in rows]


@pytest.fixture(scope="module")
def unbroken(hosts, data):
    """What an uninterrupted training gives."""
    output = data / "unbroken.safetensors"
    ended(start(hosts, data, output))
    found = result(output)
    assert len(found[1]) == EPOCHS + 2
    assert b'"stage":2' in found[0].replace(b" ", b"").replace(b"\\", b"")  # so that it tells what stage two learnt
    return found


def test_four_processes_learn_the_same_after_a_kill(hosts, data, tmp_path):
    """In more than one bucket of DDP: sums of three or more numbers depend on their order."""
    found = []
    for name in ("whole", "killed"):
        output = tmp_path / f"{name}.safetensors"
        both = start(hosts, data, output, "--unfreeze", "features", restarts=3, processes=2)
        if name == "killed":
            heard(both[0], "epoch 4 ")
            os.kill(workers(both[1])[0], signal.SIGKILL)
        ended(both)
        found.append(result(output))
    assert found[0] == found[1]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker_is_started_again_and_learns_the_same(killed, hosts, data, unbroken, tmp_path):
    """To the bit: that of rank 0, which writes, and that of the other host."""
    output = tmp_path / f"killed{killed}.safetensors"
    both = start(hosts, data, output, restarts=3)
    heard(both[0], "epoch 4 ")
    [worker] = workers(both[killed])
    os.kill(worker, signal.SIGKILL)
    said = ended(both)
    assert "epoch 1 " not in said[0]  # it did not begin again
    assert "epoch 5 " in said[0]
    assert result(output) == unbroken
    assert sorted(path.name for path in tmp_path.iterdir() if "history" not in path.name) == [output.name]


def test_a_folder_that_the_other_host_does_not_see_is_a_sentence(hosts, data, tmp_path):
    if not hosts[0].prefix:
        pytest.skip("without namespaces there is one host, which sees every folder")
    before = ("", f"mount -t tmpfs none {tmp_path}")
    for said in ended(start(hosts, data, tmp_path / "apart.safetensors", before=before), 1):
        assert f"cannot see the folder {tmp_path}, in which process 0 writes the checkpoint" in said
        assert "process 1 on " in said
        assert "Traceback" not in said.partition("torch/distributed")[0]  # torchrun's own follows
    assert not list(tmp_path.iterdir())


def test_a_host_that_goes_away_is_noticed_by_both(hosts, data, tmp_path):
    """A cable that is pulled out: nobody closes a connection."""
    if not hosts[0].prefix:
        pytest.skip("without namespaces there is no cable")
    both = start(hosts, data, tmp_path / "cut.safetensors", "--epochs", 3000)
    heard(both[0], "epoch 4 ")
    ip("-n", hosts[0].prefix[-1], "link", "set", "cable", "down")
    began = time.monotonic()
    try:
        heard(both[0], "has given no sign of life for 8 seconds, so that this training cannot go on")
        heard(both[1], "10.77.0.1, which holds the processes of this training together, cannot be reached")
        assert time.monotonic() - began < 40
        assert (tmp_path / "cut.checkpoint.safetensors").exists()
    finally:
        for process in both:
            for worker in workers(process):
                os.kill(worker, signal.SIGKILL)
            process.kill()
            process.communicate()
        ip("-n", hosts[0].prefix[-1], "link", "set", "cable", "up")


def test_a_host_without_the_pictures_is_a_sentence_and_ends_the_other(hosts, data, tmp_path):
    if not hosts[0].prefix:
        pytest.skip("without namespaces there is one host, which sees every folder")
    before = ("", f"mount -t tmpfs none {data / 'pictures'}")
    first, second = ended(start(hosts, data, tmp_path / "none.safetensors", before=before), 1)
    assert "another process of this training ended or cannot be reached" in first
    assert f"{data / 'pictures'}" in second


STORE = """
import logging, sys; logging.disable(logging.CRITICAL)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(sys.argv[1], 0, verbose=False); server.start()
print(server.get_host_and_port()[1], flush=True); sys.stdin.read()
"""
BUCKET = """
from pyarrow import fs
fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")[0].create_dir("bucket")
"""


def test_checkpoints_may_lie_in_a_bucket(hosts, data, unbroken, tmp_path):
    pytest.importorskip("moto", reason="moto is not installed; it is in the extra cluster")
    pytest.importorskip("pyarrow", reason="needs pyarrow, the extra batch")
    python = [*hosts[0].prefix, sys.executable, "-c"]
    output = tmp_path / "bucket.safetensors"
    server = subprocess.Popen([*python, STORE, hosts[0].address], stdin=-1, stdout=-1, stderr=-3, text=True)
    try:
        known = {
            "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{hosts[0].address}:{int(server.stdout.readline())}",
        }  # fmt: skip
        subprocess.run([*python, BUCKET], env=os.environ | known, check=True)
        both = start(hosts, data, output, "--checkpoint", "s3://bucket/runs", restarts=3, **known)
        heard(both[0], "epoch 4 ")
        [worker] = workers(both[1])
        os.kill(worker, signal.SIGKILL)
        said = ended(both)
    finally:
        server.kill()
        server.communicate()
    assert "epoch 1 " not in said[0]
    assert result(output) == unbroken
    assert not list(tmp_path.glob("*checkpoint*"))
