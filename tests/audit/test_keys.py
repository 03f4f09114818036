"""Keys by role: rotation, expiry, revocation, and lists that were changed."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from workbench.audit import keys, log
from workbench.core import keyring
from workbench.core.errors import ParameterError, Refusal, VerificationError
from workbench.core.keyring import public_key, read_keyring, signing_key
from workbench.core.workspace import Workspace


def later(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    moment = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds")
    monkeypatch.setattr(keyring, "_now", lambda: moment)


def test_one_key_has_every_role_until_a_role_gets_its_own(workspace: Workspace) -> None:
    root = signing_key(workspace)
    assert signing_key(workspace, "log") == root
    made = keys.rotate(workspace, "log", by="Ann")
    assert signing_key(workspace, "log").fingerprint == made.key != root.fingerprint
    assert signing_key(workspace) == root
    private = signing_key(workspace, "log").private
    assert private.stat().st_mode & 0o777 == 0o600 and private.is_relative_to(workspace.secrets)
    assert "PRIVATE" not in (workspace.root / "keys" / "keyring.json").read_text()
    (entry,) = log.read_log(workspace)
    assert (entry.event, entry.by, entry.detail["key"]) == ("key-rotated", "Ann", made.key)
    assert log.verify_log(workspace).problems == ()


def test_a_rotated_key_signs_nothing_more_and_what_it_signed_counts(workspace: Workspace) -> None:
    old = signing_key(workspace)
    keys.rotate(workspace, "release", by="Ann")
    assert signing_key(workspace).fingerprint != old.fingerprint
    assert public_key(workspace, signer=old.fingerprint).read_bytes() == old.public.read_bytes()
    with pytest.raises(VerificationError, match="is for log, not for release") as refused:
        public_key(workspace, signer=keys.rotate(workspace, "log").key)
    assert refused.value.reason == Refusal.WRONG_KEY


def test_an_expired_key_signs_nothing_and_what_it_signed_before_counts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.rotate(workspace, "release", by="Ann", days=30).key
    soon = datetime.now(UTC).isoformat(timespec="seconds")
    later(monkeypatch, 31)
    with pytest.raises(VerificationError, match=r"expired on .*keys rotate release") as refused:
        signing_key(workspace)
    assert refused.value.reason == Refusal.KEY_EXPIRED
    assert public_key(workspace, signer=key, at=soon).exists()
    with pytest.raises(VerificationError, match="had expired") as refused:
        public_key(workspace, signer=key, at=keyring._now())
    assert refused.value.reason == Refusal.KEY_EXPIRED
    keys.rotate(workspace, "release")
    assert signing_key(workspace).fingerprint != key


def test_a_revoked_root_key_is_replaced_in_every_role(workspace: Workspace) -> None:
    old = signing_key(workspace)
    log.append(workspace, "released", by="Ann", subjects=())
    (new,) = {
        one.key
        for one in keys.revoke(workspace, old.fingerprint[:8], by="Ann", reason="laptop stolen")
    }
    for role in ("release", "log", "labels", "rollout"):
        assert signing_key(workspace, role).fingerprint == new
        with pytest.raises(VerificationError, match=r"revoked on .* by Ann: laptop") as refused:
            public_key(workspace, role, signer=old.fingerprint)
        assert refused.value.reason == Refusal.KEY_REVOKED
    assert log.verify_log(workspace).problems == ()
    assert [entry.event for entry in log.read_log(workspace)] == ["released", "key-revoked"]
    with pytest.raises(ParameterError, match="revoked before"):
        keys.revoke(workspace, old.fingerprint, by="Ann", reason="again")


def test_a_changed_list_of_keys_is_refused(workspace: Workspace) -> None:
    own = keys.rotate(workspace, "release", by="Ann").key
    path = workspace.root / "keys" / "keyring.json"
    before, body = path.read_bytes(), json.loads(path.read_bytes())
    body["keys"][-1]["expires"] = "2099-01-01T00:00:00+00:00"
    for changed in (json.dumps(body), "{}", "[", json.dumps({**body, "signature": None})):
        path.write_text(changed)
        with pytest.raises(VerificationError, match="list of keys") as refused:
            read_keyring(workspace)
        assert refused.value.reason == Refusal.KEYRING_CHANGED
    path.unlink()  # then the role's key is one that the workspace does not know
    assert public_key(workspace, signer=own).stem != f"{own}.pub"
    path.write_bytes(before)
    shutil.rmtree(workspace.secrets / "keys")
    with pytest.raises(VerificationError, match="private key is not on this machine"):
        signing_key(workspace)


def test_an_older_list_of_keys_differs_from_the_audit_log(workspace: Workspace) -> None:
    key = keys.rotate(workspace, "release", by="Ann").key
    path = workspace.root / "keys" / "keyring.json"
    before = path.read_bytes()
    keys.revoke(workspace, key, by="Ann", reason="laptop stolen")
    path.write_bytes(before)  # the root key signed it, so only the log knows of a newer one
    assert keys.problems(workspace) == [
        "the list of keys is version 1, the audit log has a change to version 2"
    ]
