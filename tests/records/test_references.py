from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.test_roles import fleet
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace
from workbench.records import dataset, references
from workbench.records.base import Ref, digest_of
from workbench.records.store import Store


def _saved(store: Store, frames: int, name: str = "fleet") -> Ref:
    return dataset.save_dataset(store, replace(fleet(1, frames), name=name), made_by="test")


def test_names_numbers_and_digests_are_resolved(workspace: Workspace, store: Store) -> None:
    first, second = _saved(store, 1), _saved(store, 2)
    assert str(references.register_dataset(workspace, first)) == "fleet@1"
    assert str(references.register_dataset(workspace, second)) == "fleet@2"
    assert str(references.register_dataset(workspace, first)) == "fleet@1", "a number never changes"
    digest = digest_of(first)
    for text in (
        "fleet@1",
        first,
        f"dataset/{digest[:8]}",
        f"sha256:{digest}",
        f"sha256:{digest[:9]}",
    ):
        assert references.resolve_dataset(workspace, text) == first
    assert references.resolve_dataset(workspace, "fleet") == second
    assert [str(version) for version in references.list_dataset_versions(workspace)] == [
        "fleet@1",
        "fleet@2",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flet", "Did you mean .fleet."),
        ("fleet@3", "fleet has 2 versions"),
        ("fleet@0", "fleet has 2 versions"),
        ("a@b@c", "invalid dataset reference"),
        ("dataset/", "no dataset has this digest"),
        ("sha256:ffffffffffff", "no dataset has this digest"),
    ],
)
def test_invalid_references_name_the_remedy(
    workspace: Workspace, store: Store, text: str, message: str
) -> None:
    for frames in (1, 2):
        references.register_dataset(workspace, _saved(store, frames))
    with pytest.raises(RecordError, match=message):
        references.resolve_dataset(workspace, text)


@pytest.mark.parametrize(
    ("text", "kinds", "message"),
    [
        ("batchs/12", (), "unknown kind of record 'batchs'.*Did you mean 'batch'"),
        ("batch/1234", (), "no batch has this digest"),
        ("1234", ("batch",), "no batch has this digest"),
        ("my batch", ("batch", "label"), "unknown batch or label.*batch/PREFIX or label/PREFIX"),
        ("nowhere", ("dataset",), "unknown dataset name"),
    ],
)
def test_what_was_looked_for_is_named(
    workspace: Workspace, text: str, kinds: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecordError) as raised:
        references.resolve_reference(workspace, text, kinds)
    assert re.search(message, f"{raised.value} {raised.value.hint}")


def test_digits_of_a_digest_are_enough(workspace: Workspace, store: Store) -> None:
    ref = _saved(store, 1)
    digits = digest_of(ref)[:8]
    assert references.resolve_reference(workspace, digits) == ref
    named = _saved(store, 2, digits)
    references.register_dataset(workspace, named)
    assert references.resolve_reference(workspace, digits) == named


def test_a_missing_or_damaged_index_is_rebuilt_from_the_records(
    workspace: Workspace, store: Store
) -> None:
    refs = [_saved(store, frames) for frames in (1, 2, 3)]
    for ref in refs:
        references.register_dataset(workspace, ref)
    before = references.list_dataset_versions(workspace)
    index = workspace.index / "datasets" / "versions.json"
    index.write_text('{"fleet": [')
    assert references.list_dataset_versions(workspace) == before
    index.unlink()
    assert references.list_dataset_versions(workspace) == before


def test_an_index_of_another_shape_or_about_others_is_not_believed(
    workspace: Workspace, store: Store
) -> None:
    refs = [_saved(store, frames) for frames in (1, 2, 3)]
    other = _saved(store, 4, "other")
    for ref in (*refs, other):
        references.register_dataset(workspace, ref)
    before = references.list_dataset_versions(workspace)
    index = workspace.index / "datasets" / "versions.json"
    swapped = json.dumps({"fleet": [refs[1], refs[0], other], "new": [refs[2]]})
    for content in ("", "[]", "3", '{"fleet": 1}', '{"fleet": [1, {}]}', swapped):
        index.write_text(content)
        assert references.list_dataset_versions(workspace) == before, content
        assert references.resolve_dataset(workspace, "fleet@2") == refs[1]
    references.register_dataset(workspace, refs[0])
    for ref in refs:  # the index has the numbers of versions whose side file is damaged
        (store.folder(ref) / "side" / "version.json").write_text("[]")
    assert references.list_dataset_versions(workspace) == before
    store.write_side(other, "version", {"name": "fleet", "number": 4})
    with pytest.raises(RecordError, match="fleet@4 has another name"):
        references.resolve_dataset(workspace, "fleet")
    store.write_side(other, "version", {"name": "fleet", "number": 1})
    store.write_side(refs[0], "version", {"name": "fleet", "number": 1})
    with pytest.raises(RecordError, match="two dataset versions are fleet@1"):
        references.resolve_dataset(workspace, "fleet")


def test_numbers_do_not_move_when_a_version_is_lost(workspace: Workspace, store: Store) -> None:
    refs = [_saved(store, frames) for frames in (1, 2, 3)]
    for ref in refs:
        references.register_dataset(workspace, ref)
    shutil.rmtree(store.folder(refs[1]))
    assert references.resolve_dataset(workspace, "fleet@3") == refs[2]
    with pytest.raises(RecordError, match="no such record"):
        references.resolve_dataset(workspace, "fleet@2")
    assert str(references.register_dataset(workspace, _saved(store, 4))) == "fleet@4"
    assert references.resolve_dataset(workspace, "fleet@3") == refs[2]


def _register(root: Path, ref: Ref) -> int:
    return references.register_dataset(Workspace(root), ref).number


def test_concurrent_registrations_are_all_stored(workspace: Workspace, store: Store) -> None:
    refs = [_saved(store, frames) for frames in range(1, 7)]
    (workspace.index / "datasets").mkdir(parents=True)
    (workspace.index / "datasets" / "versions.json").write_text("{}")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        numbers = pool.starmap(_register, [(workspace.root, ref) for ref in refs])
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
    assert {version.ref for version in references.list_dataset_versions(workspace)} == set(refs)


@pytest.mark.parametrize(
    "entries",
    [
        {"fleet": ["../../../etc/passwd", "dataset/../../../../etc", 5, None, "dataset/x"]},
        {"fleet": ["checkpoint/" + "0" * 64], "../x\n": ["dataset/" + "A" * 64]},
    ],
)
def test_an_index_of_any_content_stops_nothing(
    workspace: Workspace, store: Store, entries: object
) -> None:
    ref = _saved(store, 1)
    references.register_dataset(workspace, ref)
    references._index_path(workspace).write_text(json.dumps(entries))
    assert references.resolve_dataset(workspace, "fleet@1") == ref
    assert [one.ref for one in references.list_dataset_versions(workspace)] == [ref]
    for text in ("fleet@" + "9" * 5000, "fleet@\u0661"):
        with pytest.raises(RecordError, match="invalid dataset reference"):
            references.resolve_dataset(workspace, text)
