"""What the operating system refuses is said in words, with what to do; never a traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.cli import main
from workbench.core import errors, text
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import runner, unit
from workbench.pipeline.spec import ExitStatus, StepSpec
from workbench.records.store import Store
from workbench.records.types import Selection

NUMBERS = (
    *(errno.ENOSPC, errno.EROFS, errno.EIO, errno.ENOLCK, errno.EMLINK, errno.EMFILE),
    *(errno.EDQUOT, errno.EACCES, errno.ENOTSUP, errno.ENFILE, errno.ESTALE),
)


@pytest.mark.parametrize("number", NUMBERS)
def test_read_commands_say_it_in_words(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setattr("workbench.cli.runs.list_runs", refuse, raising=False)
    monkeypatch.setattr("workbench.pipeline.runs.list_runs", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    body = json.loads(out)["error"]
    assert body["kind"] == "system"
    assert body["hint"]
    assert body["where"] == str(tmp_path / "x")
    assert "Errno" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", NUMBERS)
def test_the_store_says_it_in_words(
    number: int, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("workbench.records.store.tempfile.mkdtemp", refuse)
    record = Selection(dataset="dataset/" + "0" * 64, budget=1, seed=0, method="m", chosen=())
    with pytest.raises(WorkbenchError) as refused:
        Store(workspace).put(record)
    assert refused.value.kind == "system"
    assert refused.value.hint
    assert isinstance(refused.value.__cause__, OSError)


@pytest.fixture
def own_signals() -> Iterator[None]:
    """`run_step` handles signals of its process, here that of the tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def step_spec(folder: Path) -> StepSpec:
    notebook = folder / "a.ipynb"
    notebook.write_text("{}")
    return StepSpec(
        step="a",
        notebook=str(notebook),
        home=str(folder / "home"),
        folder=str(folder / "step"),
        cache=str(folder / "cache"),
        parameters={},
        inputs={},
        declared_inputs={},
        declared_outputs={},
        threads=1,
        timeout_s=60,
        memory_gib=4,
        environment={},
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("the reason"), "RuntimeError: the reason"),
    ],
)
@pytest.mark.usefixtures("own_signals")
def test_an_exception_of_the_runner_is_not_called_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(runner, "execute_notebook", fail)
    result = unit.run_step(unit.write_spec(step_spec(tmp_path)))
    assert result.status is ExitStatus.CRASHED
    assert words in str(result.failure)
    assert "killed" not in str(result.failure)


@pytest.mark.usefixtures("own_signals")
def test_a_process_that_ends_is_not_called_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "execute_notebook", lambda *_: os._exit(7))
    result = unit.run_step(unit.write_spec(step_spec(tmp_path)))
    assert "ended with status 7" in str(result.failure)


def test_a_cell_that_meets_a_full_disk_gets_a_hint(tmp_path: Path) -> None:
    class CellError:
        ename, evalue = "OSError", "[Errno 28] No space left on device: '/x'"
        exec_count, traceback = 3, ("Traceback",)

    _, failure = runner._cell_error(CellError(), tmp_path)
    assert "the disk is full (OSError: [Errno 28]" in failure.message
    assert "Free some space" in str(failure.hint)


def test_every_number_has_an_answer() -> None:
    for number in (*NUMBERS, 12345):
        error = errors.system_error(OSError(number, "words of the system", "file", None, "other"))
        assert error.what
        assert error.where == "file"


def test_names_of_files_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert text.terminal_text("a\x1b[2Jb\u202ec\r\nd\te") == "a\\x1b[2Jb\\u202ec\\r\nd\te"
    with pytest.raises(SystemExit):
        main(["runs", "no\x1b[31msuch\x07run"])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


def test_a_wide_umask_is_narrowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    before = os.umask(0)
    try:
        with pytest.raises(SystemExit):
            main(["runs"])
        (tmp_path / "folder").mkdir()
        assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
        os.umask(0o077)
        with pytest.raises(SystemExit):
            main(["runs"])
        assert os.umask(0) == 0o077
    finally:
        os.umask(before)
