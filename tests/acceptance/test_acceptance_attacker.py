"""Every row of the attack list against a running ``bundlectl serve`` while a client goes on asking, on folder and S3.

Each is refused and reported, no request fails, and no answer comes from anything but the verified release.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.store import Store, open_store
from tests.acceptance.attacker import Asking, Attacker, complaints, until
from tests.acceptance.serving import Client, Serving
from tests.support.attacks import ATTACKS, ENV
from tests.support.aws import stand_in
from tests.support.ceremony import Ceremony
from tests.support.workspace import Workspace
from tests.support.world import tiny_bundle

# The keyring is asked for when a head changes, every ten minutes, and at the start: these rows show at a start.
AT_A_START = [
    "rollback_of_the_keyring_by_another_second_version",
    "threshold_with_one_key_under_two_names",
    "key_rotation_by_someone_who_is_not_root",
    "endless_data_in_the_next_keyring",
]
BY_TIME = "indefinite_freeze"
BY_ROOT = "key_compromise_a_head_that_claims_an_older_keyring"
"""Here root speaks as well, and what root said stays known: the last row."""
SOON = 8.0


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def prepared(folder: Path, clock: datetime) -> Ceremony:
    """Make a registry whose prod serves release 2."""
    ceremony = Ceremony(folder, clock=clock)
    for text in ("v1", "v2"):
        ceremony.world.promote(ENV, ceremony.world.bundle(text))
    return ceremony


@contextmanager
def running(folder: Path, *argv: str) -> Iterator[tuple[Client, Asking]]:
    """Serve, and ask all the while; then no request may have failed, nor anything but release 2 have answered."""
    server = Serving(Workspace(folder), *argv)
    try:
        client = Client(server.port())
        with Asking(client) as asking:
            yield client, asking
        assert server.stop() == 0
        assert (asking.failed, set(asking.bundles)) == ([], {tiny_bundle("v2").digest})
        assert "Traceback" not in server.said
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_every_attack_on_a_running_server(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceremony = prepared(tmp_path, now() - timedelta(hours=1))
    store: Store = DirectoryStore(ceremony.registry)
    url = str(ceremony.registry)
    if kind == "s3":
        aws = stand_in("moto")
        for name, value in aws.environ.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{aws.bucket('attacker')}/registry"
        local, store = store, open_store(url)
        for key in local.list(""):
            store.create(key, local.get(key).data)
    attacker = Attacker(ceremony.world, store)
    argv = (f"support:{ENV}", "--port", "0", "--poll", "0.1", "--registry", url)
    good = tiny_bundle("v2").digest
    missed: list[str] = []

    def shown(name: str, client: Client) -> None:
        complaint = ATTACKS[name][0]
        if not until(lambda: complaint in complaints(client), 10):
            missed.append(f"{name}: {complaint!r} is not in {complaints(client)!r}")

    with running(tmp_path, *argv) as (client, asking):
        for name in ATTACKS:
            if name not in (*AT_A_START, BY_TIME, BY_ROOT):
                attacker.attack(name)
                shown(name, client)
                attacker.undo()
                assert until(lambda: not complaints(client), 10), f"after {name}: {complaints(client)}"
    assert asking.bundles[good] > len(ATTACKS)
    for name in AT_A_START if kind == "folder" else AT_A_START[:1]:
        attacker.attack(name)
        with running(tmp_path, *argv) as (client, _):
            shown(name, client)
        attacker.undo()
    with running(tmp_path, *argv) as (client, _):
        attacker.attack(BY_ROOT)
        shown(BY_ROOT, client)
    assert missed == []


def test_a_head_frozen_past_its_expiry(tmp_path: Path) -> None:
    """Two weeks are the longest that whoever holds the registry still goes unnoticed; here they end in a moment."""
    prepared(tmp_path, now() - timedelta(days=14, minutes=1) + timedelta(seconds=SOON))
    with running(tmp_path, f"support:{ENV}", "--port", "0", "--poll", "0.1") as (client, _):
        assert until(lambda: ATTACKS[BY_TIME][0] in complaints(client), SOON + 20), complaints(client)
