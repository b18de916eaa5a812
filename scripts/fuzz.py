"""Fuzz the readers with damaged files and folders, and the whole `convert` with Keras files; keep what fails.

    python scripts/fuzz.py --reader 20000 --command 500 --jobs 2 --keep found [--seed 0] [CONTAINER ...]

Each container of Keras (nb_layers, weights, model, weights.h5, keras) has a few small files of real Keras under
tests/data, which `mutations.py` damages. At reader level the reading process lists a file, reads all its values, and
audits one in four; at command level it calls the function `convert`, and the command line for one in twenty-five. The
other containers (pictures, cards, vectors, maps, checkpoints, state dicts, indexes, resumable runs) are made and read
by `fuzz_targets.py`, at reader level only. A damaged file may be refused, by a one-sentence OSError or ValueError that
names it, or be read. It is a failure if the calling process crashes; on any other exception or a traceback; after more
than --hang seconds; if a refusal leaves a file behind, or a conversion more than its output; and if swapped layers are
converted to something else than the intact file. Failing files, and the first ones that crash or hang libhdf5, go to
--keep, with `found.json`, the edits of the Keras files in the format of tests/data/fuzz.json. The exit code is 1 if
anything failed. Each mutation is determined by its number, container, level and seed, independent of --jobs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from converters.conversion import convert
from converters.readers.process import reading_process
from convnets_torch.cli.output import one_line
from scripts.fuzz_targets import TARGETS, TargetLevel, remove
from scripts.mutations import Source, edits, mutate

THEANO = {"backend": "theano"}
OWN = {"preprocessing": "unit"}
SOURCES: dict[str, dict[str, dict[str, Any]]] = {  # container -> file -> options for its conversion
    "nb_layers": {"keras0/vgg16.h5": THEANO},
    "weights": {
        "keras1/vgg16_nested_th.h5": THEANO | OWN | {"input_size": (96, 96)},
        "keras1/vgg16_notop_th.h5": THEANO,
        "keras208/vgg16_last.h5": {"data_format": "channels_last"} | OWN,
        "keras231/vgg16_flat_last.h5": OWN | {"input_size": (96, 96), "activation": "sigmoid"},
    },
    "model": {
        "keras1/vgg16_nested_tf_model.h5": THEANO | OWN,
        "keras231/vgg16_flat_first_model.h5": OWN,
        "keras305/vgg16.h5": OWN,
    },
    "weights.h5": {"keras305/vgg16.weights.h5": OWN, "keras360/vgg16.weights.h5": OWN},
    "keras": {"keras305/vgg16.keras": OWN, "keras360/vgg16.keras": OWN},
}
TELLS = {  # files whose names reveal swapped layers
    "keras1/vgg16_nested_th.h5", "keras1/vgg16_notop_th.h5", "keras208/vgg16_last.h5", "keras231/vgg16_flat_last.h5",
    "keras1/vgg16_nested_tf_model.h5", "keras231/vgg16_flat_first_model.h5", "keras360/vgg16.weights.h5",
    "keras360/vgg16.keras",
}  # fmt: skip
COMMAND_LINE = 25  # one in this many runs in its own process
KNOWN = (*SOURCES, *TARGETS)
AUDITED = 4
GIVEN_UP = 3  # times --hang after which a call is killed
STARTING = 120  # seconds allowed before a process's first file
MOST_KEPT = 6  # files kept per kind of crash
CALL = "from convnets_torch.cli.app import main; main()"
DEATHS = {"crashes the HDF5": "crash", "keeps the HDF5": "busy", "asks for more memory": "memory"}


class Hang(BaseException):
    """A call did not return in time."""


@dataclass
class Case:
    """One damaged file and its outcome."""

    container: str
    level: str
    number: int
    source: str = ""
    damage: str = ""
    outcome: str = ""
    detail: str = ""
    seconds: float = 0.0
    kept: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome.startswith("FAILED")


@dataclass
class Job:
    """The work of one process, and its folder."""

    cases: list[tuple[str, str, int]]
    seed: int
    hang: float
    keep: Path
    folder: Path
    sources: dict[str, Source] = field(default_factory=dict)
    sound: dict[str, bytes] = field(default_factory=dict)  # source -> bytes of the converted arrays
    seen: Counter[str] = field(default_factory=Counter)


def work(job: Job, pipe: Any) -> None:
    """Run the cases of a job; send each when it starts and when it ends."""
    signal.signal(signal.SIGALRM, _hang)
    tempfile.tempdir = os.environ["TMPDIR"] = str(job.folder)
    os.environ["CONVNETS_TORCH_HOME"] = str(job.folder / "cache")
    targets: dict[str, TargetLevel] = {}
    scratch = job.folder / "scratch"
    with ReaderLevel() as reader:
        for container, level, number in job.cases:
            rng = random.Random(f"{job.seed} {container} {level} {number}")
            case = Case(container, level, number)
            target = None
            if container in TARGETS:
                target = targets.get(container) or TargetLevel(container, job.folder / f"sound-{container}")
                targets[container] = target
                path, case.source, case.damage = target.damaged(job.folder / f"{container}-{level}-{number}", rng)
            else:
                case.source = rng.choice(sorted(SOURCES[container]))
                source = job.sources.setdefault(case.source, Source(ROOT / "tests/data" / case.source))
                case.damage, data = mutate(source, rng)
                path = job.folder / f"{container}-{level}-{number}-{Path(case.source).name}"
                path.write_bytes(data)
            pipe.send(("begins", case))
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, GIVEN_UP * job.hang)
            try:
                if target is not None:
                    result = target.run(path, case.source)
                else:
                    result = reader.run(path, number) if level == "reader" else _command(job, case, path)
                case.outcome, case.detail = result
            except (OSError, ValueError) as error:
                case.outcome, case.detail = _refusal(path, f"{error}", type(error).__name__)
            except Hang:
                case.outcome = "FAILED: hang"
            except Exception as error:
                case.outcome, case.detail = "FAILED: traceback", f"{type(error).__name__}: {error}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            case.seconds = time.monotonic() - began
            if case.seconds > job.hang and not case.failed:
                case.outcome, case.detail = "FAILED: slow", f"{case.outcome}: {case.detail}"
            if left := [
                entry.name for entry in job.folder.iterdir() if entry.is_file() and entry not in (path, scratch)
            ]:
                if not case.failed:
                    case.outcome, case.detail = "FAILED: left behind", ", ".join(left)
                for name_left in left:
                    (job.folder / name_left).unlink()
            job.seen[case.outcome] += 1
            if case.failed or (case.outcome in DEATHS.values() and job.seen[case.outcome] <= MOST_KEPT):
                case.kept = path.name
                _copy(path, job.keep / path.name)
            remove(path)
            pipe.send(("ended", case))
        reader.end()
        pipe.send(("peak", reader.peak))


def _copy(path: Path, to: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, to, dirs_exist_ok=True)
    else:
        shutil.copy(path, to)


def _hang(number: int, frame: Any) -> None:
    raise Hang


def _refusal(path: Path, sentence: str, kind: str) -> tuple[str, str]:
    if "\n" in sentence or str(path) not in sentence or "Traceback" in sentence:
        return "FAILED: no sentence that names the file", f"{kind}: {sentence}"
    outcome = next((word for words, word in DEATHS.items() if words in sentence), f"refused, {kind}")
    return outcome, sentence.replace(str(path), "FILE")


class ReaderLevel:
    """A process that reads one file after another; restarted after each crash."""

    def __init__(self) -> None:
        self.context: Any = None
        self.call: Any = None
        self.peak = 0

    def __enter__(self) -> ReaderLevel:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if self.context is not None:
            self.peak = max(self.peak, _peak_below())
            self.context.__exit__(None, None, None)
        self.context = self.call = None

    def run(self, path: Path, number: int) -> tuple[str, str]:
        if self.context is None:
            self.context = reading_process()
            self.call = self.context.__enter__()
        try:
            if number % AUDITED == 0:
                json.dumps(self.call("audit", path=str(path)))
            described = self.call("read", path=str(path))
            not_finite = self._values(path, described)
        except Exception as error:
            if any(words in f"{error}" for words in DEATHS) or not isinstance(error, OSError | ValueError):
                self.end()
            raise
        return ("read, not finite" if not_finite else "read"), ""

    def _values(self, path: Path, described: dict[str, Any]) -> list[str]:
        """Read all values, as a conversion would."""
        jobs, size = [], 0
        for layer in described["layers"]:
            for array in layer["arrays"].values():
                if not array["shape"]:  # not supported by a plan
                    continue
                shape = array["shape"][::-1] if len(array["shape"]) == 2 else array["shape"]
                count = 1
                for side in shape:
                    count *= side
                size = max(size, 4 * count)
                jobs.append(
                    {"source": layer["name"], "place": 0, "shape": shape, "dtype": "float32", "arrays": [array],
                     "kernel_order": None, "flipped": False, "window": None, "constant": 0.0}
                )  # fmt: skip
        if not jobs:
            return []
        scratch = path.parent / "scratch"
        scratch.touch()
        os.truncate(scratch, max(size, 1))
        found: list[str] = self.call("fill", path=str(path), output=str(scratch), jobs=jobs)
        return found


def _peak_below() -> int:
    """Peak memory (bytes) of child processes so far; 0 if the system does not say."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    peak, stack = 0, [os.getpid()]
    while stack:
        for child in parents.get(stack.pop(), []):
            stack.append(child)
            try:
                words = Path(f"/proc/{child}/status").read_text().split()
            except OSError:
                continue
            if "VmHWM:" in words:
                peak = max(peak, int(words[words.index("VmHWM:") + 1]) * 1024)
    return peak


def _arrays(path: Path) -> bytes:
    """Return the data of a safetensors file without the header, which names the source."""
    data = path.read_bytes()
    path.unlink()
    return data[8 + int.from_bytes(data[:8], "little") :]


def _command(job: Job, case: Case, path: Path) -> tuple[str, str]:
    output = job.folder / "out.safetensors"
    options = SOURCES[case.container][case.source]
    if case.number % COMMAND_LINE == 0:
        arguments = []
        for key, value in options.items():
            text = "x".join(map(str, value)) if isinstance(value, tuple) else value
            arguments += [f"--{key.replace('_', '-')}", text]
        command = [sys.executable, "-c", CALL, "convert", str(path), "-o", str(output), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 1 and done.stderr.startswith("convnets-torch: ") and done.stderr.count("\n") == 1:
            sentence = done.stderr.removeprefix("convnets-torch: ").rstrip("\n")
            return _refusal(path, sentence, "command line")
        if done.returncode != 0:
            return "FAILED: command line", f"exit {done.returncode}: {done.stderr[-2000:]}"
    else:
        try:
            convert(path, output, **options)
        except (OSError, ValueError) as error:
            if one_line(error) != str(error):
                return "FAILED: no sentence that names the file", repr(str(error))
            raise
    values = _arrays(output)
    if case.damage == "swapped" and case.source in TELLS:
        if case.source not in job.sound:
            convert(job.sources[case.source].path, output, **options)
            job.sound[case.source] = _arrays(output)
        if values != job.sound[case.source]:
            return "FAILED: layers changed places unseen", ""
    return "converted", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("containers", nargs="*", metavar="CONTAINER", help=f"of {', '.join(KNOWN)}; default: all")
    parser.add_argument("--reader", type=int, default=20000, help="mutations of each container at reader level")
    parser.add_argument("--command", type=int, default=500, help="mutations of each container for the whole command")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--hang", type=float, default=10, help="seconds that a call may take")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="folder for the files that fail")
    parser.add_argument("--json", type=Path, help="write the counts there")
    options = parser.parse_args()
    if unknown := set(options.containers) - set(KNOWN):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(KNOWN)}")
    options.keep.mkdir(parents=True, exist_ok=True)
    counts = {"reader": options.reader, "command": options.command}
    cases = [
        (container, level, number)
        for container in options.containers or KNOWN
        for level, count in counts.items()
        if level == "reader" or container in SOURCES
        for number in range(options.first, options.first + count)
    ]
    cases.sort(key=lambda case: (case[2] - options.first) / counts[case[1]])  # interleaved, in case of an early stop
    print(f"{len(cases)} files, seed {options.seed}", file=sys.stderr)
    began = time.monotonic()
    ended: list[Case] = []
    peak = 0
    for number in (signal.SIGINT, signal.SIGTERM):  # even if a background shell ignores them
        signal.signal(number, signal.default_int_handler)
    try:
        peak = run(cases, options, ended)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        print(f"stopped after {len(ended)} of {len(cases)}")
    (options.keep / "found.json").write_text(
        json.dumps([_recorded(case, options.keep) for case in ended if case.kept and case.container in SOURCES])
    )
    report(ended, peak, time.monotonic() - began, options.json)
    sys.exit(any(case.failed for case in ended))


def _recorded(case: Case, folder: Path) -> dict[str, Any]:
    sound = (ROOT / "tests/data" / case.source).read_bytes()
    options = SOURCES[case.container][case.source]
    return {"source": case.source, "options": options, "edits": edits(sound, (folder / case.kept).read_bytes())}


def run(cases: list[tuple[str, str, int]], options: argparse.Namespace, ended: list[Case]) -> int:
    """Distribute the cases to processes; return the peak memory. The last file of a crashed process is kept."""
    context = multiprocessing.get_context("spawn")
    memory = Path("/dev/shm")
    peak = 0
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        running: dict[Any, tuple[Any, Job, list[Case]]] = {}
        begun: dict[Any, float] = {}  # process -> start time of its current file

        def start(number: int, share: list[tuple[str, str, int]]) -> None:
            own = Path(folder) / f"{number}-{len(ended)}"
            own.mkdir()
            job = Job(share, options.seed, options.hang, options.keep, own)
            ours, theirs = context.Pipe(False)
            process = context.Process(target=work, args=(job, theirs))
            process.start()
            theirs.close()
            running[ours] = (process, job, [])
            begun[ours] = time.monotonic() + STARTING

        for number in range(options.jobs):
            start(number, cases[number :: options.jobs])
        while running:
            pipes: list[Any] = multiprocessing.connection.wait(list(running), 1)
            for pipe, (process, _, _) in running.items():
                if time.monotonic() - begun[pipe] > (GIVEN_UP + 1) * options.hang:  # signals do not reach it
                    process.kill()
            for pipe in pipes:
                process, job, current = running[pipe]
                try:
                    word, told = pipe.recv()
                except EOFError:
                    process.join()
                    del running[pipe]
                    if process.exitcode and not current:
                        raise RuntimeError(
                            f"a process of this script ended with exit code {process.exitcode}"
                        ) from None
                    if current:
                        [case] = current
                        case.seconds = time.monotonic() - begun[pipe]
                        slow = case.seconds > GIVEN_UP * options.hang
                        died = f"the calling process ended with exit code {process.exitcode}"
                        case.outcome = f"FAILED: {'hang' if slow else died}"
                        for path in job.folder.glob(f"{case.container}-{case.level}-{case.number}-*"):
                            _copy(path, options.keep / path.name)
                            case.kept = path.name
                        _tell(case, ended)
                        place = job.cases.index((case.container, case.level, case.number))
                        start(len(running), job.cases[place + 1 :])
                    continue
                begun[pipe] = time.monotonic()
                if word == "begins":
                    current[:] = [told]
                elif word == "ended":
                    current.clear()
                    _tell(told, ended)
                else:
                    peak = max(peak, told)
    return peak


def _tell(case: Case, ended: list[Case]) -> None:
    ended.append(case)
    if case.failed or case.kept:
        print(f"{case.kept} ({case.damage}, {case.seconds:.1f} s): {case.outcome}: {case.detail}", flush=True)
    elif len(ended) % 1000 == 0:
        print(f"{len(ended)} done", file=sys.stderr, flush=True)


def report(ended: list[Case], peak: int, seconds: float, json_file: Path | None) -> None:
    counts: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = {}
    for case in ended:
        key = f"{case.container}, {case.level}"
        counts.setdefault(key, Counter())[case.outcome] += 1
        slowest[key] = max(slowest.get(key, 0.0), case.seconds)
    for key, outcomes in counts.items():
        said = ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.most_common())
        print(f"{key}: {sum(outcomes.values())} files; {said}; slowest {slowest[key]:.1f} s")
    print(f"{len(ended)} files in {seconds:.0f} s; largest process that read: {peak / 1e6:.0f} MB")
    if json_file is not None:
        json_file.write_text(json.dumps({"counts": counts, "slowest": slowest, "peak": peak, "seconds": seconds}))


if __name__ == "__main__":
    main()
