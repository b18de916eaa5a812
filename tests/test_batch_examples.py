"""The files of examples/cluster: they are what their schedulers read, and the command in each does the job."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from convnets_torch import batch, save
from tests.finetuned import draw_pictures, small_resnet
from tests.reference.pictures import picture

pytest.importorskip("pyarrow", reason="needs pyarrow, the extra batch")
yaml = pytest.importorskip("yaml", reason="needs PyYAML, which pre-commit brings")

FOLDER = Path(__file__).parents[1] / "examples" / "cluster"


@pytest.fixture
def job(tmp_path) -> Path:
    """Six shards of two pictures."""
    save(small_resnet(), tmp_path / "w.safetensors")
    (tmp_path / "photos").mkdir()
    for number in range(12):
        Image.fromarray(picture(number, 70, 80)).save(tmp_path / "photos" / f"{number:02}.png")
    batch.plan(tmp_path / "job", tmp_path / "photos", weights=tmp_path / "w.safetensors", shard=2)
    return tmp_path / "job"


@pytest.mark.slow
def test_the_script_for_slurm_computes_a_share_and_the_rest(job):
    script = FOLDER / "slurm_array.sh"
    assert "#SBATCH --array=0-15" in script.read_text()
    assert subprocess.run(["bash", script], capture_output=True, text=True, check=False).returncode == 1  # no JOB
    known = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1", "SLURM_PROCID": "0"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", script, job], env={**os.environ, **known, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 of 6 shards computed, 12 pictures, ")
    told = [int(line.split()[2].rstrip(":")) for line in done.stderr.splitlines() if "shard" in line]
    assert told[:3] == [1, 3, 5]
    assert batch.check(job).whole


def test_the_job_for_kubernetes_computes_a_share(job, command, monkeypatch):
    made = yaml.safe_load((FOLDER / "kubernetes_job.yaml").read_text())
    assert (made["apiVersion"], made["kind"], made["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    [container] = made["spec"]["template"]["spec"]["containers"]
    [count] = [each["value"] for each in container["env"] if each["name"] == "JOB_COMPLETIONS"]
    assert int(count) == made["spec"]["completions"]
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in made["spec"]["template"]["spec"]["volumes"]}
    monkeypatch.setenv("JOB_COMPLETIONS", count)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    here = {"s3://bucket/job": job, "/weights/vgg16.safetensors": job.parent / "w.safetensors"}
    code, out, error = command(*(here.get(word, word) for word in container["args"]))
    assert (code, out[:15]) == (0, "6 of 6 shards c"), error
    assert error.splitlines()[0].startswith("convnets-torch: shard 3: 2 pictures")


def test_the_cluster_of_ray_names_what_ray_needs():
    made = yaml.safe_load((FOLDER / "ray_cluster.yaml").read_text())
    assert made["provider"]["type"] == "local"
    assert made["max_workers"] == made["min_workers"] == len(made["provider"]["worker_ips"])
    assert any("ray start --head" in line for line in made["head_start_ray_commands"])
    assert any("ray start --address=$RAY_HEAD_IP:6379" in line for line in made["worker_start_ray_commands"])


def test_the_image_starts_the_command():
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("FROM python:3.")
    assert lines[-1] == 'ENTRYPOINT ["convnets-torch"]'
    assert "RUN pip install --no-cache-dir '.[batch]'" in lines


@pytest.fixture
def training(tmp_path) -> list[str]:
    """Weights, pictures, output and options of a short training."""
    save(small_resnet(), tmp_path / "w.safetensors")
    draw_pictures(tmp_path / "data")
    return [str(tmp_path / name) for name in ("w.safetensors", "data", "mine.safetensors")]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.mark.cluster
def test_the_training_for_slurm_starts_torchrun_on_each_node(training, tmp_path):
    """On one node, whose `srun` and `scontrol` stand for those of SLURM."""
    script = FOLDER / "finetune_slurm.sh"
    assert "#SBATCH --nodes=2" in script.read_text()
    for name, line in (("srun", 'exec "$@" --allow-leaks --batch-size 8 --epochs 0'), ("scontrol", "echo 127.0.0.1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    known = {
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "1",
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{tool('torchrun').parent}:{os.environ['PATH']}",
        "PORT": free_port(), "XDG_CACHE_HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", script, *training], env=os.environ | known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy on the validation pictures" in done.stdout
    assert (tmp_path / "mine.safetensors").exists()


@pytest.mark.cluster
@pytest.mark.slow
def test_the_training_for_two_hosts_runs_on_two(training, tmp_path):
    known = {
        "FIRST": "127.0.0.1", "PORT": free_port(), "MINE": "127.0.0.1", "XDG_CACHE_HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{tool('torchrun').parent}:{os.environ['PATH']}",
    }  # fmt: skip
    script, options = FOLDER / "finetune_two_hosts.sh", ["--allow-leaks", "--batch-size", "8", "--epochs", "1"]
    assert subprocess.run(["bash", script], capture_output=True, check=False).returncode == 1
    both = [
        subprocess.Popen(["bash", script, number, *training, *options], env=os.environ | known, stdout=-1, text=True)
        for number in "01"
    ]
    said = [process.communicate(timeout=280)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert ["accuracy on the validation pictures" in out for out in said] == [True, False]


def tool(name: str) -> Path:
    """The program beside PyTorch, wherever that is installed."""
    import shutil

    import torch

    places = [Path(sys.executable).parent, Path(torch.__file__).parents[4] / "bin"]
    found = shutil.which(name, path=os.pathsep.join(map(str, places)))
    assert found is not None
    return Path(found)
