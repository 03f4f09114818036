"""Every kind of tampering with a signed folder is rejected and named."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from workbench.core import digest, signatures
from workbench.core.errors import VerificationError
from workbench.core.signatures import key_fingerprint
from workbench.core.workspace import Workspace
from workbench.records.base import Verdict
from workbench.records.releases import SignedRelease
from workbench.release import signing
from workbench.release.signing import SigningKey, signing_key


@pytest.fixture
def key(workspace: Workspace) -> SigningKey:
    return signing_key(workspace)


@pytest.fixture
def bundle(tmp_path: Path, key: SigningKey) -> Path:
    folder = tmp_path / "bundle"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.onnx").write_bytes(b"a" * 1000)
    (folder / "b.onnx").write_bytes(b"b" * 1000)
    (folder / "deep" / "c.json").write_text("{}")
    signing.sign_folder(folder, key)
    return folder


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def swap(folder: Path) -> None:
    first, second, third = folder / "a.onnx", folder / "b.onnx", folder / "t"
    first.rename(third)
    second.rename(first)
    third.rename(second)


def link(folder: Path) -> None:
    copy = folder.parent / "same-bytes"
    (folder / "a.onnx").rename(copy)
    (folder / "a.onnx").symlink_to(copy)


def special(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def test_unchanged_bundle_verifies_in_any_folder(bundle: Path, key: SigningKey) -> None:
    moved = bundle.parent / "elsewhere" / "renamed"
    shutil.copytree(bundle, moved)
    verified = signing.verify_folder(moved, key.public)
    assert set(verified.files) == {"a.onnx", "b.onnx", "deep/c.json"}
    assert verified.key == key.fingerprint
    assert verified.files["a.onnx"] == digest.of_bytes(b"a" * 1000)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda b: flip(b / "a.onnx", 500), "changed: a.onnx"),
        (lambda b: (b / "a.onnx").write_bytes(b"a" * 999), "changed: a.onnx"),
        (lambda b: (b / "a.onnx").write_bytes(b""), "changed: a.onnx"),
        (swap, "changed: a.onnx, b.onnx"),
        (lambda b: (b / "a.onnx").unlink(), "missing: a.onnx"),
        (lambda b: (b / "a.onnx").rename(b / "A.onnx"), "missing: a.onnx; extra: A.onnx"),
        (lambda b: (b / "extra.bin").touch(), "extra: extra.bin"),
        (lambda b: (b / ".gitignore").write_text("*"), "extra: .gitignore"),
        (lambda b: (b / "deep" / "signature").touch(), "extra: deep/signature"),
        (lambda b: (b / ".git").mkdir(), "empty folder"),
        (link, "not a regular file"),
        (lambda b: (b / "loop").symlink_to(b), "not a regular file"),
        (special, "not a regular file"),
        (lambda b: (b / "signature").unlink(), "not signed"),
        (lambda b: (b / "signature").write_bytes(b""), "damaged or was changed"),
        (lambda b: (b / "signature").write_text("[" * 100_000), "damaged or was changed"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_tampering_is_refused_and_named(
    bundle: Path, key: SigningKey, tamper: Callable[[Path], object], message: str
) -> None:
    tamper(bundle)
    with pytest.raises(VerificationError, match=message):
        signing.verify_folder(bundle, key.public)


def test_a_socket_in_the_bundle_is_refused(
    bundle: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)  # socket paths have a short limit
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("door")
        with pytest.raises(VerificationError, match="not a regular file"):
            signing.verify_folder(bundle, key.public)


def test_no_byte_of_the_signature_file_may_change(bundle: Path, key: SigningKey) -> None:
    path = bundle / signing.SIGNATURE_FILE
    content = path.read_bytes()
    refused = 0
    positions = range(0, len(content), 13)
    for position in positions:
        flip(path, position)
        with pytest.raises(VerificationError):
            signing.verify_folder(bundle, key.public)
        refused += 1
        path.write_bytes(content)
    assert refused == len(positions) > 100
    for other in (content + b"\n", content[:-1], content.replace(b'"keyid":""', b'"keyid":"x"')):
        path.write_bytes(other)
        with pytest.raises(VerificationError, match="damaged or was changed"):
            signing.verify_folder(bundle, key.public)


def test_another_key_is_rejected(bundle: Path, tmp_path: Path) -> None:
    stranger = signing_key(Workspace(tmp_path / "other" / ".workbench"))
    with pytest.raises(VerificationError, match="signed with the key"):
        signing.verify_folder(bundle, stranger.public)


def test_a_forged_key_hint_does_not_help(bundle: Path, key: SigningKey, tmp_path: Path) -> None:
    stranger = signing_key(Workspace(tmp_path / "other" / ".workbench"))
    (bundle / "a.onnx").write_bytes(b"evil")
    signing.sign_folder(bundle, stranger)
    path = bundle / signing.SIGNATURE_FILE
    text = path.read_text().replace(stranger.fingerprint, key.fingerprint)
    path.write_text(text)
    with pytest.raises(VerificationError, match="does not match key"):
        signing.verify_folder(bundle, key.public)


def test_a_statement_changed_to_match_the_files_is_refused(bundle: Path, key: SigningKey) -> None:
    (bundle / "a.onnx").write_bytes(b"evil")
    path = bundle / signing.SIGNATURE_FILE
    body = json.loads(path.read_bytes())
    payload = base64.b64decode(body["dsseEnvelope"]["payload"]).decode()
    payload = payload.replace(digest.of_bytes(b"a" * 1000), digest.of_bytes(b"evil"))
    body["dsseEnvelope"]["payload"] = base64.b64encode(payload.encode()).decode()
    path.write_bytes(digest.canonical_json(body))
    with pytest.raises(VerificationError, match="does not match key"):
        signing.verify_folder(bundle, key.public)


def test_own_signature_that_leaves_files_out_is_rejected(bundle: Path, key: SigningKey) -> None:
    from model_signing import hashing
    from model_signing import signing as openssf

    loose = hashing.Config().set_ignored_paths(paths=["signature", "b.onnx"])
    path = bundle / signing.SIGNATURE_FILE
    config = openssf.Config().use_elliptic_key_signer(private_key=key.private)
    config.set_hashing_config(loose).sign(bundle, path)
    path.write_bytes(digest.canonical_json(json.loads(path.read_bytes())))
    with pytest.raises(VerificationError, match="left out"):
        signing.verify_folder(bundle, key.public)


def test_an_empty_folder_is_neither_signed_nor_verified(tmp_path: Path, key: SigningKey) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VerificationError, match="empty"):
        signing.sign_folder(tmp_path / "empty", key)
    with pytest.raises(VerificationError, match="empty"):
        signing.verify_folder(tmp_path / "empty", key.public)


def test_key_is_private_and_generated_once(workspace: Workspace, key: SigningKey) -> None:
    assert stat.S_IMODE(key.private.stat().st_mode) == 0o600
    assert stat.S_IMODE(workspace.secrets.stat().st_mode) == 0o700
    assert signing_key(workspace) == key
    assert key_fingerprint(key.public) == key.fingerprint
    assert b"PRIVATE" not in key.public.read_bytes()


def test_concurrent_first_uses_share_one_key(workspace: Workspace) -> None:
    code = (
        "from workbench.core.workspace import find_workspace\n"
        "from workbench.release.signing import signing_key\n"
        "print(signing_key(find_workspace()).fingerprint)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)
    ]
    printed = {process.communicate()[0] for process in started}
    assert len(printed) == 1
    assert printed == {f"{signing_key(workspace).fingerprint}\n".encode()}


def test_a_key_that_others_can_read_is_not_used(workspace: Workspace, key: SigningKey) -> None:
    key.private.chmod(0o644)
    with pytest.raises(VerificationError, match="read by other users"):
        signing_key(workspace)


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\xfe"])
def test_invalid_public_key_is_rejected(bundle: Path, tmp_path: Path, content: bytes) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(content)
    with pytest.raises(VerificationError, match="public key cannot be read"):
        signing.verify_folder(bundle, wrong)


def test_private_key_is_rejected_as_public_key(bundle: Path, key: SigningKey) -> None:
    with pytest.raises(VerificationError, match="public key cannot be read"):
        signing.verify_folder(bundle, key.private)


def test_without_any_key_nothing_verifies(workspace: Workspace) -> None:
    with pytest.raises(VerificationError, match="no signing key"):
        signing.public_key(workspace)
    assert not workspace.secrets.exists()


def _other_form(path: Path) -> None:
    """Replace s by n - s in a signature file, which verifies just as well."""
    body = json.loads(path.read_bytes())
    entry = body["dsseEnvelope"]["signatures"][0]
    r, s = utils.decode_dss_signature(base64.b64decode(entry["sig"]))
    other = utils.encode_dss_signature(r, signatures._ORDER - s)
    entry["sig"] = base64.b64encode(other).decode()
    path.write_bytes(digest.canonical_json(body))


def test_a_signature_has_one_form(tmp_path: Path, key: SigningKey) -> None:
    signed = SignedRelease(
        model="m",
        version=1,
        bundle=f"bundle/{'0' * 64}",
        gates=f"gates/{'0' * 64}",
        verdict=Verdict.PASS,
        promoted=True,
    )
    for number in range(8):  # without the rule, half of them would have the larger s
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.onnx").write_bytes(b"a")
        assert signing.sign_folder(folder, key, signed).release == signed
        _other_form(folder / "signature")
        with pytest.raises(VerificationError, match="one form"):
            signing.verify_folder(folder, key.public)


def test_signatures_of_version_1_are_verified_and_known(bundle: Path, key: SigningKey) -> None:
    from model_signing import hashing
    from model_signing import signing as theirs

    (bundle / "signature").unlink()
    hashes = hashing.Config().set_ignored_paths(paths=["signature"], ignore_git_paths=False)
    config = theirs.Config().use_elliptic_key_signer(private_key=key.private)
    config.set_hashing_config(hashes).sign(bundle, bundle / "signature")
    content = digest.canonical_json(json.loads((bundle / "signature").read_bytes()))
    (bundle / "signature").write_bytes(content)
    verified = signing.verify_folder(bundle, key.public)
    assert (verified.version, verified.release) == (1, None)
    flip(bundle / "a.onnx", 3)
    with pytest.raises(VerificationError, match=r"changed: a\.onnx"):
        signing.verify_folder(bundle, key.public)


def test_model_signing_verifies_what_is_signed_here(bundle: Path, key: SigningKey) -> None:
    from model_signing import hashing, verifying

    hashes = hashing.Config().set_ignored_paths(paths=["signature"], ignore_git_paths=False)
    check = verifying.Config().use_elliptic_key_verifier(public_key=key.public)
    check.set_hashing_config(hashes).verify(bundle, bundle / "signature")
    flip(bundle / "a.onnx", 3)
    with pytest.raises(ValueError, match="mismatch"):
        check.verify(bundle, bundle / "signature")


def test_what_was_verified_is_what_was_read(bundle: Path, key: SigningKey) -> None:
    verified = signing.verify_folder(bundle, key.public)
    (bundle / "a.onnx").write_bytes(b"swapped")
    assert digest.of_bytes(verified.contents["a.onnx"]) == verified.files["a.onnx"]
    assert verified.contents["a.onnx"] == b"a" * 1000
