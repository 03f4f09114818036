"""JSON and YAML of any content end in a value or in an error, soon and in little memory."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
import yaml

from workbench.core import parsing
from workbench.core.errors import Refusal, VerificationError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 200 + "]" * 200,
        "[" * 100_000,
        "- " * 20_000 + "x",
        "when: 2026-99-99",
        "n: " + "9" * 5000,
        "? [a]\n: b",
        "a: b: c",
        "\x00",
        "<<: 5",
        "n: 0x" + "f" * 5000,
        "n: 0b" + "1" * 9000,
        "n: " + ":".join(["59"] * 2000),
        "a: 1\nb: 2\na: 3",
        "x: {a: 1, 'a': 2}",
        "a0: &a {x: 1}\nb: {<<: [*a, *a], y: 1, y: 2}",
        "x" * (parsing.MAX_YAML_BYTES + 1),
    ],
)
def test_hostile_yaml_is_refused(text: str, tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(yaml.YAMLError):
        parsing.parse_yaml(text)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(yaml.YAMLError):
        parsing.read_yaml(path)
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [echo]",
        "!<tag:yaml.org,2002:python/name:os.system> ''",
        "%TAG !e! tag:yaml.org,2002:python/\n--- !e!object/new:os.system {}",
        "- &a !!python/module:os\n- *a",
    ],
)
def test_yaml_that_runs_code_is_refused_with_a_code(text: str) -> None:
    with pytest.raises(VerificationError, match="would run code") as refused:
        parsing.parse_yaml(text)
    assert refused.value.reason == Refusal.UNSAFE_FILE


def test_yaml_is_read(tmp_path: Path) -> None:
    assert parsing.parse_yaml("a: &x [1, 2.5, yes]\nb: *x\n") == {
        "a": [1, 2.5, True],
        "b": [1, 2.5, True],
    }
    assert parsing.parse_yaml("") is None
    path = tmp_path / "a.yaml"
    path.write_bytes("name: Straße".encode("utf-8-sig"))
    assert parsing.read_yaml(path) == {"name": "Straße"}
    path.write_bytes(b"name: \xff")
    with pytest.raises(yaml.YAMLError, match="UTF-8"):
        parsing.read_yaml(path)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Reading a pipe would wait for ever, and reading a device would not end."""
    pipe, device, large = (tmp_path / name for name in ("pipe", "device", "large"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    with large.open("wb") as stream:
        stream.truncate(20 * 2**30)  # takes no room on the disk
    for path in (pipe, device, large):
        for read in (parsing.read_yaml, parsing.read_regular):
            with pytest.raises((OSError, yaml.YAMLError, ValueError), match=r"regular|limit"):
                read(path)
    with pytest.raises(IsADirectoryError):
        parsing.read_regular(tmp_path)


def test_hostile_json() -> None:
    assert math.isinf(parsing.parse_json('{"a": %s}' % ("9" * 5000))["a"])
    assert parsing.parse_json('{"a": Infinity, "b": 1}')["b"] == 1
    with pytest.raises(ValueError, match="nested too deeply"):
        parsing.parse_json("[" * 100_000)
    with pytest.raises(ValueError, match="Expecting"):
        parsing.parse_json("{")
    deep = {"good": 1, "bad": json.loads("[" * 500 + "]" * 500)}
    value = parsing.parse_json(json.dumps(deep))
    assert value["good"] == 1
    assert repr(value).count("[") < 150
