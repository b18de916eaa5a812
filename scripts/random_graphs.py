"""Draw random Keras models, convert them with their proof, and compare the networks with what Keras answers.

    python scripts/random_graphs.py --count 5000 --seed 1

The models are drawn from the table of supported layers by `tests/reference/random_graphs.py`, the same ones for the
same seed and source. The first wrong answer, crash, or refusal that is not in its list is shrunk to a small model,
which is printed as a program; the exit code is then 1. Otherwise counts are printed, as JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", f"{tempfile.gettempdir()}/hypothesis")  # not the current folder
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from tests.reference.random_graphs import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="number of models (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument("--no-shrink", action="store_true", help="print the first failure as it was drawn")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # Keras, about .h5 files
    warnings.filterwarnings("ignore", message="Do not use the `random` module")  # Keras draws seeds of layers
    torch.set_num_threads(1)
    tally = run(options.count, options.seed, shrink=not options.no_shrink)
    if options.json:
        print(json.dumps(vars(tally)))
        return
    print(f"{tally.count} models, {tally.refused.total()} of them refused")
    for what, counts in (("refused", tally.refused), ("noted", tally.notes), ("with", tally.kinds)):
        print(f"{what}:", ", ".join(f"{name} {count}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
