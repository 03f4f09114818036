"""Whatever is typed, a command answers in words: no traceback, no silence."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.data.sources import coco_source
from workbench.cli import cli, main

# They start servers, or wait for one.
_LEFT_OUT = {"up", "down", "app", "board"}
_VALUES = (
    *("", "x", "../x", "-1", "0", "1e400", "nan", "é", "\n", "\x1b[31mred", "%00", "=", "a=b"),
    *("a" * 300, "{}", "[1]", "/", "/dev/null", "src", "src/labels.coco.json", "src/nothing"),
    *("d", "d@1", "d@0", "d@²", "d:a", "dataset/", "dataset/zz", "sha256:", "sha256:" + "0" * 64),
    *("models:/", "models:/x/1", "models:/x@y", "models:/x/²", "selection/0", "frame@1"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and a workspace."""
    return tmp_path_factory.mktemp("odd")


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("WORKBENCH_HOME", raising=False)
    if not (folder / "src").exists():
        coco_source(folder / "src", 6)
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["ingest", "src", "--name", "d", "--workers", "1"])


def _commands(
    group: click.Group = cli, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, (*prefix, name))
        if not (prefix or name in _LEFT_OUT) or (prefix and prefix[0] not in _LEFT_OUT):
            yield (*prefix, name), command


COMMANDS = dict(_commands())


def _answers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command in this process; an exception that is not an answer fails the test."""
    capsys.readouterr()
    try:
        main(arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    text = "".join(capsys.readouterr())
    assert "Traceback" not in text, arguments
    assert status == 0 or text.strip(), f"{arguments} failed without a word"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_odd_arguments(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [p for p in COMMANDS[command].params if isinstance(p, click.Argument)]
    for value in ("src", "a" * 300, "\n") if wanted else ():
        _answers([*command, *[value] * len(wanted)], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_odd_values(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(" ".join(command))  # noqa: S311 - another sample for each command
    params = COMMANDS[command].params
    wanted = [p for p in params if isinstance(p, click.Argument)]
    for value in _VALUES if wanted else ():
        _answers([*command, "--", *[value] * len(wanted)], capsys)
    for option in (p for p in params if isinstance(p, click.Option) and not p.is_flag):
        for value in draw.sample(_VALUES, 8):
            _answers([*command, option.opts[0], value, "--", *["d"] * len(wanted)], capsys)
