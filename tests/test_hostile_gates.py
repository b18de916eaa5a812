"""Files from outside go through the gates of `convnets_torch.files`: no module opens, unpickles or runs past them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.hostile
ROOT = Path(__file__).parents[1]

PAST_THE_GATES = {  # a call -> the modules that have it, for files that they or their own children have just made
    r"(torch\.load|(pickle|marshal|yaml|joblib)\.\w+)\(": {"convnets_torch/inference/child_process.py"},
    r"(eval|exec|compile|__import__|os\.(system|popen|spawn\w*|exec\w*))\(": set(),
    r".*\.(extract|extractall|exec_module)\(": set(),
    r"(subprocess\.\w+|Popen)\(": {
        "convnets_torch/inference/child_process.py",
        "converters/readers/process.py",
        "convnets_torch/visualization/letters.py",  # fontconfig, which is told the number of a letter and nothing else
    },
    r"Image\.open\((?!.*formats=)": set(),
    r"np\.load\((?!.*allow_pickle=False)": {"converters/proof/forwarding.py", "converters/proof/proving.py"},
    r"(open|io\.open)\(|.*\.open\(('r\+?b?'|encoding=.*)?\)|.*\.read_bytes\(": {
        "convnets_torch/inference/export.py",  # the program that it has written
        "convnets_torch/wordnet/synsets.py",  # the table of the package
    },
    r"(arrow_)?fs\.\w|.*(open_(in|out)put_\w+|url_to_fs|from_uri|get_file_info)\(": {
        "convnets_torch/images/stores.py",  # object stores, no files to check; bounded, and local paths go on
    },
    r"(?!read_text).*\.read_text\(": {
        "convnets_torch/visualization/pages.py",  # the page's own parts
        "convnets_torch/evaluation/evaluate.py",  # /proc
        "converters/readers/process.py",  # /proc
        "converters/proof/proving.py",
    },
}


@cache
def calls() -> set[tuple[str, str]]:
    """(module, call) of the packages."""
    found = set()
    for path in (path for name in ("convnets_torch", "converters") for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.add((path.relative_to(ROOT).as_posix(), ast.unparse(node)))
    return found


@pytest.mark.parametrize("pattern", PAST_THE_GATES)
def test_only_the_gates_open_what_comes_from_outside(pattern):
    found = {(module, call) for module, call in calls() if re.match(pattern, call, re.DOTALL)}
    unexpected = {(module, call) for module, call in found if module not in PAST_THE_GATES[pattern]}
    assert not unexpected
    assert {module for module, _ in found} == PAST_THE_GATES[pattern]  # so that the list stays true
