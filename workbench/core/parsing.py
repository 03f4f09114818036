"""Read JSON and YAML that anybody may have written, within limits.

JSON and YAML can nest without end, hold numbers of a million digits, and YAML aliases can stand for
gigabytes. Whoever reads many entries reads each for itself: `UNREADABLE` is what an entry of any
content may raise, and `describe_unreadable` says it in words.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import Refusal, VerificationError
from workbench.core.names import shown
from workbench.core.workspace import open_regular

__all__ = ()

MAX_DEPTH = 100
MAX_YAML_BYTES = 16 * 2**20
_MAX_YAML_NODES = 2_000_000
"""With every alias replaced by what it stands for."""

_MAX_DIGITS = 300
"""A longer integer is read as infinity, which every check of a number refuses."""

_PYTHON_TAG = "tag:yaml.org,2002:python/"
_TOO_DEEP = "(nested too deeply)"

UNREADABLE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(ArithmeticError, RecursionError),
)
"""What reading an entry with unexpected content raises."""


def describe_unreadable(error: BaseException) -> str:
    """One of `UNREADABLE` in words."""
    if type(error) is ValueError:
        return str(error)[:500]
    return f"its content cannot be understood ({type(error).__name__}: {str(error)[:100]})"


def read_regular(path: Path, *, max_bytes: int = 4 * 2**30) -> bytes:
    """The bytes of a file that somebody else may have put there.

    A sparse file can be larger than any memory.

    Raises:
        OSError: The file cannot be read, or is not a regular one.
        ValueError: It is larger than ``max_bytes``.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"it has {size:,} bytes, the limit is {max_bytes:,}")
        return stream.read()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Returns:
        The value. An integer of thousands of digits is infinite, and a text stands for what is
        nested more than `MAX_DEPTH` levels deep.

    Raises:
        ValueError: It is not JSON, or nested too deeply to be read at all.
    """
    try:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of thousands of digits
            value = json.loads(text, parse_int=_parse_int)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if isinstance(value, dict | list):
        _cut_at_depth(value)
    return value


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _cut_at_depth(value: Any) -> None:
    """Replace what is nested more than `MAX_DEPTH` levels deep, so that one entry fails alone."""
    level = [value]
    for depth in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            items = each.items() if isinstance(each, dict) else enumerate(each)
            inner = [(key, child) for key, child in items if isinstance(child, dict | list)]
            if depth == MAX_DEPTH - 1:
                for key, _ in inner:
                    each[key] = _TOO_DEEP
            below += [child for _, child in inner]
        level = below


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, read with the safe loader.

    Raises:
        yaml.YAMLError: It is not YAML, nested too deeply, or larger than the limits.
        VerificationError: It asks for Python objects, which would run code.
    """
    # The C loader is ten times as fast on a file of a thousand steps.
    loader_type: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"larger than {MAX_YAML_BYTES // 2**20} MiB")
    depth = 0
    for event in yaml.parse(text, loader_type):  # does not recurse, unlike the loader
        if isinstance(event, yaml.ScalarEvent) and _is_long_number(event):
            raise yaml.YAMLError(f"a number of more than {_MAX_DIGITS} digits")
        tag = str(getattr(event, "tag", None))
        if tag.startswith(_PYTHON_TAG):
            raise VerificationError(
                f"YAML that would run code: {shown(tag)}",
                hint="Do not use this file; a file of data has no such tag",
                reason=Refusal.UNSAFE_FILE,
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep")
    loader = loader_type(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > _MAX_YAML_NODES:
            raise yaml.YAMLError("its aliases stand for more than two million values")
        return loader.construct_document(node)
    except UNREADABLE as error:  # such as a date that does not exist
        raise yaml.YAMLError(describe_unreadable(error)) from error
    finally:
        loader.dispose()


def read_yaml(path: Path) -> Any:
    """The value of a YAML file in UTF-8.

    Raises:
        OSError: The file cannot be read.
        yaml.YAMLError: See `parse_yaml`.
    """
    try:
        return parse_yaml(read_regular(path, max_bytes=MAX_YAML_BYTES).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise yaml.YAMLError(f"not in UTF-8: {error}") from error
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from error


def _is_long_number(event: yaml.ScalarEvent) -> bool:
    """Whether a scalar may be read as a number that takes too long to write, such as 0xfff…"""
    plain = event.implicit[0] and len(event.value) > _MAX_DIGITS
    return plain and event.value.lstrip("+-")[:1].isdigit()


def _count_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes below ``node``, itself included; those of an alias count each time."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.YAMLError("an alias contains itself")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    if isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key, number in Counter(keys).items() if number > 1), None)
        if twice is not None:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"the mapping at line {line} has {twice[1][:60]!r} twice")
        total += sum(_count_nodes(part, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count_nodes(part, known) for part in node.value)
    known[id(node)] = total
    return total
