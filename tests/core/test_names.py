"""The rule for names: what is taken, what is refused, and how a refusal reads."""

from __future__ import annotations

import unicodedata

import pytest

from workbench.core.errors import ParameterError
from workbench.core.names import (
    check_name,
    check_path,
    check_person,
    check_text,
    same_person,
    shown,
)

HOSTILE = (
    *("", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "C:\\x"),
    *(
        "a\n",
        "a\nb",
        "\ra",
        "a\tb",
        "a\x00b",
        "a\x1b[31m",
        "a\x7f",
        "a\x85b",
        "a\u2028b",
        "a\u2029",
    ),
    *("\u202egnp.exe", "a\u200bb", "\ufeffa", "\udcff", "x\udce9.jpg"),
    *(" a", "a ", "e\u0301", "x" * 5000, "ü" * 60),
)
"""Names that no step, dataset, model, pipeline, tag or figure may have."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_on_one_readable_line(name: str) -> None:
    for check in (check_name, check_text):
        with pytest.raises(ParameterError, match="invalid step name") as error:
            check(name, "step name")
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "name", ["-rf", ".git", "_", "con", "NUL.txt", "a.", "a b", "a;b", "a'b", "~"]
)
def test_identifiers_are_stricter_than_texts(name: str) -> None:
    assert check_text(name, "tag") == name
    with pytest.raises(ParameterError):
        check_name(name, "step name")


@pytest.mark.parametrize("name", ["train", "a", "A-1_b.c", "größe", "夜間", "x" * 100])
def test_usual_names_are_taken(name: str) -> None:
    assert check_name(name, "step name") == name


def test_registries_take_lower_case_letters_only() -> None:
    assert check_name("front-camera", "model name", lower_case=True) == "front-camera"
    for name in ("Front", "größe", "front camera"):
        with pytest.raises(ParameterError, match="lower-case"):
            check_name(name, "model name", lower_case=True)


def test_a_path_has_names_between_slashes() -> None:
    assert check_path("city 1 /drive-2", "drive") == "city 1 /drive-2"
    for path in ("/a", "a//b", "a/../b", "a/b\n", "a/" + "x" * 300, "x/" * 600 + "x"):
        with pytest.raises(ParameterError):
            check_path(path, "drive")


@pytest.mark.parametrize(
    "name", ["Ann", "Anna-Lena Müller", "O'Neil", "Анна", "山田 Taro", "김민준"]
)
def test_people_write_their_names_in_their_script(name: str) -> None:
    assert check_person(name, "reviewer") == name


@pytest.mark.parametrize(
    "name", ["a\ufe0fnn", "\u3164", "an\u115fn", "ann\u034f", "a\u2800n", "ann\U000e0041"]
)
def test_letters_that_are_shown_as_nothing_are_refused(name: str) -> None:
    for check in (check_name, check_person):
        with pytest.raises(ParameterError, match="invisible"):
            check(name, "name")


@pytest.mark.parametrize("name", ["\u0430nn", "Ann \u0405mith", "p\u03b1ul", "A\u200bnn", "Ann\n"])
def test_a_name_in_two_scripts_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match="invalid reviewer"):
        check_person(name, "reviewer")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ann", "ann"),
        ("Ann  Lee", "ann lee"),
        ("\uff21nn", "Ann"),  # full-width A
        ("oca", "\u043e\u0441\u0430"),  # all Cyrillic
        ("Strasse", "straße"),
        (unicodedata.normalize("NFD", "José"), "José"),
        ("ann1", "annl"),
        ("\u1d00\u0274\u0274", "Ann"),  # small capitals
        ("\u0251nn", "ann"),
        ("\U0001d400nn", "Ann"),  # mathematical
    ],
)
def test_names_that_look_the_same_are_one_person(one: str, other: str) -> None:
    assert same_person(one, other)


@pytest.mark.parametrize(
    "name", ["\ua4ee\ua4e0\ua4e0", "\u13aa\u13c0", "\u2c81\u2c9b\u2c9b", "\U00010330\U0001033d"]
)
def test_scripts_whose_letters_spell_other_names_are_refused(name: str) -> None:
    """Lisu, Cherokee, Coptic, Gothic."""
    with pytest.raises(ParameterError, match="another script"):
        check_person(name, "reviewer")


def test_different_names_are_different_people() -> None:
    assert not same_person("Ann", "Anna")
    assert not same_person("Anna Müller", "Anna Muller")


def test_a_shown_name_is_one_printable_line() -> None:
    assert shown("a\nb\\c\x1b[31m\udcff") == "'a\\nb\\\\c\\x1b[31m\\udcff'"
    assert len(shown("x" * 5000)) < 90
