"""Every way to change the audit log is found and named."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tiny_run import TinyRun
from workbench.audit import log
from workbench.core import digest
from workbench.core.errors import ParameterError, VerificationError, WorkbenchError
from workbench.core.keyring import signing_key
from workbench.core.signatures import sign_reference
from workbench.core.workspace import Workspace

REF = f"release/{'a' * 64}"


def path_of(workspace: Workspace) -> Path:
    return workspace.root / "audit" / "log.jsonl"


def fill(workspace: Workspace, count: int = 5) -> None:
    for number in range(count):
        log.append(workspace, "released", by="Ann", subjects=(REF,), version=number)


def rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in change(lines)))


def edited(lines: list[bytes], at: int) -> list[bytes]:
    return [line.replace(b"Ann", b"Eve") if n == at else line for n, line in enumerate(lines)]


def swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def test_an_untouched_log_is_whole_and_can_be_searched(workspace: Workspace) -> None:
    fill(workspace)
    other = f"release/{'b' * 64}"
    log.append(workspace, "rolled-back", by="Bob", subjects=(other, REF), reason="worse at night")
    report = log.verify_log(workspace)
    assert (report.entries, report.checkpoint, report.problems) == (6, 6, ())
    (entry,) = log.read_log(workspace, other)
    assert (entry.number, entry.by, entry.detail) == (6, "Bob", {"reason": "worse at night"})
    assert len(list(log.read_log(workspace, REF))) == 6


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: edited(lines, 0), "entry 1 was changed"),
        (lambda lines: edited(lines, 2), "entry 3 was changed"),
        (lambda lines: edited(lines, 4), "entry 5 is not the one that was signed"),
        (lambda lines: [*lines[:2], *lines[3:]], "entry 3 says that it is entry 4"),
        (lambda lines: lines[1:], "entry 1 says that it is entry 2"),
        (swapped, "entry 2 says that it is entry 3"),
        (lambda lines: lines[:-1], "entries 5 to 5 are missing: the log was truncated"),
        (lambda lines: lines[:1], "entries 2 to 5 are missing"),
        (lambda _: [], "entries 1 to 5 are missing"),
        (lambda lines: [*lines, lines[-1]], "entry 6 says that it is entry 5"),
        (lambda lines: [*lines[:2], b"{", *lines[3:]], "entry 3 cannot be read"),
        (lambda lines: [*lines[:4], lines[4][:30]], "entry 5 cannot be read"),
        (lambda lines: [*lines[:2], b"", *lines[2:]], "entry 3 cannot be read"),
    ],
)
def test_a_changed_log_is_found_and_named(
    workspace: Workspace, change: Callable[[list[bytes]], list[bytes]], problem: str
) -> None:
    fill(workspace)
    rewrite(path_of(workspace), change)
    problems = log.verify_log(workspace).problems
    assert any(problem in found for found in problems), problems


def test_a_log_that_does_not_end_at_its_checkpoint_is_not_continued(workspace: Workspace) -> None:
    fill(workspace)
    whole = path_of(workspace).read_bytes()
    for change in (
        lambda lines: lines[:2],
        lambda lines: edited(lines, 4),
        lambda lines: [*lines, lines[-1]],
        lambda _: [],
    ):
        rewrite(path_of(workspace), change)
        with pytest.raises(VerificationError, match="its checkpoint is entry 5"):
            fill(workspace, 1)
        path_of(workspace).write_bytes(whole)
    fill(workspace, 1)
    assert log.verify_log(workspace) == log.LogReport(6, 6, ())


def test_a_killed_process_loses_no_entry(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(workspace, 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(log, "_append_line", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        fill(workspace, 1)
    assert log.verify_log(workspace).problems == (
        "entries 3 to 3 are missing: the log was truncated",
    )
    fill(workspace, 1)
    assert log.verify_log(workspace) == log.LogReport(4, 4, ())


@pytest.mark.parametrize("left", [-1, 0, 1, 100])
def test_a_disk_that_is_full_in_the_middle_of_a_line_stops_only_that_entry(
    workspace: Workspace, left: int
) -> None:
    fill(workspace, 20)  # the log is larger than the checkpoint, which has to fit
    size = path_of(workspace).stat().st_size
    line = size // 20
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = size + (left if left >= 0 else line)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(WorkbenchError, match="audit log cannot be written"):
            fill(workspace, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    entries = log.verify_log(workspace).checkpoint
    fill(workspace, 1)
    assert log.verify_log(workspace) == log.LogReport(entries + 1, entries + 1, ())


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_line_that_was_not_finished_is_written_again(workspace: Workspace, kept: int) -> None:
    fill(workspace, 3)
    content = path_of(workspace).read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    cut = start + kept if kept > 0 else len(content) + kept
    path_of(workspace).write_bytes(content[:cut])
    fill(workspace, 1)
    assert log.verify_log(workspace) == log.LogReport(4, 4, ())
    with path_of(workspace).open("ab") as stream:
        stream.write(b'{"number": 5')  # not what was signed
    with pytest.raises(VerificationError, match="ends at entry 5"):
        fill(workspace, 1)


def test_entries_added_by_hand_are_not_signed(workspace: Workspace) -> None:
    fill(workspace, 2)
    last = path_of(workspace).read_bytes().splitlines()[-1]
    forged = {**json.loads(last), "number": 3, "previous": digest.of_bytes(last), "by": "Eve"}
    with path_of(workspace).open("ab") as stream:
        stream.write(digest.canonical_json(forged) + b"\n")
    assert log.verify_log(workspace).problems == ("entries after 2 are not signed",)
    with pytest.raises(VerificationError, match="ends at entry 3, its checkpoint is entry 2"):
        fill(workspace, 1)


def test_a_checkpoint_of_another_key_or_none_is_a_problem(
    workspace: Workspace, tmp_path: Path
) -> None:
    fill(workspace, 3)
    own = workspace.root / "audit-checkpoint" / "checkpoint.json"
    stranger = signing_key(Workspace(tmp_path / "stranger" / ".workbench"))
    name = json.loads(own.read_bytes())["last"]
    own.write_text(json.dumps({"last": name, **sign_reference(stranger, "audit checkpoint", name)}))
    assert "signed with another key" in log.verify_log(workspace).problems[0]
    for damaged in ("", "[]", "{}", '{"last": 7}', '{"last": "x/y"}'):
        own.write_text(damaged)
        assert log.verify_log(workspace).problems == ("audit checkpoint cannot be read",)
    own.unlink()
    assert log.verify_log(workspace).problems == ("there is no checkpoint",)


def test_a_log_and_its_checkpoint_set_back_together_differ_from_the_copy(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log.CHECKPOINT_VARIABLE, str(tmp_path / "elsewhere" / "checkpoint.json"))
    fill(workspace, 2)
    own = workspace.root / "audit-checkpoint" / "checkpoint.json"
    before = (path_of(workspace).read_bytes(), own.read_bytes())
    fill(workspace, 3)
    path_of(workspace).write_bytes(before[0])
    own.write_bytes(before[1])
    problems = log.verify_log(workspace).problems
    assert problems == ("entries 3 to 5 are missing: the log was truncated",)


def test_two_signed_histories_are_told_apart(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "elsewhere" / "checkpoint.json"
    fill(workspace, 2)
    before = path_of(workspace).read_bytes()
    own = workspace.root / "audit-checkpoint" / "checkpoint.json"
    signed = own.read_bytes()
    fill(workspace, 1)
    copy.parent.mkdir()
    copy.write_bytes(own.read_bytes())  # what was reported elsewhere
    path_of(workspace).write_bytes(before)  # and the other history, with the key
    own.write_bytes(signed)
    log.append(workspace, "rolled-back", by="Eve", subjects=(REF,))
    assert log.verify_log(workspace).problems == ()
    monkeypatch.setenv(log.CHECKPOINT_VARIABLE, str(copy))
    report = log.verify_log(workspace)
    assert report.reason == "log-forked"
    assert report.problems == ("entry 3 is not the one that was signed: two histories were signed",)


def test_concurrent_entries_make_one_chain(workspace: Workspace) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fill(workspace, 5), range(4)))
    assert log.verify_log(workspace) == log.LogReport(20, 20, ())


def test_texts_and_events_are_checked(workspace: Workspace) -> None:
    with pytest.raises(ParameterError, match="mixes"):
        log.append(workspace, "released", by="\u0430nn", subjects=(REF,))
    with pytest.raises(ParameterError, match="unknown event"):
        log.append(workspace, "hacked", by="Ann", subjects=(REF,))  # type: ignore[arg-type]
    assert log.verify_log(workspace) == log.LogReport(0, 0, ())


def test_one_change_among_a_hundred_thousand_entries_is_named(workspace: Workspace) -> None:
    fill(workspace, 1)
    body = json.loads(path_of(workspace).read_bytes())
    lines, previous = [], "0" * 64
    template = digest.canonical_json({**body, "number": 0, "previous": "PREVIOUS"})
    for number in range(1, 100_001):
        line = template.replace(b'"number":0', b'"number":%d' % number, 1)
        line = line.replace(b"PREVIOUS", previous.encode(), 1)
        previous = digest.of_bytes(line)
        lines.append(line)
    name = f"100000/{previous}"
    signed = {"last": name, **sign_reference(signing_key(workspace), "audit checkpoint", name)}
    (workspace.root / "audit-checkpoint" / "checkpoint.json").write_text(json.dumps(signed))
    kept = lines[:50_000]
    changes = {
        "": lines,
        "entry 50001 was changed": [*kept, lines[50_000].replace(b"Ann", b"Eve"), *lines[50_001:]],
        "entry 50001 says that it is entry 50002": [*kept, *lines[50_001:]],
        "entry 50001 says that it is entry 50003": [*kept, lines[50_002], *lines[50_001:]],
        "entries 50001 to 100000 are missing: the log was truncated": kept,
    }
    for named, changed in changes.items():
        path_of(workspace).write_bytes(b"\n".join(changed) + b"\n")
        began = time.process_time()
        problems = log.verify_log(workspace).problems
        assert time.process_time() - began < 2
        assert problems[0].startswith(named) if named else not problems


def test_the_library_itself_logs_what_a_run_does(tiny_run: TinyRun) -> None:
    entries = list(log.read_log(tiny_run.workspace))
    events = {entry.event for entry in entries}
    assert events >= {"ingested", "frames-read", "labelled", "trained", "judged", "released"}
    for output, event in (
        ("retrain.checkpoint", "trained"),
        ("validate.gates", "judged"),
        ("release.release", "released"),
    ):
        about = log.read_log(tiny_run.workspace, tiny_run.output(output))
        assert next(about).event == event
    read = [entry.detail for entry in entries if entry.event == "frames-read"]
    assert {"why": "labeling", "frames": 8} in read
    assert log.verify_log(tiny_run.workspace).problems == ()
