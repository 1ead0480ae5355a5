"""Stored reference log-probs are found by content, and only by content."""

import os
import pickle
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.cli import UserError
from alignment.core import reference
from alignment.core.packing import Layout, TokenGroup, pack
from alignment.core.reference import (
    ReferenceStore,
    WithReference,
    content_key,
    fingerprint_files,
    missing,
)
from tests.core.batches import ragged_groups


class Groups(list[TokenGroup]):
    """What the store asks of a data set."""

    def lengths(self, layout: Layout) -> np.ndarray:
        return np.array([group.lengths()[layout == "plain"] for group in self])


@pytest.fixture
def groups() -> Groups:
    return Groups(replace(g, origin=f"a:{i}") for i, g in enumerate(ragged_groups()))


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(tmp_path / "reference", "model", "shared")


def logps_of(group: TokenGroup) -> np.ndarray:
    """Some log-probs that are no round numbers."""
    tokens = np.concatenate([np.asarray(response) for response in group.responses])
    return (-tokens / 7).astype(np.float32)


def fill(store: ReferenceStore, groups: Sequence[TokenGroup]) -> None:
    store.put([(group, logps_of(group)) for group in groups])


# ---- Entries ----


def test_what_is_stored_comes_back_to_the_bit(store: ReferenceStore, groups: Groups):
    fill(store, groups)
    for group in groups:
        found = store.get(group)
        assert found is not None
        assert found.dtype == np.float32
        assert found.tobytes() == logps_of(group).tobytes()


def test_a_group_brings_its_reference_along_response_by_response(
    store: ReferenceStore, groups: Groups
):
    fill(store, groups)
    referenced = WithReference(groups, store)
    assert len(referenced) == len(groups)
    assert referenced.lengths("plain").tolist() == groups.lengths("plain").tolist()
    for index, group in enumerate(groups):
        got = referenced[index]
        assert got.ref_logps is not None
        assert [len(part) for part in got.ref_logps] == [len(r) for r in group.responses]
        assert replace(got, ref_logps=None) == group
    batch = pack([referenced[i] for i in range(len(groups))], "shared", 0)
    assert batch.ref_logps is not None
    expected = np.concatenate([logps_of(group) for group in groups])
    assert batch.ref_logps.numpy().tobytes() == expected.tobytes()


def test_nothing_is_missing_once_it_is_stored(store: ReferenceStore, groups: Groups):
    assert missing(groups, store) == list(range(len(groups)))
    fill(store, groups)
    assert missing(groups, store) == []


def test_only_an_edited_row_is_computed_again(store: ReferenceStore, groups: Groups):
    fill(store, groups)
    edited = replace(groups[3], responses=[[9], *groups[3].responses[1:]])
    changed = Groups([groups[5], edited, groups[0], groups[2]])
    assert missing(changed, store) == [1]


def test_equal_rows_are_computed_once(store: ReferenceStore, groups: Groups):
    twice = Groups([groups[0], groups[1], replace(groups[0], origin="b:9", role=[1])])
    assert missing(twice, store) == [0, 1]


def test_a_row_that_is_stored_again_replaces_the_entry(store: ReferenceStore, groups: Groups):
    fill(store, groups)
    store.put([(groups[0], np.zeros(13, dtype=np.float32))])
    found = store.get(groups[0])
    assert found is not None
    assert not found.any()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET logps = zeroblob(length(logps))",
        "UPDATE entries SET logps = substr(logps, 1, length(logps) - 4)",
        "UPDATE entries SET crc = crc + 1",
    ],
)
def test_a_damaged_entry_is_found_and_counted_as_missing(
    store: ReferenceStore, groups: Groups, damage: str
):
    fill(store, groups)
    with sqlite3.connect(store.path) as database:
        changed = database.execute(f"{damage} WHERE key = ?", (content_key(groups[2]),)).rowcount
    assert changed == 1
    assert store.get(groups[2]) is None
    assert missing(groups, store) == [2]
    with pytest.raises(UserError, match=r"a:2: its stored reference .* is missing or damaged"):
        WithReference(groups, store)[2]
    fill(store, [groups[2]])
    assert missing(groups, store) == []


def test_an_entry_of_another_length_is_not_believed(store: ReferenceStore, groups: Groups):
    store.put([(groups[0], np.zeros(3, dtype=np.float32))])
    assert store.get(groups[0]) is None


def test_a_store_that_is_no_database_is_named_with_the_remedy(
    store: ReferenceStore, groups: Groups
):
    store.path.parent.mkdir()
    store.path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="delete it") as caught:
        store.get(groups[0])
    assert str(store.path) in str(caught.value)


def test_a_store_that_is_damaged_in_use_is_named_with_the_remedy(
    store: ReferenceStore, groups: Groups
):
    fill(store, groups)
    with sqlite3.connect(store.path) as database:
        database.execute("DROP TABLE entries")
    for use in (lambda: store.get(groups[0]), lambda: fill(store, groups)):
        with pytest.raises(UserError, match=r"cannot be used .*: delete it") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_no_memory_is_shared_by_the_users_of_a_store(store: ReferenceStore, groups: Groups):
    """Machines that share a disk have none."""
    fill(store, groups)
    assert [path.name for path in store.path.parent.iterdir()] == [store.path.name]


# ---- Keys ----


def test_the_key_is_the_ids_and_where_contexts_and_responses_begin(groups: Groups):
    """The same six tokens, split in every way that changes what is asked for."""
    ids = [5, 6, 7, 8, 9, 10]
    variants = [
        TokenGroup(ids[:2], [[]], [ids[2:]], [0]),
        TokenGroup(ids[:3], [[]], [ids[3:]], [0]),
        TokenGroup(ids[:2], [ids[2:3]], [ids[3:]], [0]),
        TokenGroup(ids[:2], [[], []], [ids[2:4], ids[4:]], [0, 0]),
        TokenGroup(ids[:2], [[], []], [ids[2:3], ids[3:]], [0, 0]),
        TokenGroup(ids[:2], [[], []], [ids[4:], ids[2:4]], [0, 0]),
        TokenGroup(ids[:2], [ids[2:3], []], [ids[3:4], ids[4:]], [0, 0]),
        TokenGroup(ids[:2], [[], ids[2:3]], [ids[3:4], ids[4:]], [0, 0]),
        *groups,
    ]
    assert len({content_key(group) for group in variants}) == len(variants)


def test_labels_and_origin_leave_the_key_alone():
    group = TokenGroup([5, 6], [[], []], [[7], [8, 9]], [1, -1])
    labelled = replace(
        group,
        role=(-1, 1),
        reward=[1.0, 0.0],
        weight=[2.0, 3.0],
        twin=[-1, 0],
        ref_logps=[[-1.0], [-2.0, -3.0]],
        origin="elsewhere:7",
    )
    assert content_key(labelled) == content_key(group)
    assert content_key(replace(group, prefix=(5, 6), responses=((7,), (8, 9)))) == content_key(
        group
    )


@pytest.mark.parametrize(
    ("fingerprint", "layout"), [("another model", "shared"), ("model", "plain")]
)
def test_another_reference_or_layout_is_another_store(
    store: ReferenceStore, groups: Groups, fingerprint: str, layout: Layout
):
    fill(store, groups)
    other = ReferenceStore(store.path.parent, fingerprint, layout)
    assert other.path != store.path
    assert missing(groups, other) == list(range(len(groups)))


# ---- Several users ----


def test_two_stores_of_one_reference_read_what_the_other_writes(
    store: ReferenceStore, groups: Groups
):
    other = ReferenceStore(store.path.parent, "model", "shared")
    assert missing(groups, other) == missing(groups, store) == list(range(len(groups)))
    fill(store, groups[:4])
    fill(other, groups[3:])
    assert missing(groups, store) == missing(groups, other) == []


def test_a_store_works_on_after_pickling_and_in_a_forked_process(
    store: ReferenceStore, groups: Groups
):
    """As it is used by workers of a data loader; SQLite's connections must not cross a fork."""
    fill(store, groups[:1])
    clone = pickle.loads(pickle.dumps(store))
    assert missing(groups, clone) == list(range(1, len(groups)))
    inherited = store._database
    child = os.fork()
    if child == 0:
        fill(store, groups[1:])
        done = missing(groups, store) == [] and store._database is not inherited
        os._exit(0 if done else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert missing(groups, store) == missing(groups, clone) == []


# ---- Fingerprints ----


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("words")
    return folder


def test_a_fingerprint_follows_weights_and_configuration_only(model_folder: Path, tmp_path: Path):
    memo = tmp_path / "memo" / "hashes.json"
    first = fingerprint_files(model_folder, memo)
    for name in ("README.md", "tokenizer.json"):
        (model_folder / name).write_text("other words")
        assert fingerprint_files(model_folder, memo) == first
    (model_folder / "config.json").write_text("{ }")
    second = fingerprint_files(model_folder, memo)
    (model_folder / "model.safetensors").write_bytes(bytes(999) + b"\1")
    third = fingerprint_files(model_folder, memo)
    (model_folder / "model.safetensors").rename(model_folder / "other.safetensors")
    fourth = fingerprint_files(model_folder, memo)
    assert len({first, second, third, fourth}) == 4


def test_the_same_files_elsewhere_have_the_same_fingerprint(model_folder: Path, tmp_path: Path):
    first = fingerprint_files(model_folder, tmp_path / "a.json")
    moved = model_folder.rename(tmp_path / "moved")
    assert fingerprint_files(moved, tmp_path / "b.json") == first


def test_a_file_is_read_once_however_often_it_is_named(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    memo = tmp_path / "hashes.json"
    digest, read = reference.hashlib.file_digest, []

    def counting(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(reference.hashlib, "file_digest", counting)
    first = fingerprint_files(model_folder, memo)
    assert sorted(read) == ["config.json", "model.safetensors"]
    assert fingerprint_files(model_folder, memo) == first
    assert len(read) == 2
    (model_folder / "config.json").write_text("{ }")
    assert fingerprint_files(model_folder, memo) != first
    assert read[2:] == ["config.json"]
