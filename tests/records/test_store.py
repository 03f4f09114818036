"""Records are complete or absent, verified when read, and written once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.core import digest
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace
from workbench.records import base
from workbench.records.frames import Box, Label, LabelSchema, Origin
from workbench.records.model_types import Environment, NotebookSource
from workbench.records.sequence import RecordSequence
from workbench.records.store import Store
from workbench.records.types import DatasetVersion

SCHEMA = LabelSchema(name="s", version=1, classes=("car",))


def _record(name: str = "a") -> DatasetVersion:
    return DatasetVersion(
        name=name, label_schema=SCHEMA, frames=1, labels=0, drives=1, made_by="test"
    )


def test_a_record_is_named_by_its_content_and_payload(store: Store) -> None:
    first = store.put(_record(), {"a.txt": b"one"})
    again = store.put(_record(), {"a.txt": b"one"})
    other = store.put(_record(), {"a.txt": b"two"})
    assert first == again != other
    content = (store.folder(first) / "record.json").read_bytes()
    assert base.digest_of(first) == digest.of_bytes(content)
    assert store.get(first, DatasetVersion) == _record()
    assert store.payload(first, "a.txt").read_bytes() == b"one"


def test_payload_order_and_side_files_do_not_change_the_digest(
    store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "b"
    file.write_bytes(b"2")
    first = store.put(_record(), {"x": b"1", "y": file}, side={"cost": {"s": 1}})
    other = Store(Workspace(tmp_path / "other"))
    assert other.put(_record(), {"y": b"2", "x": b"1"}, side={"cost": {"s": 2}}) == first
    assert store.side(first, "cost") == {"s": 1}
    store.write_side(first, "cost", {"s": 3})
    assert Store(store.workspace).side(first, "cost") == {"s": 3}
    assert store.get(first, DatasetVersion) == _record()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a/../x"])
def test_payload_names_outside_the_record_are_errors(store: Store, name: str) -> None:
    with pytest.raises(RecordError, match="outside the record"):
        store.put(_record(), {name: b""})
    assert not list(store.root.rglob("*")), "nothing was written"


def test_a_changed_record_is_an_error(store: Store) -> None:
    ref = store.put(_record())
    path = store.folder(ref) / "record.json"
    path.write_bytes(path.read_bytes().replace(b'"frames":1', b'"frames":2'))
    with pytest.raises(RecordError, match="was changed"):
        store.load(ref)


def test_a_changed_or_missing_payload_is_an_error(store: Store) -> None:
    ref = store.put(_record(), {"a": b"one", "b": b"two"})
    (store.folder(ref) / "payload" / "a").write_bytes(b"One")
    (store.folder(ref) / "payload" / "b").unlink()
    for name in ("a", "b"):
        with pytest.raises(RecordError, match="missing or was changed"):
            store.payload(ref, name)
    with pytest.raises(RecordError, match="no payload file 'c'"):
        store.payload(ref, "c")


def test_a_record_without_its_marker_does_not_exist(store: Store) -> None:
    ref = store.put(_record(), {"a": b"one"})
    (store.folder(ref) / "COMPLETE").unlink()
    assert not store.exists(ref)
    with pytest.raises(RecordError, match="its mark COMPLETE is missing"):
        store.load(ref)
    assert list(store.refs("dataset")) == [ref], "leaving it out would give another answer"
    assert store.put(_record(), {"a": b"one"}) == ref
    assert store.payload(ref, "a").read_bytes() == b"one"


def test_a_write_killed_before_the_marker_leaves_no_record(store: Store, tmp_path: Path) -> None:
    code = f"""
import os, signal
from workbench.records import store as module
from workbench.records.model_types import Environment
from workbench.core.workspace import Workspace
from pathlib import Path
def killed(folder):
    os.kill(os.getpid(), signal.SIGKILL)
module._sync_tree = killed
record = Environment(python="3.11", distributions=(), machine={{}})
module.Store(Workspace(Path({str(store.workspace.root)!r}))).put(record, {{"a": b"1"}})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert list(store.root.glob("environment/.writing-*")), "it was killed half-way"
    assert list(store.refs("environment")) == []
    ref = store.put(Environment(python="3.11", distributions=(), machine={}), {"a": b"1"})
    assert list(store.refs("environment")) == [ref]


def _put(root: Path, size: int) -> str:
    record = Environment(python="3.11", distributions=("a",), machine={})
    return Store(Workspace(root)).put(record, {"big": b"x" * size})


def test_concurrent_writers_of_one_record(workspace: Workspace) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        refs = pool.starmap(_put, [(workspace.root, 300_000)] * 6)
    assert len(set(refs)) == 1
    store = Store(workspace)
    assert list(store.refs("environment")) == [refs[0]]
    assert store.payload(refs[0], "big").stat().st_size == 300_000
    assert not list(store.root.glob("environment/.writing-*"))


def test_unknown_kinds_and_formats_are_errors(store: Store) -> None:
    ref = store.put(_record())
    with pytest.raises(RecordError, match="expected a notebook record"):
        store.get(ref, NotebookSource)
    body = json.loads((store.folder(ref) / "record.json").read_bytes())
    body["from_the_future"] = 1
    content = digest.canonical_json(body)
    folder = store.root / "dataset" / digest.of_bytes(content)
    folder.mkdir()
    (folder / "record.json").write_bytes(content)
    (folder / "COMPLETE").touch()
    with pytest.raises(RecordError, match="a format that this version cannot read"):
        store.load(f"dataset/{folder.name}")
    with pytest.raises(RecordError, match="invalid record reference"):
        store.load("dataset/short")


def test_refs_keep_their_order_whatever_file_times_and_clocks_say(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [store.put(_record(name)) for name in "abcd"]
    for age, ref in enumerate(reversed(refs)):  # as a backup restores them
        for path in (store.folder(ref), *store.folder(ref).rglob("*")):
            os.utime(path, (age, age))
    assert list(store.refs("dataset")) == refs
    with monkeypatch.context() as patch:
        patch.setattr("workbench.records.store.datetime", _Clock)  # set back to 2001
        refs.append(store.put(_record("e")))
    assert list(store.refs("dataset")) == refs
    assert store.put(_record("a")) == refs[0]
    assert list(Store(store.workspace).refs("dataset")) == refs


class _Clock(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _Clock:
        return cls(2001, 1, 1, tzinfo=tz)


def test_a_lost_index_of_the_order_is_rebuilt_from_the_records(store: Store) -> None:
    refs = [store.put(_record(name)) for name in "abcdef"]
    index = store.workspace.index / "sequence"
    before = {path.name for path in index.iterdir()}
    for age, ref in enumerate(reversed(refs)):
        os.utime(store.folder(ref) / "COMPLETE", (age, age))
    for lost in (sorted(before)[:2], sorted(before)[3:], sorted(before)):
        for name in lost:
            (index / name).unlink()
        (index / "garbage").touch()
        (index / "000000000001.dataset.x").touch()
        assert list(Store(store.workspace).refs("dataset")) == refs
        assert before <= {path.name for path in index.iterdir()}
    shutil.rmtree(index)
    later = Store(store.workspace).put(_record("g"))
    assert list(Store(store.workspace).refs("dataset")) == [*refs, later]
    shutil.rmtree(store.folder(refs[1]))
    assert store.put(_record("b")) == refs[1]
    assert list(store.refs("dataset")) == [*refs, later], "written again, it keeps its number"


def test_records_without_numbers_are_numbered_once(store: Store) -> None:
    refs = [store.put(_record(name)) for name in "abc"]
    shutil.rmtree(store.workspace.index / "sequence")
    for age, ref in enumerate(reversed(refs)):
        (store.folder(ref) / "side" / "sequence.json").unlink()
        created = store.folder(ref) / "side" / "created.json"
        if age == 1:
            created.write_text("damaged")  # then its file time counts
            os.utime(store.folder(ref) / "COMPLETE", (2, 2))
        else:
            created.write_text(json.dumps({"at": f"{1970 + 20 * age}-01-01T00:00:00+00:00"}))
    old = [refs[2], refs[1], refs[0]]
    assert list(Store(store.workspace).refs("dataset")) == old
    for age, ref in enumerate(refs):
        (store.folder(ref) / "side" / "created.json").unlink()
        os.utime(store.folder(ref) / "COMPLETE", (age, age))
    assert list(Store(store.workspace).refs("dataset")) == old
    later = store.put(_record("d"))
    assert list(store.refs("dataset")) == [*old, later]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"number": "1"}', b'{"number": -1}', b"\xff"],
)
def test_a_damaged_number_does_not_change_the_order(store: Store, content: bytes) -> None:
    refs = [store.put(_record(name)) for name in "abc"]
    (store.folder(refs[0]) / "side" / "sequence.json").write_bytes(content)
    assert list(Store(store.workspace).refs("dataset")) == refs


def test_a_number_that_leaves_none_for_later_is_named(store: Store) -> None:
    first = store.put(_record("a"))
    (store.folder(first) / "side" / "sequence.json").write_text('{"number": 999999999999}')
    shutil.rmtree(store.workspace.index / "sequence")
    with pytest.raises(RecordError, match="999,999,999,999") as refused:
        Store(store.workspace).put(_record("b"))
    assert str(refused.value.where).endswith("sequence.json")


def test_a_workspace_that_cannot_be_written_is_read_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [store.put(_record(name)) for name in "abc"]
    shutil.rmtree(store.workspace.index / "sequence")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(RecordSequence, "enter", refuse)
    assert list(Store(store.workspace).refs("dataset")) == refs


def test_concurrent_writers_get_different_numbers(workspace: Workspace) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(_put_many, [(workspace.root, worker) for worker in range(4)])
    names = [path.name for path in (workspace.index / "sequence").iterdir()]
    assert sorted(int(name.partition(".")[0]) for name in names) == list(range(1, 21))


def _put_many(root: Path, worker: int) -> None:
    for number in range(5):
        Store(Workspace(root)).put(_record(f"{worker}.{number}"))


_numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
_labels = st.builds(
    Label,
    frame=st.binary(min_size=32, max_size=32).map(bytes.hex),
    cls=st.text(max_size=10),
    box=st.builds(Box, x=_numbers, y=_numbers, w=_numbers, h=_numbers),
    origin=st.sampled_from(Origin),
    annotator=st.text(max_size=10),
    occluded=st.none() | _numbers,
    ignore=st.booleans(),
    score=st.none() | st.floats(0, 1),
)


@given(_labels)
def test_labels_round_trip_through_canonical_json(label: Label) -> None:
    content = digest.canonical_json(label.model_dump(mode="json"))
    read = Label.model_validate_json(content)
    assert read == label
    assert read.id == label.id
    assert digest.canonical_json(read.model_dump(mode="json")) == content


# RFC 8785 has no whole numbers from 2**53 on: a larger float is written like one and cannot be
# written again once it was read as an int.
_exact = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e15, 1e15)
_json = st.recursive(
    st.none() | st.booleans() | _exact | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(
    machine=st.dictionaries(st.text(max_size=5), _json, max_size=4),
    distributions=st.lists(st.text(max_size=8), max_size=3),
    payload=st.dictionaries(st.from_regex(r"[a-z]{1,8}\.bin", fullmatch=True), st.binary()),
)
def test_records_round_trip_through_the_store(
    store: Store, machine: dict[str, object], distributions: list[str], payload: dict[str, bytes]
) -> None:
    record = Environment(python="3.11", distributions=tuple(distributions), machine=machine)
    ref = store.put(record, payload)
    read = Store(store.workspace).get(ref, Environment)
    assert read == record
    assert Store(store.workspace).put(read, payload) == ref
    assert {name: store.payload(ref, name).read_bytes() for name in payload} == payload


def test_references_are_found_at_any_depth() -> None:
    one, two = base.make_ref("dataset", "0" * 64), base.make_ref("bundle", "1" * 64)
    body = {"a": [one, {"b": two}], "c": one, "d": "dataset/short", "e": 5}
    assert base.refs_in(body) == [one, two]
