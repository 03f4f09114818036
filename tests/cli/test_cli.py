"""The click tree: every command loads and has help, and help imports no heavy package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from workbench.cli import cli, main
from workbench.core.workspace import Workspace

HEAVY = ("cv2", "fiftyone", "matplotlib", "mlflow", "onnx", "pandas", "papermill", "torch")
NAMES = cli.list_commands(click.Context(cli))


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"], prog_name="workbench")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: workbench {name} ")


def test_help_imports_no_heavy_package() -> None:
    """All modules of the command line together, so that no command's help is slow."""
    code = (
        "import sys, click; from workbench.cli import cli; context = click.Context(cli);"
        "[cli.get_command(context, name) for name in cli.list_commands(context)];"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mine_is_a_command_and_a_group() -> None:
    run = CliRunner().invoke
    text = run(cli, ["mine", "--help"], prog_name="workbench").output
    assert text.startswith("Usage: workbench mine [OPTIONS] DATASET")
    assert "--budget" in text
    assert "report" in text.partition("Commands:")[2]
    report = run(cli, ["mine", "report", "--help"], prog_name="workbench").output
    assert report.startswith("Usage: workbench mine report [OPTIONS] SELECTION")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'DATASET'"),
        (["builtin", "--bugdet", "3"], "No such option '--bugdet'"),
        (["report"], "Missing argument 'SELECTION'"),
    ],
)
def test_usage_errors_of_mine_name_the_command(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["mine", *arguments], prog_name="workbench")
    assert result.exit_code == 2
    assert message in result.output
    assert "workbench mine default" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["datset"], "Did you mean 'datasets'?"),
        (["label", "sned"], "Did you mean 'send'?"),
        (["plan", "pipelines/data_engin.yaml"], "Did you mean pipelines/data_engine.yaml?"),
        (["check", "notebooks/stps/train.ipynb"], "Did you mean notebooks/steps?"),
        (["ingest", "piplines", "--name", "x"], "Did you mean pipelines?"),
        (
            ["plan", "pipelines/data_engine.yaml", "-p", "data=notebook"],
            "/notebooks?",
        ),
    ],
)
def test_what_was_probably_meant_is_named(
    arguments: list[str],
    words: str,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code
    assert words in capsys.readouterr().err


def test_empty_lists_name_the_next_command(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("models", "selections", "batches", "releases"):
        with pytest.raises(SystemExit):
            main([name])
        assert f"no {name} yet\nnext: workbench " in capsys.readouterr().out
        with pytest.raises(SystemExit):
            main([name, "--json"])
        assert json.loads(capsys.readouterr().out) == {name: [], "damaged": {}}
