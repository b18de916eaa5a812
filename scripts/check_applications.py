"""Convert every network of Keras Applications at its smallest size, and compare it with what Keras answers.

    python scripts/check_applications.py                     # all, which takes about an hour and 24 GiB of memory
    python scripts/check_applications.py ResNet50 ConvNeXtTiny

Each is saved as `.keras`, `.h5`, and as weights alone in both containers, with random weights and statistics, and
converted with its proof. One line is printed for each: the largest difference from Keras's output and that of the
proof, as shares of the largest value; the seconds of Keras and of the conversions; and what each further file gave,
equal parameters or the sentence with which it was refused. The exit code is 1 if something differs.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from tests.reference.applications import cases, check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks (default all)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default 1)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # Keras, about .h5 files
    torch.set_num_threads(options.threads)
    wrong = []
    print(f"{'network':55} {'error':>8} {'proof':>8} {'Keras':>6} {'ours':>6}", flush=True)
    for name, told in cases():
        if options.names and name not in options.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = check(name, told, Path(folder))
            except Exception as error:  # of which all are reported
                wrong.append(f"{name} {told}")
                print(f"{name} {told}: {type(error).__name__}: {error}", flush=True)
                continue
        forms = "; ".join(f"{form}: {found}" for form, found in row.forms.items() if found != "equal")
        keras, ours = row.seconds
        print(
            f"{row.name:55} {row.error:8.0e} {row.proof:8.0e} {keras:6.1f} {ours:6.1f}  {forms or 'equal'}", flush=True
        )
        if not row.agrees or "DIFFERS" in forms or "model.h5" in forms:
            wrong.append(row.name)
    if wrong:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
