"""Sets of classes written as text: "dog - hunting dog + wolf".

The signs are + (these too), - (without these) and & (only those that are also these). They are signs only between
blanks, so "all-terrain bike" is a word. They are taken from left to right, and there are no parentheses: a - b + c adds
c at the end. What an operand means is not known here; the caller says it.
"""

import re
from collections.abc import Callable, Collection

SIGN = re.compile(r"(?:^|(?<= ))[-+&](?= |$)")
SHOWN = 40  # characters of a long expression on each side of the mark in an error message


def is_expression(text: object) -> bool:
    """Whether a target is text with a sign in it.

    >>> is_expression("dog - wolf"), is_expression("all-terrain bike"), is_expression("-1"), is_expression(1)
    (True, False, False, False)
    """
    return isinstance(text, str) and SIGN.search(_on_one_line(text)) is not None


def evaluate(text: str, meaning: Callable[[str], tuple[str, Collection[int]]]) -> tuple[str, list[int]]:
    """What an expression comes to.

    Args:
        text: operands with signs between them, or one operand alone.
        meaning: the words for an operand and its class ids; raises ValueError where it has no meaning.

    Returns:
        The expression with the words for each operand, and its class ids, sorted, each once.

    Raises:
        ValueError: a sign without an operand on each side, an operand without a meaning, or no class is left.
            The message shows the place, marked by >>>.

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
    emptied, before = 0, 0  # where the last class went, and of how many
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
            f"no class is left: at >>> in {_marked(text, emptied)} goes the last of {before}; leave that out"
        )
    return words.removeprefix(" + "), sorted(found)


def _operands(text: str) -> list[tuple[str, str, int]]:
    """Each operand with the sign before it, "+" for the first, and its place in the text."""
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
