"""Key files: who may read them, what may be in them, and that a passphrase is never optional."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.model.keyring import PublicKey
from bundlectl.trust.keys import P256, verifies
from bundlectl.trust.signers import generate_key, open_signer


@pytest.mark.parametrize("scheme", ["ed25519", P256])
@pytest.mark.parametrize("passphrase", [None, b"four plain words here"])
def test_a_generated_key_opens_and_signs(tmp_path: Path, scheme: str, passphrase: bytes | None) -> None:
    path = tmp_path / "keys" / "builder.pem"
    before = os.umask(0)
    try:
        made = generate_key(path, scheme, passphrase)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    asked: list[str] = []

    def ask(name: str) -> bytes:
        asked.append(name)
        return passphrase or b""

    for uri in (f"file:{path}", f"file://{path}"):
        again = open_signer(uri, ask)
        assert (again.scheme, again.public_pem, again.key_id) == (made.scheme, made.public_pem, made.key_id)
        key = PublicKey.model_validate({"scheme": again.scheme, "public": again.public_pem})
        assert verifies(key, again.sign(b"data"), b"data")
        assert not verifies(key, again.sign(b"data"), b"other")
    assert asked == ([str(path)] * 2 if passphrase else [])
    assert b"PRIVATE" in path.read_bytes()
    assert "PRIVATE" not in repr(again)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o777])
def test_a_key_that_others_can_touch_is_refused_with_the_fix(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k.pem"
    generate_key(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match="read by others") as caught:
        open_signer(f"file:{path}")
    assert caught.value.fix == f"chmod 600 {path}"
    assert f"{mode:04o}" in caught.value.why
    path.chmod(0o400)
    open_signer(f"file:{path}")


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    generate_key(path)
    held = path.read_bytes()
    with pytest.raises(UsageError, match="already there"):
        generate_key(path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="already there"):
        generate_key(tmp_path / "link")
    assert path.read_bytes() == held


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendUnavailable, match="cannot be written"):
        generate_key(tmp_path / "k.pem")
    assert list(tmp_path.iterdir()) == []


def test_passphrases(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    generate_key(path, passphrase=b"right")
    with pytest.raises(UsageError, match="no passphrase was given"):
        open_signer(f"file:{path}")
    for wrong in (b"wrong", b""):
        with pytest.raises(UsageError, match="does not open with this passphrase") as caught:
            open_signer(f"file:{path}", lambda _, wrong=wrong: wrong)  # type: ignore[misc]
        assert "right" not in str(caught.value)
    with pytest.raises(UsageError, match="empty"):
        generate_key(tmp_path / "other.pem", passphrase=b"")


def private_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_what_is_no_key_of_ours_is_refused(tmp_path: Path) -> None:
    def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    rows = {
        "empty": b"",
        "text": b"not a key",
        "large": b"x" * (64 * 1024 + 1),
        "rsa": pem(rsa.generate_private_key(65537, 2048)),
        "p384": pem(ec.generate_private_key(ec.SECP384R1())),
    }
    for name, data in rows.items():
        with pytest.raises(UsageError):
            open_signer(f"file:{private_file(tmp_path / name, data)}")
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("folder", "pipe"):
        with pytest.raises(UsageError, match="regular file"):
            open_signer(f"file:{tmp_path / name}")
    with pytest.raises(UsageError, match="There is no key"):
        open_signer(f"file:{tmp_path / 'missing'}")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("key.pem", "is no signer"),
        ("", "is no signer"),
        ("gpg:me", "is no signer"),
        ("file:", "names no file"),
        ("file://host/key.pem", "names a host"),
        ("file:a\x00b", "names no file"),
        ("awskms:", "names no key in KMS"),
        ("awskms:///alias/release", "names no key in KMS"),
        ("sigstore:public", "no Sigstore signer"),
    ],
)
def test_uris(uri: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        open_signer(uri)
    assert caught.value.fix


def test_an_unknown_scheme_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scheme"):
        generate_key(tmp_path / "k.pem", "rsa")
    assert list(tmp_path.iterdir()) == []
