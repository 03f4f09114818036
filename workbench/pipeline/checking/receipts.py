"""Receipts: signed records of passed checks, void as soon as what was checked changes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from workbench.core import digest
from workbench.core.errors import VerificationError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline import environment
from workbench.pipeline.checking import notebook as marimo_apps
from workbench.pipeline.contract import StepContract
from workbench.records.base import Ref
from workbench.records.model_types import CheckReceipt, Environment, NotebookSource
from workbench.records.store import Store
from workbench.release import signing

CheckOutcome = Literal["passed", "partial", "not-applicable"]
WatchCoverage = Literal["complete", "partial", "none"]
Json = dict[str, Any]

SIGNATURE = "signature"
LOCK_FILE = "requirements.lock"

_ALGORITHM = "ecdsa-p256-sha256"


def issue_receipt(
    place: Workspace,
    notebook: Path,
    *,
    checks: Mapping[str, CheckOutcome],
    watch: WatchCoverage,
    warnings: tuple[Json, ...] = (),
    outputs: Mapping[str, Ref] | None = None,
) -> Ref:
    """Store and sign the receipt of a notebook that passed, as it is on disk now."""
    store = Store(place)
    readable = marimo_apps.as_ipynb(place, notebook)
    contract = contracts.read_contract(readable)
    source = NotebookSource(name=contract.name, code=contract.code)
    ref = store.put(
        CheckReceipt(
            notebook=store.put(
                source, {"notebook.ipynb": contracts.notebook_without_outputs(readable)}
            ),
            contract=_contract_digest(contract),
            modules=environment.modules_digest(contract.import_sources),
            environment=store.put(environment.current_environment()),
            checks=dict(checks),
            watch=watch,
            warnings=warnings,
            outputs=dict(outputs or {}),
            lock=_lock_digest(notebook),
        )
    )
    store.write_side(ref, SIGNATURE, _sign(place, ref))
    return ref


def state_digest(place: Workspace, notebook: Path) -> str:
    """One digest of all that a receipt hangs on, to tell whether it changed during a check."""
    readable = marimo_apps.as_ipynb(place, notebook)
    parts = {
        "notebook": digest.of_bytes(contracts.notebook_without_outputs(readable)),
        "modules": environment.modules_digest(contracts.read_contract(readable).import_sources),
        "environment": digest.of_json(environment.current_environment().model_dump(mode="json")),
        "lock": _lock_digest(notebook),
    }
    return digest.of_json(parts)


def verify_receipt(place: Workspace, ref: Ref) -> CheckReceipt:
    """The receipt, if this workbench's key signed it.

    Raises:
        VerificationError: It is not signed, or not by this key.
        RecordError: There is no such receipt, or it was changed.
    """
    store = Store(place)
    receipt = store.get(ref, CheckReceipt)
    signature = store.side(ref, SIGNATURE)
    if not isinstance(signature, dict):
        raise VerificationError(
            "the receipt is not signed", where=ref, hint=_check_again_hint(None)
        )
    key = signing.signing_key(place)
    if signature.get("key") != key.fingerprint or signature.get("algorithm") != _ALGORITHM:
        raise VerificationError("the receipt was signed with another key", where=ref)
    if not _is_valid_signature(key.public, ref, str(signature.get("signature", ""))):
        raise VerificationError("the receipt's signature does not hold", where=ref)
    return receipt


def fresh_receipt(place: Workspace, notebook: Path) -> tuple[Ref, CheckReceipt]:
    """The newest receipt that still speaks for ``notebook``.

    Raises:
        VerificationError: There is none; the message says what changed since the last one.
        ContractError: The notebook's contract cannot be read.
    """
    store = Store(place)
    readable = marimo_apps.as_ipynb(place, notebook)
    contract = contracts.read_contract(readable)
    why: list[str] = []
    for ref in reversed(list(store.refs(CheckReceipt.KIND))):
        receipt = store.get(ref, CheckReceipt)
        if store.get(receipt.notebook, NotebookSource).name != contract.name:
            continue
        reasons = _changes(store, receipt, contract, readable, _lock_digest(notebook))
        if not reasons:
            return ref, verify_receipt(place, ref)
        why = why or reasons
    if not why:
        raise VerificationError(
            "the notebook has no receipt", where=notebook, hint=_check_again_hint(notebook)
        )
    raise VerificationError(
        f"the receipt is void: {'; '.join(why)}", where=notebook, hint=_check_again_hint(notebook)
    )


def _changes(
    store: Store, receipt: CheckReceipt, contract: StepContract, readable: Path, lock: str | None
) -> list[str]:
    """What differs, in words, between what was checked and what there is now."""
    found = []
    then = json.loads(store.payload(receipt.notebook, "notebook.ipynb").read_bytes())
    now = json.loads(contracts.notebook_without_outputs(readable))
    cells = _changed_cells(_code_cells(then), _code_cells(now))
    if cells:
        found.append(f"{cells} changed")
    if receipt.contract != _contract_digest(contract):
        found.append("the contract changed")
    if receipt.modules != environment.modules_digest(contract.import_sources):
        found.append("a workbench module that it imports changed")
    if receipt.lock != lock:
        found.append(f"{LOCK_FILE} changed")
    packages = _changed_packages(
        store.get(receipt.environment, Environment), environment.current_environment()
    )
    if packages:
        found.append(f"installed packages changed: {packages}")
    return found


def _code_cells(content: Json) -> list[tuple[str, bool]]:
    """Source of each code cell, and whether it is the parameters cell."""
    return [
        ("".join(cell["source"]), "parameters" in cell["metadata"].get("tags", []))
        for cell in content["cells"]
        if cell["cell_type"] == "code"
    ]


def _changed_cells(then: list[tuple[str, bool]], now: list[tuple[str, bool]]) -> str:
    if len(then) != len(now):
        return f"the number of code cells ({len(then)}, now {len(now)})"
    changed = [str(n) for n, (a, b) in enumerate(zip(then, now, strict=True), 1) if a != b]
    return f"cell {', '.join(changed)}" if changed else ""


def _changed_packages(then: Environment, now: Environment) -> str:
    """Which distributions differ; another machine of the same lock voids nothing."""
    names = {one.partition("==")[0] for one in {*then.distributions} ^ {*now.distributions}}
    if then.python != now.python:
        names.add(f"python {then.python} to {now.python}")
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more


def _contract_digest(contract: StepContract) -> str:
    return digest.of_json(contract.declaration.model_dump(mode="json"))


def _lock_digest(notebook: Path) -> str | None:
    """Digest of the lock of the project that the notebook lies in."""
    for folder in notebook.resolve().parents:
        if (folder / LOCK_FILE).is_file():
            return digest.of_file(folder / LOCK_FILE)
    return None


def _sign(place: Workspace, ref: Ref) -> Json:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = signing.signing_key(place)
    private = load_pem_private_key(key.private.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)  # noqa: S101 - signing_key has checked
    made = private.sign(_signed_bytes(ref), ec.ECDSA(hashes.SHA256()))
    text = base64.b64encode(made).decode()
    return {"algorithm": _ALGORITHM, "key": key.fingerprint, "signature": text}


def _is_valid_signature(public: Path, ref: Ref, signature: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(public.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - signing_key has checked
    try:
        key.verify(base64.b64decode(signature), _signed_bytes(ref), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed_bytes(ref: Ref) -> bytes:
    """What is signed: the record's digest covers all of it, the prefix keeps purposes apart."""
    return f"workbench check receipt\n{ref}\n".encode()


def _check_again_hint(notebook: Path | None) -> str:
    return f"Run `workbench check {notebook or 'NOTEBOOK'}`"
