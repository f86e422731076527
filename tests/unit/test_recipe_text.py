"""YAML as recipes use it."""

from __future__ import annotations

import math

import pytest

from belvedere.recipe.text import read, read_value, write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("1.", 1.0),
        ("010", 10),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("null", None),
        ("'1'", "1"),
        ("[1, 2.5, x]", (1, 2.5, "x")),
        ("{a: 1}", {"a": 1}),
        ("é", "é"),
    ],
)
def test_a_value_means_the_same_in_a_file_and_on_a_command_line(text: str, value: object) -> None:
    in_file = read(f"key: {text}\n")
    assert in_file.mistakes == []
    for found in (in_file.values["key"], read_value(text)):
        assert found == value
        assert type(found) is type(value)


def test_infinite_numbers_are_read_as_numbers() -> None:
    assert read("a: -.inf\nb: .nan").values["a"] == -math.inf
    assert math.isnan(read("b: .nan").values["b"])


@pytest.mark.parametrize("text", ["/a=b", "/a b: c #1", "~/images", "C:\\x", "a,b"])
def test_a_path_on_a_command_line_needs_no_quotes(text: str) -> None:
    assert read_value(text) == text


@pytest.mark.parametrize("text", ["[1", "{a: 1", "'x", "[1], b: 2", "'a' b"])
def test_a_half_written_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"YAML|more than one"):
        read_value(text)


def test_lines_of_all_keys_and_items() -> None:
    written = read("# comment\na:\n  b: 1\n  c:\n    - x\n    - y\n")
    assert written.lines == {
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 4,
        ("a", "c", "0"): 5,
        ("a", "c", "1"): 6,
    }


def test_an_alias_repeats_a_section() -> None:
    written = read("a: &x {p: 1}\nb: *x\n")
    assert written.values == {"a": {"p": 1}, "b": {"p": 1}}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "holds nothing"),
        ("# only a comment\n", 1, "holds nothing"),
        ("- 1\n- 2\n", 1, "holds a list"),
        ("just words\n", 1, "single value"),
        ("a: 1\nb: [1, 2\n", 3, "not YAML"),
        ("a:\n\tb: 1\n", 2, "indent with spaces"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: \x00", 1, "special characters"),
        ("a: 1\n\nb: 2\na: 3\n", 4, "given twice, in lines 1 and 4"),
        ("a: &a [*a]\n", 1, "contains itself"),
        ("a: 1\nb: !!python/object:os.system {}\n", 2, "not allowed"),
        ("a: !!int x\n", 1, "not allowed"),
        ("? [1, 2]\n: 3\n", 1, "single word"),
        ("a: " + "[" * 5000 + "]" * 5000, 1, "nested more than 32 levels deep"),
    ],
)
def test_what_is_no_recipe_is_said_with_its_line(text: str, line: int, words: str) -> None:
    mistakes = read(text).mistakes
    assert len(mistakes) == 1
    assert mistakes[0].line == line
    assert words in mistakes[0].words


def test_aliases_of_aliases_end() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 12):
        text += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    mistakes = read(text).mistakes
    assert [mistake.words for mistake in mistakes] == ["more than 10,000 values, aliases counted"]


def test_what_is_written_reads_back() -> None:
    values = {
        "number_as_text": "1e-3",
        "word_of_yaml": ["null", "true", "no", "~", "", "010", "1:30", "2024-01-01", ".inf"],
        "small": 1e-6,
        "whole": 4.0,
        "nothing": None,
        "flag": True,
        "odd": "a\nb: # 'x' \"y\" é \u2028 \\",
        "empty": {},
        "nested": {"a": {"b": {"c": [1, 2.5]}}},
        "long": "word " * 60,
    }
    found = read(write(values))
    assert found.mistakes == []
    changed = {"word_of_yaml": tuple(values["word_of_yaml"]), "nested": {"a": {"b": {"c": (1, 2.5)}}}}
    assert found.values == values | changed
