"""What stands for several machines: a cluster of Ray and an object store, on the loopback interface."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of two CPUs, without a dashboard."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'convnets-torch[ray]'")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets have short names
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": folder,
            "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT),
        }.items():  # fmt: skip
            patch.setenv(name, value)
        memory = {"object_store_memory": 100 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.1", **memory})
        try:
            yield made, lambda: made.add_node(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=100 << 20)
        finally:
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def children(number: int) -> list[tuple[int, str]]:
    """(process, its title) of the children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == number:
                found.append((int(path.name), (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def raylet(node) -> int:
    return node.all_processes["raylet"][0].process.pid


@pytest.fixture
def nodes(cluster):
    """The address, and two fresh nodes of one CPU each."""
    made, add = cluster
    two = [add(), add()]
    made.wait_for_nodes()
    yield made, two, add
    for node in [*made.worker_nodes]:
        made.remove_node(node, allow_graceful=False)


class Line:
    """A connection to a server on this machine that may be cut and mended, at a port of its own."""

    def __init__(self, target: int) -> None:
        self._target, self._pairs = target, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listener.accept()
                other = socket.create_connection(("127.0.0.1", self._target))
                self._pairs += [one, other]
                for ends in ((one, other), (other, one)):
                    threading.Thread(target=self._forward, args=ends, daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in (self._listener, *self._pairs):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._pairs.clear()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()


@pytest.fixture(scope="module")
def store():
    """An S3 server on the loopback interface, behind a line that may be cut."""
    pytest.importorskip("moto", reason="moto is not installed; it is in the extra dev")
    program = (
        "import logging, sys; logging.disable(logging.CRITICAL)\n"
        "from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False); server.start()\n"
        "print(server.get_host_and_port()[1], flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
    )
    line = Line(int(process.stdout.readline()))
    known = {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in known.items():
            patch.setenv(name, value)
        yield line
        line.cut()
    process.kill()
    process.communicate()
