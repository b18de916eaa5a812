"""Evaluate sets of classes written as text: "dog - hunting dog + wolf".

The signs are + (union), - (difference) and & (intersection). They count only between blanks, so "all-terrain bike" is a
word. They are evaluated from left to right without parentheses: a - b + c adds c last. The caller resolves operands.
"""

import re
from collections.abc import Callable, Collection

SIGN = re.compile(r"(?:^|(?<= ))[-+&](?= |$)")
SHOWN = 40  # characters of a long expression on each side of >>> in an error message


def is_expression(text: object) -> bool:
    """Whether a target is text with a sign in it.

    >>> is_expression("dog - wolf"), is_expression("all-terrain bike"), is_expression("-1"), is_expression(1)
    (True, False, False, False)
    """
    return isinstance(text, str) and SIGN.search(_on_one_line(text)) is not None


def evaluate(text: str, meaning: Callable[[str], tuple[str, Collection[int]]]) -> tuple[str, list[int]]:
    """Evaluate an expression.

    Args:
        text: operands with signs between them, or one operand alone.
        meaning: returns an operand's name and class ids; raises ValueError if it is unknown.

    Returns:
        The expression with the name of each operand, and its class ids, sorted, without duplicates.

    Raises:
        ValueError: a sign lacks an operand, an operand is unknown, or no class is left. The message marks the place
            with >>>.

    >>> numbers = {"even": ("evens", [0, 2, 4]), "small": ("smalls", [0, 1])}
    >>> evaluate("even - small  + small", numbers.__getitem__)
    ('evens - smalls + smalls', [0, 1, 2, 4])
    >>> evaluate("even & small", numbers.__getitem__)
    ('evens & smalls', [0])
    >>> evaluate("even - - small", numbers.__getitem__)
    Traceback (most recent call last):
    ValueError: a target is missing at >>> in 'even - >>>- small'; a sign stands between two targets
    """
    text = _on_one_line(text)
    found: set[int] = set()
    words = ""
    operands = _operands(text)
    emptied, before = 0, 0  # the last operand that met a non-empty set, and that set's size
    for sign, operand, place in operands:
        try:
            name, ids = meaning(operand)
        except ValueError as error:
            if len(operands) == 1:
                raise
            plain = "; there are no parentheses, signs are taken from left to right" if set("()") & set(operand) else ""
            raise ValueError(f"{error} (at >>> in {_marked(text, place)}{plain})") from None
        words += f" {sign} {name}"
        if found:
            emptied, before = place, len(found)
        if sign == "+":
            found |= set(ids)
        elif sign == "-":
            found -= set(ids)
        else:
            found &= set(ids)
    if not found:
        raise ValueError(
            f"no class is left: the target at >>> in {_marked(text, emptied)} removes the last {before}; leave it out"
        )
    return words.removeprefix(" + "), sorted(found)


def _operands(text: str) -> list[tuple[str, str, int]]:
    """Return (sign, operand, place) for each operand; the first has the sign "+"."""
    operands = []
    sign, start = "+", 0
    for match in [*SIGN.finditer(text), None]:
        operand = text[start : match.start() if match else len(text)].strip()
        if not operand:
            place = _marked(text, start)
            raise ValueError(f"a target is missing at >>> in {place}; a sign stands between two targets")
        operands.append((sign, operand, start))
        if match:
            sign, start = match.group(), match.end() + 1
    return operands


def _marked(text: str, place: int) -> str:
    left, right = text[:place].ljust(place), text[place:]
    left = left if len(left) <= SHOWN else "... " + left[-SHOWN:]
    right = right if len(right) <= SHOWN else right[:SHOWN] + " ..."
    return repr(f"{left}>>>{right}")


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
