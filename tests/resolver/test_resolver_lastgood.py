"""The last good on disk: whole or not at all, never back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.canonical import digest
from bundlectl.model.errors import BackendUnavailable, VerificationFailed
from bundlectl.resolver.lastgood import LastGood, Saved
from bundlectl.resolver.trusted import TrustedState
from tests.support.world import START, flip


def saved(serial: int = 1, *, epoch: int = 1, pack: bytes = b"pack") -> Saved:
    state = TrustedState(
        registry=digest(b"registry"),
        keyring=2,
        keyring_digest=digest(b"keyring"),
        policy=1,
        epoch=epoch,
        serial=serial,
        base=serial,
        head=digest(b"head"),
        time=START,
    )
    return Saved(state, 2, [b"one", b"two\n"], b"\nhead", pack)


def test_state_comes_back_from_json() -> None:
    state = saved(7).state
    assert TrustedState.from_bytes(state.to_bytes()) == state
    for wrong in (b"{}", b"", state.to_bytes().replace(b'"serial":7', b'"serial":0')):
        with pytest.raises(VerificationFailed):
            TrustedState.from_bytes(wrong)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    file = LastGood(tmp_path / "new" / "folder", "support", "prod")
    assert file.load() is None
    file.save(saved(1))
    file.save(saved(2, pack=b""))
    assert file.load() == saved(2, pack=b"")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["support.prod.lastgood"]


def test_the_state_never_goes_back(tmp_path: Path) -> None:
    file = LastGood(tmp_path, "support", "prod")
    file.save(saved(5, epoch=2))
    file.save(saved(9, epoch=1))
    found = file.load()
    assert found is not None
    assert (found.state.epoch, found.state.serial) == (2, 5)
    file.save(saved(1, epoch=3))
    found = file.load()
    assert found is not None
    assert found.state.epoch == 3


@settings(max_examples=100, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_damage_is_found(tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, cut: bool) -> None:
    folder = tmp_path_factory.mktemp("state")
    file = LastGood(folder, "support", "prod")
    file.save(saved())
    [path] = folder.iterdir()
    data = path.read_bytes()
    at = int(where * len(data))
    path.write_bytes(data[:at] if cut else flip(data, at, bit))
    with pytest.raises(VerificationFailed):
        file.load()
    file.save(saved(2))
    assert file.load() == saved(2)


def test_a_folder_that_cannot_be_written_leaves_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LastGood(tmp_path, "support", "prod")
    file.save(saved(1))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BackendUnavailable, match="No space left"):
        file.save(saved(2))
    monkeypatch.undo()
    assert file.load() == saved(1)
    assert len(list(tmp_path.iterdir())) == 1
