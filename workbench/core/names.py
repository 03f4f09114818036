"""Names that people and sources give: one rule for all that become a file, unit, label or line.

`check_name` is for names that the workbench makes files and identifiers of: steps, datasets,
models, pipelines, aliases. `check_text` is for names that people choose freely: tags, drives,
figures, classes. `check_person` is for names that stand for a person.
"""

from __future__ import annotations

import re
import unicodedata

from workbench.core.errors import ParameterError

__all__ = ["check_path", "invalid_on_a_line", "shown"]

_IDENTIFIER = re.compile(r"[^\W_][\w.-]*")
_LOWER_CASE = re.compile(r"[a-z0-9][a-z0-9._-]*")
_MAX_BYTES = 100  # of a name; a file name may have 255, and the workbench adds to it
_MAX_PATH_PART_BYTES, _MAX_PATH_BYTES = 255, 1024
_RESERVED_ON_WINDOWS = frozenset(
    {*("con", "prn", "aux", "nul"), *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)
_NOT_ON_ONE_LINE = {
    "Cc": "a control character",
    "Cf": "an invisible character",
    "Cs": "a byte that is not UTF-8",
    "Zl": "a line break",
    "Zp": "a line break",
}
"""Unicode's general categories of characters that no name has."""

_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d159\U000e0000-\U000e0fff]"
)
"""Letters and marks that are shown as nothing (Unicode's Default_Ignorable_Code_Point), or as a
space."""

_SHOWN_CHARACTERS = 80


def check_name(
    name: str, what: str, *, lower_case: bool = False, max_bytes: int = _MAX_BYTES
) -> str:
    """``name``, if it can be the name of a file, unit and identifier on every system.

    It starts with a letter or digit and has letters, digits, ``.``, ``_`` and ``-`` only.

    Args:
        what: What it names, for the message: ``step name``.
        lower_case: Take lower-case ASCII letters and digits only, as registries do.

    Raises:
        ParameterError: It cannot.
    """
    check_text(name, what, max_bytes=max_bytes)
    _require_visible(name, what)
    if not (_LOWER_CASE if lower_case else _IDENTIFIER).fullmatch(name):
        letters = "lower-case letters" if lower_case else "letters"
        raise _invalid(
            name,
            what,
            f"use {letters}, digits, dots, dashes and underscores, a letter or digit first",
        )
    if name.endswith("."):
        raise _invalid(name, what, "it ends with a dot")
    if name.partition(".")[0].lower() in _RESERVED_ON_WINDOWS:
        raise _invalid(name, what, "it names a device on Windows")
    return name


def check_text(text: str, what: str, *, max_bytes: int = _MAX_BYTES) -> str:
    """``text``, if it is one line that people can read and a file or label can have as its name.

    Raises:
        ParameterError: It is empty, too long, not in the normal form NFC, has control or invisible
            characters, a path separator, spaces around it, or is ``.`` or ``..``.
    """
    if not isinstance(text, str):
        raise _invalid(str(text), what, "it is not text")
    if problem := _problem(text, max_bytes):
        raise _invalid(text, what, problem)
    return text


def check_path(path: str, what: str) -> str:
    """``path``, if it is a relative path with ``/`` between names that `check_text` accepts.

    Spaces around a part are accepted, since drives take their names from files.

    Raises:
        ParameterError: It is not.
    """
    if len(path.encode(errors="replace")) > _MAX_PATH_BYTES:
        raise _invalid(path, what, f"it has more than {_MAX_PATH_BYTES} bytes")
    for part in path.split("/"):
        if problem := _problem(part.strip(" ") or part, _MAX_PATH_PART_BYTES):
            raise _invalid(path, what, f"{shown(part)}: {problem}" if part else problem)
    return path


def check_person(name: str, what: str) -> str:
    """The name of a person in one spelling (Unicode's NFKC, single spaces).

    Raises:
        ParameterError: `check_text` refuses it, or it mixes scripts, as a Latin name with a
            Cyrillic letter that looks the same does, or has a script that is not in common use.
    """
    check_text(name, what, max_bytes=_MAX_PATH_PART_BYTES)
    _require_visible(name, what)
    normal = " ".join(unicodedata.normalize("NFKC", name).split())
    scripts = {script for letter in normal if (script := _script(letter))}
    if rare := sorted(scripts - _SCRIPTS_IN_USE):
        problem = f"{rare[0].capitalize()} letters can look like others; write it in another script"
        raise _invalid(name, what, problem)
    if len(scripts) > 1 and not any(scripts <= together for together in _WRITTEN_TOGETHER):
        listed = " and ".join(sorted(script.capitalize() for script in scripts))
        raise _invalid(name, what, f"it mixes {listed} letters, which can look alike")
    return check_text(normal, what, max_bytes=_MAX_PATH_PART_BYTES)


def same_person(one: str, other: str) -> bool:
    """Whether two names, as `check_person` returns them, look the same.

    Case, accents that are written in several ways, and letters of other scripts that look like
    Latin ones make no difference.
    """
    return _skeleton(one) == _skeleton(other)


def invalid_on_a_line(character: str) -> bool:
    """Whether a character is a control or invisible one, or a byte that is not UTF-8."""
    return unicodedata.category(character) in _NOT_ON_ONE_LINE


def shown(text: str) -> str:
    """A name in quotes for a message: on one line, readable, not too long."""
    text = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return "'" + "".join(_escaped(character) for character in text) + "'"


def _problem(text: str, max_bytes: int) -> str:
    """What is wrong with a name; empty if nothing is."""
    categories = map(unicodedata.category, text[: max_bytes + 1])
    bad = next((category for category in categories if category in _NOT_ON_ONE_LINE), None)
    if bad is not None:
        return f"it has {_NOT_ON_ONE_LINE[bad]}"
    if len(text) > max_bytes or len(text.encode()) > max_bytes:
        return f"it has more than {max_bytes} bytes"
    problems = {
        "it is empty": not text,
        "it names a folder": text in (".", ".."),
        "it has a path separator": "/" in text or "\\" in text,
        "it has spaces around it": text != text.strip(),
        "an accent is a character of its own (write it in NFC)": (
            text != unicodedata.normalize("NFC", text)
        ),
    }
    return next((problem for problem, found in problems.items() if found), "")


def _require_visible(name: str, what: str) -> None:
    if _IGNORABLE.search(name):
        raise _invalid(name, what, "it has an invisible character")


def _invalid(name: str, what: str, problem: str) -> ParameterError:
    return ParameterError(f"invalid {what} {shown(name)}: {problem}")


def _escaped(character: str) -> str:
    if not invalid_on_a_line(character) and character != "\\":
        return character
    return character.encode("unicode_escape").decode()


_SCRIPTS_IN_USE = frozenset(
    "ARABIC ARMENIAN BENGALI BOPOMOFO CJK CYRILLIC DEVANAGARI ETHIOPIC GEORGIAN GREEK GUJARATI "  # noqa: SIM905
    "GURMUKHI HANGUL HEBREW HIRAGANA KANNADA KATAKANA KHMER LAO LATIN MALAYALAM MYANMAR ORIYA "
    "SINHALA TAMIL TELUGU THAANA THAI TIBETAN".split()
)
"""Unicode's recommended scripts (UAX 31, table 5); Lisu or Cherokee could spell any name."""

_WRITTEN_TOGETHER = (
    frozenset({"CJK", "HIRAGANA", "KATAKANA", "LATIN"}),
    frozenset({"CJK", "HANGUL", "LATIN"}),
    frozenset({"CJK", "BOPOMOFO", "LATIN"}),
)
"""Sets of scripts that one language uses (Unicode Technical Standard 39, highly restrictive)."""

_LIKE_LATIN = str.maketrans(
    # Cyrillic, Greek and Armenian letters in lower case, and digits, as Unicode's list of
    # confusables (UTS 39, confusables.txt) maps them; written by code point to keep them apart.
    {
        **dict(
            zip(
                "\u0430\u0431\u0435\u0455\u0456\u0458\u043e\u0440\u0441\u0443\u0445\u044c\u04bb"
                "\u0501\u051b\u051d\u0432\u043a\u043c\u043d\u0442\u0433",
                "a6esijopcyxbhdqwbkmhtr",
                strict=True,
            )
        ),
        **dict(
            zip(
                "\u03b1\u03b3\u03b9\u03ba\u03bd\u03bf\u03c1\u03c3\u03c4\u03c5\u03c7\u03b2\u03b5"
                "\u03b6\u03b7\u03bc",
                "ayikvopotuxbezhm",
                strict=True,
            )
        ),
        **dict(zip("\u0570\u0578\u057d\u0585\u0581\u0566\u057a", "hnuogqw", strict=True)),
        "\u0131": "i",
        "\u0251": "a",
        "\u0261": "g",
        **{
            chr(code): name[-1].lower()
            for code in (*range(0x1D00, 0x1D30), 0x262, 0x26A, 0x274, 0x280, 0x28F, 0x29C, 0x29F)
            if (name := unicodedata.name(chr(code))).startswith("LATIN LETTER SMALL CAPITAL")
            and name[-2] == " "
        },
        "0": "o",
        "1": "l",
    }
)


def _skeleton(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(folded.translate(_LIKE_LATIN).split())


def _script(character: str) -> str:
    """The script of a letter, as its Unicode name starts; empty for what all scripts share."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    word = unicodedata.name(character, "UNKNOWN").split()[0]
    return "" if word in ("MODIFIER", "MASCULINE", "FEMININE") else word
