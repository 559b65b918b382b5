"""S3, Parameter Store and KMS down, slow, throttled or denied: each named as such with exit 6, and serving goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions import succession
from bundlectl.actions.attest import approve
from bundlectl.actions.context import Context
from bundlectl.actions.locating import registry_locate
from bundlectl.actions.opening import open_trust
from bundlectl.actions.promote import promote
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import status
from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.keyring import Gate
from bundlectl.registry.head import parse_head
from bundlectl.registry.layout import head_key
from bundlectl.registry.registry import Registry
from bundlectl.storage import s3, ssm
from bundlectl.storage.aws import DEADLINE_SECONDS, POLL_SECONDS, READ_SECONDS, Patience, open_client
from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.s3 import S3Store
from bundlectl.storage.store import StoreUnavailable, open_store
from bundlectl.trust import awskms
from tests.acceptance.attacker import Asking, complaints, until
from tests.acceptance.serving import Client, Serving
from tests.support.aws import Fault, Proxy, stand_in
from tests.support.ceremony import Ceremony
from tests.support.workspace import Workspace
from tests.support.world import tiny_bundle

OUTAGES = {
    "denied": (Fault(403, code="AccessDenied"), "s3:GetObject"),
    "throttled": (Fault(503, code="SlowDown"), "throttles it"),
    "down": (Fault("cut_before"), "s3"),
    "slow": (Fault("hold", seconds=1.0), "s3"),
}
READ = 0.4


class Place:
    """A registry in S3 behind a proxy that can break every call."""

    def __init__(self, folder: Path, proxy: Proxy, bucket: str) -> None:
        clock = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
        self.ceremony = Ceremony(folder, clock=clock)
        self.bundles = [self.ceremony.world.bundle(text) for text in ("v1", "v2")]
        for bundle in self.bundles:
            self.ceremony.world.promote("prod", bundle)
        self.proxy, self.bucket = proxy, bucket
        self.url = f"s3://{bucket}/registry"
        local, store = DirectoryStore(self.ceremony.registry), open_store(self.url)
        for key in local.list(""):
            store.create(key, local.get(key).data)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    aws = stand_in("moto")
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    with Proxy(aws) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield Place(tmp_path, proxy, aws.bucket("outages"))


@pytest.mark.parametrize("name", OUTAGES)
def test_verbs_say_what_is_wrong(place: Place, name: str) -> None:
    fault, word = OUTAGES[name]
    store = S3Store(
        place.bucket, "registry", client=open_client("s3", connect=READ, read=READ), patience=Patience(1.0, READ)
    )
    place.proxy.script = lambda method, path, number: fault
    context = place.ceremony.context()
    context.__dict__["registry"] = Registry(store)
    reference = f"support@{place.bundles[0].digest}"
    for verb in (
        lambda: promote(context, reference, environment="prod", reason="x"),
        lambda: rollback(context, "support:prod", reason="x"),
    ):
        with pytest.raises(BackendUnavailable) as caught:
            verb()
        assert caught.value.exit_code == 6
        assert word in f"{caught.value.what} {caught.value.why}"
    place.proxy.script = lambda method, path, number: Fault()
    done = promote(context, reference, environment="prod", reason="it is back").released
    assert done is not None
    assert done.serial == 3


@pytest.mark.parametrize("name", OUTAGES)
def test_a_poll_gives_up_sooner_than_a_read(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, word = OUTAGES[name]
    monkeypatch.setattr(s3, "POLL_SECONDS", 1.6)
    monkeypatch.setattr(s3, "POLL_READ_SECONDS", READ)
    store = S3Store(place.bucket, "registry")
    key = head_key("support", "prod")
    tag = store.get(key).tag
    place.proxy.script = lambda method, path, number: fault
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        store.get_if_changed(key, tag)
    assert word in f"{caught.value.what} {caught.value.why}"
    assert time.monotonic() - began < DEADLINE_SECONDS - READ_SECONDS, "when a read gives up"


@pytest.mark.parametrize("name", ["throttled", "down", "slow"])
def test_one_call_that_fails_is_no_outage(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "POLL_READ_SECONDS", READ)
    store = S3Store(place.bucket, "registry")
    key = head_key("support", "prod")
    tag = store.get(key).tag
    before = len(place.proxy.requests)
    place.proxy.script = lambda method, path, number: OUTAGES[name][0] if number == before else Fault()
    assert store.get_if_changed(key, tag) is None
    assert len(place.proxy.requests) >= before + 2


def test_serving_goes_on(place: Place) -> None:
    argv = ("support:prod", "--port", "0", "--poll", "0.1", "--registry", place.url)
    server = Serving(Workspace(place.ceremony.folder), *argv)
    try:
        client = Client(server.port())
        with Asking(client) as asking:
            place.proxy.script = lambda method, path, number: OUTAGES["denied"][0]
            assert until(lambda: OUTAGES["denied"][1] in complaints(client), 20), complaints(client)
            place.proxy.script = lambda method, path, number: Fault()
            assert until(lambda: not complaints(client), 40), complaints(client)
            place.proxy.script = lambda method, path, number: OUTAGES["down"][0]
            told = f"within {POLL_SECONDS:g} s"
            assert until(lambda: told in complaints(client), 40), "a poll does not wait as long as a verb"
            for name in ("throttled", "slow"):  # told at the deadline of a poll too; see below
                fault = OUTAGES[name][0]
                place.proxy.script = lambda method, path, number, fault=fault: fault  # type: ignore[misc]
                time.sleep(1.5)
            place.proxy.script = lambda method, path, number: Fault()
            assert until(lambda: not complaints(client), 40), complaints(client)
        assert server.stop() == 0
        assert (asking.failed, set(asking.bundles)) == ([], {tiny_bundle("v2").digest})
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


# ---------------------------------------------------------------- Parameter Store and KMS

ASKED = {
    "denied": Fault(400, code="AccessDeniedException"),
    "throttled": Fault(400, code="ThrottlingException"),
    "down": Fault("cut_before"),
    "slow": Fault("hold", seconds=2.0),
}
SAID = {"denied": "AccessDenied", "throttled": "throttle", "down": "Connection", "slow": "ReadTimeout"}
NAME = "ssm:/bundlectl/outages"


def _waits(name: str) -> float:
    """Give for how many seconds a reply is waited for: less than the slow one takes; else it may be late."""
    return 1.0 if name == "slow" else 5.0


def _fails(verb: Callable[[], object], service: str, name: str) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        verb()
    said = f"{caught.value.what} {caught.value.why}"
    assert caught.value.exit_code == 6
    assert service in said and SAID[name] in said, said
    assert caught.value.fix


@pytest.mark.parametrize("name", ASKED)
def test_parameter_store_is_named(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.ceremony.folder)
    pinned = {"BUNDLECTL_PIN": place.ceremony.world.pin}
    registry_locate(place.ceremony.context(registry_url=place.url, environ=pinned), NAME)
    reads = _waits(name)
    monkeypatch.setattr(ssm, "open_client", partial(open_client, connect=reads, read=reads))
    monkeypatch.setattr(ssm, "DEADLINE_SECONDS", reads + 0.5)
    monkeypatch.setattr(ssm, "READ_SECONDS", reads)

    def context(**how: Any) -> Context:
        return place.ceremony.context(registry_url=NAME, signer="promoter", **how)

    def released() -> bool:
        head = Registry(open_store(place.url)).releases.read_head("support", "prod")
        return head is not None and parse_head(head.data, "head")[1].serial == 3

    reference = f"support@{place.bundles[0].digest}"
    verbs: list[Callable[[], object]] = [
        lambda: promote(context(), reference, environment="prod", reason="x"),
        lambda: rollback(context(), "support:prod", reason="x"),
        lambda: status(context(), "support"),
    ]
    with Proxy(stand_in("moto")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", proxy.url)
        proxy.script = lambda method, path, number: ASKED[name]
        for verb in verbs:
            _fails(verb, "Parameter Store", name)
        if name == "slow":
            return
        # It answers, and is away when the witness is to be written: the release is live, and says what is not.
        proxy.script = lambda method, path, number: ASKED[name] if released() else Fault()
        done = promote(context(), reference, environment="prod", reason="x").released
        assert done is not None
        assert done.serial == 3
        assert any("its witness was not written" in told and "Parameter Store" in told for told in done.warnings)


@pytest.mark.parametrize("name", ASKED)
def test_kms_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aws = stand_in("ministack")
    for key, value in aws.environ.items():
        monkeypatch.setenv(key, value)
    arn = aws.client("kms").create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    ceremony = Ceremony(tmp_path, gates={"dev": Gate()})
    uri = f"awskms:{arn}"
    succession.add(ceremony.context(), "ci", owner="ci", role="promoter", key=uri, signers=[ceremony.key("root")])
    bundles = [f"support@{ceremony.world.bundle(text).digest}" for text in ("v1", "v2")]
    for reference in bundles:
        promote(ceremony.context(signer_uri=uri), reference, environment="dev", reason="x")
    verbs: list[Callable[[], object]] = [
        lambda: promote(ceremony.context(signer_uri=uri), bundles[0], environment="dev", reason="x"),
        lambda: rollback(ceremony.context(signer_uri=uri), "support:dev", reason="x"),
        lambda: approve(ceremony.context(signer_uri=uri), bundles[0], environment="dev", reason="x"),
    ]
    with Proxy(aws) as proxy, monkeypatch.context() as hasty:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", proxy.url)
        hasty.setattr(awskms, "DEADLINE_SECONDS", 0.5)
        hasty.setattr(awskms, "READ_SECONDS", _waits(name))
        proxy.script = lambda method, path, number: ASKED[name]
        for verb in verbs:
            _fails(verb, "KMS", name)
        # The key was read, and then it signs nothing.
        proxy.requests.clear()
        proxy.script = lambda method, path, number: ASKED[name] if number else Fault()
        _fails(verbs[0], "KMS", name)
        # Serving needs no KMS.
        assert ceremony.world.verify("dev", keyring=open_trust(ceremony.context())).release.serial == 2
        hasty.undo()
        proxy.script = lambda method, path, number: Fault()
        assert rollback(ceremony.context(signer_uri=uri), "support:dev", reason="it is back").released.serial == 3
