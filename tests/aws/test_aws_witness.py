"""Parameter Store as locator and witness: what is found by it, what it refuses, and how that is put right."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.bind import bind
from bundlectl.actions.context import Context, Silent
from bundlectl.actions.copying import contexts
from bundlectl.actions.locating import locate_to_serve, registry_locate
from bundlectl.actions.opening import open_trust, read_pin
from bundlectl.actions.promote import promote
from bundlectl.actions.renew import renew
from bundlectl.actions.repair import repair
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import history, status
from bundlectl.actions.verify import verify
from bundlectl.model.canonical import digest
from bundlectl.model.errors import (
    BackendUnavailable,
    BundlectlError,
    Conflict,
    GateNotPassed,
    NotFound,
    UsageError,
    VerificationFailed,
)
from bundlectl.registry.layout import head_key, history_key, keyring_key
from bundlectl.registry.registry import Registry
from bundlectl.registry.witness import HeadPutBack, Witness
from bundlectl.resolver.resolver import Event, Resolver
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.storage.aws import open_client
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.parallel import in_parallel
from bundlectl.storage.s3 import S3Store
from bundlectl.storage.store import Store, open_store
from bundlectl.trust.envelope import parse_envelope, payload_of
from bundlectl.trust.signers import Signer
from tests.support.aws import Fault, Proxy, StandIn, stand_in
from tests.support.world import World, signer

HEAD = head_key("support", "prod")


@dataclass
class Keyed(Context):
    """A context that signs with the world's keys."""

    def signer(self, role: str) -> Signer:
        return signer(role)


@dataclass
class Place:
    """A registry in S3 with two releases in prod, made under its name, so that both are witnessed."""

    aws: StandIn
    world: World
    url: str
    uri: str
    second: str

    def context(self, **environ: str) -> Context:
        """A new command on a machine that knows nothing but the registry's name."""
        return Keyed(self.uri, self.world.now, lambda: "id", reporter=Silent(), environ=environ)

    @property
    def store(self) -> Store:
        return open_store(self.url)

    def parameter(self, suffix: str = "/support/prod") -> Any:
        ssm = _client("ssm")
        return json.loads(ssm.get_parameter(Name=self.uri.removeprefix("ssm:") + suffix)["Parameter"]["Value"])

    def write(self, value: object, suffix: str = "/support/prod") -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        _client("ssm").put_parameter(
            Name=self.uri.removeprefix("ssm:") + suffix, Value=text, Type="String", Overwrite=True
        )

    def put_back(self, serial: int = 1) -> bytes:
        """Do what an intruder with write access can: put an old head back, and remove its traces in the history."""
        live = self.store.get(HEAD)
        old = self.store.get(history_key("support", "prod", 1, serial))
        self.store.swap(HEAD, old.data, live.tag)
        self.store.delete(history_key("support", "prod", 1, serial))
        return live.data


@cache
def _client(service: str, *endpoints: str | None) -> Any:
    return open_client(service)


@cache
def _made() -> tuple[World, dict[str, bytes], str, str]:
    """Make the registry once; each test has a copy. Gives it, its objects, its head's digest and the second bundle."""
    world = World(MemoryStore())
    first, second = world.bundle("one"), world.bundle("two")
    direct = Keyed("memory:", world.now, lambda: "id", environ={"BUNDLECTL_PIN": world.pin})
    direct.__dict__["registry"] = world.registry
    promote(direct, f"support@{first.digest}", environment="prod", reason="first release")
    done = promote(direct, f"support@{second.digest}", environment="prod", reason="second release")
    assert done.released is not None
    objects = {key: world.store.get(key).data for key in world.store.list("")}
    return world, objects, done.released.release, second.digest


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    aws = stand_in("ministack")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUNDLECTL_PIN", raising=False)
    for key, value in aws.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("bundlectl.storage.s3.open_client", lambda service, **_: _client(service))
    # Some tests lead Parameter Store astray.
    monkeypatch.setattr(
        "bundlectl.storage.ssm.open_client", lambda service: _client(service, os.environ.get("AWS_ENDPOINT_URL_SSM"))
    )
    world, objects, head, second = _made()
    url = f"s3://{_bucket()}/{secrets.token_hex(4)}"
    uri = f"ssm:/bundlectl/team-{secrets.token_hex(4)}"
    store = open_store(url)
    in_parallel(lambda item: store.create(*item), list(objects.items()))
    registry_locate(Keyed(url, world.now, lambda: "id", environ={"BUNDLECTL_PIN": world.pin}), uri)
    made = Place(aws, world, url, uri, f"support@{second}")
    made.write({"epoch": 1, "serial": 2, "digest": head})
    return made


@cache
def _bucket() -> str:
    return stand_in("ministack").bucket()


VERBS: dict[str, Callable[[Place], object]] = {
    "promote": lambda place: promote(place.context(), place.second, environment="prod", reason="again and again"),
    "plan": lambda place: promote(place.context(), place.second, environment="prod", reason="plan", plan_only=True),
    "rollback": lambda place: rollback(place.context(), "support:prod", reason="it got worse"),
    "bind": lambda place: bind(place.context(), "support:prod", reason="an outage", disable=["large"]),
    "renew": lambda place: renew(place.context(), "support:prod"),
}


def test_a_name_gives_address_and_pin_and_each_release_is_witnessed(place: Place) -> None:
    assert place.parameter("") == {"url": place.url, "pin": place.world.pin, "registry": place.world.pin}
    head = place.store.get(HEAD).data
    seen = place.parameter()
    assert (seen["epoch"], seen["serial"]) == (1, 2)
    one = status(place.context()).environments
    prod = next(item for item in one if item.environment == "prod")
    assert (prod.serial, prod.alarms, prod.state) == (2, [], "live")
    rollback(place.context(), "support:prod", reason="it got worse")
    assert place.parameter()["serial"] == 3
    assert place.parameter()["digest"] != seen["digest"]
    assert place.store.get(HEAD).data != head


def test_the_pins_of_name_and_machine_must_agree(place: Place) -> None:
    open_trust(place.context(BUNDLECTL_PIN=place.world.pin))
    other = "sha256:" + "0" * 64
    with pytest.raises(VerificationFailed, match="another pin"):
        open_trust(place.context(BUNDLECTL_PIN=other))
    Path(".bundlectl").mkdir(exist_ok=True)
    Path(".bundlectl/pin").write_text(other + "\n")
    with pytest.raises(VerificationFailed, match="another pin"):
        open_trust(place.context())
    Path(".bundlectl/pin").write_text(place.world.pin + "\n")
    open_trust(place.context())
    place.write({"url": place.url, "pin": place.world.pin, "registry": other}, "")
    with pytest.raises(VerificationFailed, match="another registry"):
        open_trust(place.context())


def test_a_pin_that_leads_to_the_other_agrees_with_it(place: Place) -> None:
    root = World(MemoryStore())
    data = root.rotate(store=False)
    place.store.create(keyring_key(2), data)
    second = digest(payload_of(parse_envelope(data, "keyring 2")))
    place.write({"url": place.url, "pin": second, "registry": place.world.pin}, "")
    for _ in ("from the registry", "as it was kept"):
        assert open_trust(place.context(BUNDLECTL_PIN=place.world.pin)).version == 2
    place.write({"url": place.url, "pin": place.world.pin, "registry": place.world.pin}, "")
    assert open_trust(place.context(BUNDLECTL_PIN=second)).version == 2
    place.store.delete(keyring_key(2))
    shutil.rmtree(".bundlectl/cache")
    with pytest.raises(VerificationFailed, match="another pin"):
        open_trust(place.context(BUNDLECTL_PIN=second))


def test_the_pin_beside_a_copy_is_the_target_s(place: Place) -> None:
    Path(".bundlectl").mkdir(exist_ok=True)
    other = "sha256:" + "0" * 64
    Path(".bundlectl/pin").write_text(other + "\n")
    source, target = contexts(place.context(), place.uri, "s3://elsewhere/registry", None)
    assert (read_pin(source), read_pin(target)) == (place.world.pin, other)


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"url": "s3://b/p"}', '{"pin": 1}'])
def test_a_locator_of_another_form_is_refused(place: Place, text: str) -> None:
    place.write(text or "null", "")
    with pytest.raises(VerificationFailed, match="does not say where"):
        place.context().locate()


def test_names_that_are_none_are_refused(place: Place) -> None:
    for uri in ("ssm:team", "ssm:/other/team", "ssm:/bundlectl/", "ssm:/bundlectl/a/b", "ssm:/bundlectl/A"):
        with pytest.raises(UsageError):
            replace(place.context(), registry_url=uri).locate()
    with pytest.raises(NotFound, match="has no /bundlectl/nobody"):
        replace(place.context(), registry_url="ssm:/bundlectl/nobody").locate()


@pytest.mark.parametrize("verb", VERBS)
def test_a_head_behind_its_witness_stops_every_release(place: Place, verb: str) -> None:
    place.put_back()
    before = place.store.get(HEAD).data
    with pytest.raises(HeadPutBack) as caught:
        VERBS[verb](place)
    assert caught.value.exit_code == 4
    assert "serial 2" in caught.value.why
    assert "registry repair support:prod" in caught.value.fix
    assert place.store.get(HEAD).data == before


def test_a_lost_head_and_a_forged_witness_stop_releases_and_are_seen(place: Place) -> None:
    place.write({"epoch": 1, "serial": 2, "digest": "sha256:" + "1" * 64})
    with pytest.raises(HeadPutBack, match="put back"):
        VERBS["promote"](place)
    place.write("nothing")
    with pytest.raises(HeadPutBack, match="no witness"):
        VERBS["promote"](place)
    assert "not known" in _prod(place).alarms[0]
    place.write({"epoch": 1, "serial": 9, "digest": "sha256:" + "1" * 64})
    assert "witnessed a release at epoch 1, serial 9" in _prod(place).alarms[0]
    place.store.delete(HEAD)
    place.store.delete(history_key("support", "prod", 1, 1))
    with pytest.raises(VerificationFailed) as caught:
        VERBS["promote"](place)
    assert "no head" in caught.value.why
    assert _prod(place).state == "refused"
    with pytest.raises(VerificationFailed, match="no head"):
        repair(place.context(), "support:prod", reason="wiped", confirmed="prod")


def test_who_only_looks_is_told_as_well(place: Place) -> None:
    assert verify(place.context(), "support:prod").serial == 2
    place.put_back()
    with pytest.raises(HeadPutBack):
        verify(place.context(), "support:prod")
    with pytest.raises(HeadPutBack):
        promote(place.context(), "support:prod", environment="dev", reason="what is live there")


def test_promoters_that_race_make_one_release_each_and_one_chain(place: Place) -> None:
    lost: list[BundlectlError] = []

    def race(number: int) -> None:
        for _ in range(20):
            try:
                rollback(place.context(), "support:prod", reason=f"promoter {number}")
            except Conflict as error:
                lost.append(error)
            else:
                return

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = history(place.context(), "support:prod", verify=True).entries
    assert [entry.serial for entry in seen] == [6, 5, 4, 3, 2, 1]
    assert {entry.reason for entry in seen[:4]} == {f"promoter {number}" for number in range(4)}
    assert place.parameter()["serial"] <= 6
    assert _prod(place).alarms == []


def test_a_witness_behind_head_means_nothing(place: Place) -> None:
    place.write({"epoch": 1, "serial": 1, "digest": "sha256:" + "1" * 64})
    assert _prod(place).alarms == []
    VERBS["rollback"](place)
    assert place.parameter()["serial"] == 3


def test_repair_accepts_a_head_only_when_confirmed(place: Place) -> None:
    unharmed = repair(place.context(), "support:prod", reason="just looking")
    assert (unharmed.step, unharmed.done, unharmed.contradiction) == ("none", False, None)
    place.put_back()
    with pytest.raises(GateNotPassed, match="Nothing was changed") as caught:
        repair(place.context(), "support:prod", reason="restored")
    assert caught.value.details["step"] == "accept-head"
    assert place.parameter()["serial"] == 2
    done = repair(place.context(), "support:prod", reason="restored from a backup", confirmed="prod")
    assert (done.step, done.done) == ("accept-head", True)
    assert place.parameter()["serial"] == 1
    assert place.parameter()["note"] == "repaired: restored from a backup"
    assert _prod(place).alarms == []
    VERBS["promote"](place)
    assert (place.parameter()["serial"], _prod(place).serial) == (2, 2)
    assert "note" not in place.parameter()


def test_repair_restores_what_the_history_holds(place: Place) -> None:
    VERBS["rollback"](place)
    live = place.store.get(HEAD)
    first, second = (place.store.get(history_key("support", "prod", 1, n)) for n in (1, 2))
    place.store.swap(HEAD, first.data, live.tag)
    with pytest.raises(VerificationFailed):
        VERBS["promote"](place)
    done = repair(place.context(), "support:prod", reason="undo the intruder", confirmed="prod")
    assert (done.step, done.done) == ("restore-head", True)
    assert "witnessed release itself is not there" in done.why
    assert place.store.get(HEAD).data == second.data
    assert place.parameter()["serial"] == 2
    place.store.delete(HEAD)
    done = repair(place.context(), "support:prod", reason="undo the intruder again", confirmed="prod")
    assert done.step == "restore-head"
    assert place.store.get(HEAD).data == second.data


def test_a_registry_without_a_name_has_no_witness(place: Place) -> None:
    direct = Keyed(place.url, place.world.now, lambda: "id", environ={"BUNDLECTL_PIN": place.world.pin})
    with pytest.raises(UsageError, match="has no witness"):
        repair(direct, "support:prod", reason="nothing")
    with pytest.raises(UsageError, match="by its address"):
        registry_locate(place.context(), place.uri)


def test_a_release_whose_witness_fails_is_live_and_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(method: str, path: str, number: int) -> Fault:
        return Fault(400, code="AccessDeniedException") if number else Fault()

    with Proxy(place.aws, refuse) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", proxy.url)
        ctx = place.context()
        done = rollback(ctx, "support:prod", reason="it got worse")
        assert len(proxy.requests) == 2, "locator and witness come in one call"
    monkeypatch.delenv("AWS_ENDPOINT_URL_SSM")
    [warning] = done.released.warnings
    assert "release 3 of support:prod is live; its witness was not written" in warning
    assert isinstance(ctx.reporter, Silent)
    assert warning in ctx.reporter.warnings
    assert (_prod(place).serial, place.parameter()["serial"], _prod(place).alarms) == (3, 2, [])
    VERBS["rollback"](place)
    assert place.parameter()["serial"] == 4


def test_releases_stop_and_serving_goes_on_when_parameter_store_is_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    locate_to_serve(place.context(), [("support", "prod")])
    monkeypatch.setattr("bundlectl.storage.ssm.DEADLINE_SECONDS", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", "http://127.0.0.1:9")
    with pytest.raises(BackendUnavailable) as caught:
        VERBS["promote"](place)
    assert "Parameter Store" in caught.value.what
    ctx = place.context()
    locate_to_serve(ctx, [("support", "prod")])
    assert (ctx.locate().url, open_trust(ctx).digest) == (place.url, place.world.pin)
    Path(".bundlectl/cache").rename("elsewhere")
    with pytest.raises(BackendUnavailable):
        locate_to_serve(place.context(), [("support", "prod")])


def test_a_permission_that_is_missing_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(place.aws, lambda method, path, number: Fault(400, code="AccessDeniedException")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", proxy.url)
        with pytest.raises(BackendUnavailable, match="ssm:GetParameters on arn:aws:ssm") as caught:
            place.context().locate()
    assert caught.value.exit_code == 6


def test_keyrings_are_kept_here_and_what_follows_is_still_asked_for(place: Place) -> None:
    assert open_trust(place.context()).version == 1
    [file] = Path(".bundlectl/cache").glob("keyrings.*.json")
    for damaged in (
        "[]",
        "{}",
        "no json",
        '["{}"]',
        json.dumps([json.loads(file.read_text())[0].replace("a", "b", 1)]),
    ):
        file.write_text(damaged)
        assert open_trust(place.context()).version == 1
    root = World(MemoryStore())
    place.store.create(keyring_key(2), root.rotate(store=False))
    assert open_trust(place.context()).version == 2
    assert len(json.loads(file.read_text())) == 2
    place.store.delete(keyring_key(2))
    assert open_trust(place.context()).version == 2, "what root said once is not unsaid"


# ---------------------------------------------------------------- resolvers


async def _serve(
    place: Place, witness: Callable[[], Witness | None] | None, state: Path | None = None
) -> tuple[Any, list[Event]]:
    async def prepare(verified: VerifiedBundle) -> VerifiedBundle:
        return verified

    told: list[Event] = []
    resolver = Resolver(
        Registry(place.store),
        "support",
        "prod",
        place.world.pin,
        prepare,
        clock=place.world.now,
        poll=3600,
        on_event=told.append,
        witness=witness,
    )
    return resolver, told


async def test_a_resolver_without_state_raises_the_alarm(place: Place) -> None:
    def witness() -> Witness | None:
        return place.context().locate().witness("support", "prod")

    resolver, told = await _serve(place, witness)
    await resolver.start()
    await resolver.stop()
    assert (resolver.status.alarms, [event.kind for event in told]) == ((), ["serving"])

    live = place.put_back()
    resolver, told = await _serve(place, witness)
    await resolver.start()
    try:
        assert resolver.status.serial == 1, "it serves what verifies"
        assert "was put back" in resolver.status.alarms[0]
        assert [event.kind for event in told].count("alarm") == 1
        await resolver.poll_now()
        assert "was put back" in resolver.status.alarms[0], "and says so until head is right"
        store = place.store
        store.swap(HEAD, live, store.get(HEAD).tag)
        await resolver.poll_now()
        assert (resolver.status.serial, resolver.status.alarms) == (2, ())
    finally:
        await resolver.stop()


async def test_a_witness_that_cannot_be_asked_is_an_alarm_and_stops_nothing(place: Place) -> None:
    answers: list[Callable[[], Witness | None]] = [lambda: _away(), lambda: None]
    resolver, _ = await _serve(place, lambda: answers.pop(0)())
    await resolver.start()
    try:
        assert "not known" in resolver.status.alarms[0]
        place.world.tick(minutes=1)
        await resolver.poll_now()
        assert resolver.status.alarms == ()
        await resolver.poll_now()
        assert not answers, "asked until there is an answer, and no more"
    finally:
        await resolver.stop()


def _away() -> Witness | None:
    raise BackendUnavailable("Parameter Store is away.")


async def test_no_head_and_a_witness_is_tampering(place: Place) -> None:
    place.store.delete(HEAD)
    place.store.delete(history_key("support", "prod", 1, 1))
    resolver, _ = await _serve(place, lambda: place.context().locate().witness("support", "prod"))
    with pytest.raises(BundlectlError) as caught:
        await resolver.start()
    assert isinstance(caught.value, HeadPutBack)


def _prod(place: Place) -> Any:
    return next(item for item in status(place.context()).environments if item.environment == "prod")


def test_s3_is_what_was_tested(place: Place) -> None:
    assert isinstance(place.store, S3Store)
