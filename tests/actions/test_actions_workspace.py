"""What the workspace keeps beside the registry: the receipt key, receipts, a registry that was half made."""

from __future__ import annotations

import secrets
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bundlectl.actions.context import Context
from bundlectl.actions.keyring import keyring_init, keyring_show, policy_show
from bundlectl.actions.receipts import find_receipt, list_receipts
from bundlectl.actions.routing import RECEIPT_KEY_FILE, input_key, receipts_folder
from bundlectl.model.contract import ReleaseRef
from bundlectl.model.errors import NotFound, UsageError
from bundlectl.receipts.writer import ReceiptLog
from tests.insight.receipts import receipt, sha


def context(folder: Path) -> Context:
    return Context(
        registry_url=str(folder / "registry"),
        clock=lambda: datetime.now(UTC),
        new_id=lambda: secrets.token_hex(12),
    )


def test_every_process_that_starts_at_once_has_the_same_whole_key(tmp_path: Path) -> None:
    for turn in range(20):
        ctx = context(tmp_path / str(turn))
        with ThreadPoolExecutor(8) as pool:
            keys = set(pool.map(lambda _, c=ctx: input_key(c), range(8)))
        assert len(keys) == 1
        assert len(keys.pop()) == 32
        assert [file.name for file in ctx.workspace.iterdir()] == [RECEIPT_KEY_FILE]
        assert stat.S_IMODE((ctx.workspace / RECEIPT_KEY_FILE).stat().st_mode) == 0o600


def test_a_key_that_is_no_key_is_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    for data in (b"", b"short"):
        (tmp_path / RECEIPT_KEY_FILE).write_bytes(data)
        with pytest.raises(UsageError, match="bytes"):
            input_key(ctx)
    (tmp_path / RECEIPT_KEY_FILE).unlink()
    (tmp_path / RECEIPT_KEY_FILE).mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        input_key(ctx)


def test_receipts_of_all_apps(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    for app, id_ in (("one", "aaaaaa1111"), ("two", "aaaaaa2222"), ("two", "bbbbbb3333")):
        ref = ReleaseRef(app=app, environment="prod", epoch=1, serial=1, bundle=sha("b"), bindings=sha("c"))
        with ReceiptLog(receipts_folder(ctx, app)) as log:
            log.write(receipt(id=id_, release=ref))
    assert find_receipt(ctx, "bbbbbb").id == "bbbbbb3333"
    assert find_receipt(ctx, "aaaaaa2222").release.app == "two"
    with pytest.raises(UsageError, match="2 apps"):
        find_receipt(ctx, "aaaaaa")
    with pytest.raises(NotFound):
        find_receipt(ctx, "cccccc")
    assert len(list_receipts(ctx).receipts) == 3
    assert len(list_receipts(ctx, count=2).receipts) == 2


@pytest.mark.parametrize("scheme", ["ed25519", "ecdsa-p256-sha256"])
def test_a_registry_that_was_half_made_is_finished(tmp_path: Path, scheme: str) -> None:
    made = keyring_init(context(tmp_path / "whole"), "hello", scheme=scheme)
    assert keyring_show(context(tmp_path / "whole")).digest == made.registry_id
    # Killed after each thing that it writes.
    half = tmp_path / "keys-only"
    (half / "keys").mkdir(parents=True)
    for role in ("root", "owner"):
        (half / "keys" / f"{role}.pem").write_bytes((tmp_path / "whole" / "keys" / f"{role}.pem").read_bytes())
        (half / "keys" / f"{role}.pem").chmod(0o600)
    keyring_init(context(half), "hello", scheme=scheme)
    assert policy_show(context(half), "hello").app == "hello"
    for lost in (["pin"], ["pin", "registry/keyring/1.json"]):
        for name in lost:
            (half / name).unlink()
        again = keyring_init(context(half), "hello", scheme=scheme)
        assert keyring_show(context(half)).digest == again.registry_id
        assert policy_show(context(half), "hello").app == "hello"
    # Another's registry is not taken over: its keyring is not of these keys.
    (half / "pin").unlink()
    whole = (tmp_path / "whole" / "registry" / "keyring" / "1.json").read_bytes()
    (half / "registry" / "keyring" / "1.json").unlink()
    (half / "registry" / "keyring" / "1.json").write_bytes(whole)
    with pytest.raises(UsageError, match="already has a keyring"):
        keyring_init(context(half), "hello", scheme=scheme)
    assert not (half / "pin").exists()


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    keyring_init(ctx, "hello")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(UsageError, match="already has a keyring"):
        keyring_init(context(tmp_path), "hello")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
