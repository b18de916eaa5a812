"""Sets of classes written as text, against Python's own sets, and the place shown where the text is wrong."""

import operator
import random

import pytest

from convnets_torch.wordnet.expressions import evaluate, is_expression

SETS: dict[str, set[int]] = {"a": {1, 2, 3}, "b": {3, 4}, "c-c": {2, 3, 9}, "two words": {0}, "none": set()}


def meaning(operand):
    if operand not in SETS:
        raise ValueError(f"unknown {operand!r}")
    return operand.upper(), SETS[operand]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", {1, 2, 3}),
        ("a + b", {1, 2, 3, 4}),
        ("a - b", {1, 2}),
        ("a & b", {3}),
        ("a - b + b", {1, 2, 3, 4}),
        ("a + b - b", {1, 2}),
        ("a + b & c-c", {2, 3}),  # not a + (b & c-c)
        ("a - c-c + two words", {0, 1}),
        ("a - a + b", {3, 4}),
        (" a\t-\n b ", {1, 2}),
    ],
)
def test_signs_are_taken_from_left_to_right(text, expected):
    assert evaluate(text, meaning)[1] == sorted(expected)


def test_long_expressions_are_what_python_makes_of_the_sets():
    rng = random.Random(0)
    methods = {"+": operator.or_, "-": operator.sub, "&": operator.and_}
    compared = 0
    for _ in range(300):
        names = [rng.choice(list(SETS)) for _ in range(rng.randint(1, 8))]
        signs = [rng.choice("+-&") for _ in names[1:]]
        expected = SETS[names[0]]
        for sign, name in zip(signs, names[1:], strict=True):
            expected = methods[sign](expected, SETS[name])
        text = names[0] + "".join(f" {sign} {name}" for sign, name in zip(signs, names[1:], strict=True))
        if expected:
            assert evaluate(text, meaning) == (text.upper(), sorted(expected))
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("text", ["a -", "- a", "-", "a - - b", "a + b", "a\n-\tb", "x & y"])
def test_a_sign_between_blanks_makes_an_expression(text):
    assert is_expression(text)


@pytest.mark.parametrize("text", ["all-terrain bike", "c-c", "-1", "a -b", "a- b", "AT&T", "", " ", 3, None, ["a - b"]])
def test_a_sign_inside_a_word_does_not(text):
    assert not is_expression(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a - - b", "a target is missing at >>> in 'a - >>>- b'; a sign stands between two targets"),
        ("- a", "a target is missing at >>> in '>>>- a'; a sign stands between two targets"),
        ("a  &", "a target is missing at >>> in 'a & >>>'; a sign stands between two targets"),
        ("+", "a target is missing at >>> in '>>>+'; a sign stands between two targets"),
        ("a + x", "unknown 'x' (at >>> in 'a + >>>x')"),
        ("x + a", "unknown 'x' (at >>> in '>>>x + a')"),
        ("a - a", "no class is left: the target at >>> in 'a - >>>a' removes the last 3; leave it out"),
        (
            "a - b - c-c - a - b",
            "no class is left: the target at >>> in 'a - b - c-c - >>>a - b' removes the last 1; leave it out",
        ),
        ("b & two words", "no class is left: the target at >>> in 'b & >>>two words' removes the last 2; leave it out"),
        (
            "a - (b + a)",
            "unknown '(b' (at >>> in 'a - >>>(b + a)'; there are no parentheses, signs are taken from left to right)",
        ),
        ("a - \x1b[2J", "unknown '\\x1b[2J' (at >>> in 'a - >>>\\x1b[2J')"),
    ],
)
def test_what_is_wrong_is_shown_at_its_place(text, message):
    with pytest.raises(ValueError, match=">>>") as error:
        evaluate(text, meaning)
    assert str(error.value) == message


def test_a_missing_target_is_told_before_an_unknown_one():
    with pytest.raises(ValueError, match="missing"):
        evaluate("x - - y", meaning)


def test_one_target_alone_keeps_its_own_message():
    with pytest.raises(ValueError, match=r"^unknown 'x'$"):
        evaluate("x", meaning)


def test_of_a_long_expression_the_neighbourhood_of_the_place_is_shown():
    with pytest.raises(ValueError, match=r"in '\.\.\. .*a \+ >>>x \+ a.* \.\.\.'") as error:
        evaluate(" + ".join(["a"] * 500 + ["x"] + ["a"] * 500), meaning)
    assert len(str(error.value)) < 150
