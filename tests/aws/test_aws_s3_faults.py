"""What the S3 store says and does when calls fail on the wire: a real server behind a proxy that breaks them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from bundlectl.model.errors import UsageError
from bundlectl.registry.objects import put_immutable
from bundlectl.storage.aws import Patience, open_client
from bundlectl.storage.s3 import S3Store
from bundlectl.storage.store import AlreadyThere, KeyMissing, OutcomeUnknown, StoreUnavailable, SwapLost
from tests.support.aws import Fault, Proxy, Script, StandIn, stand_in

KEY = "apps/support/environments/prod/head.json"
DEADLINE = 1.6
READ = 0.4


@pytest.fixture(scope="module")
def aws() -> StandIn:
    return stand_in("ministack")


@pytest.fixture(scope="module")
def bucket(aws: StandIn) -> str:
    return aws.bucket()


Broken = Callable[[Script], tuple[S3Store, Proxy]]


@pytest.fixture
def broken(
    aws: StandIn, bucket: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broken]:
    """Give a store whose requests a script may break; its prefix is the test's name."""
    for key, value in aws.environ.items():
        monkeypatch.setenv(key, value)
    with Proxy(aws) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        client = open_client("s3", connect=READ, read=READ)

        def make(script: Script) -> tuple[S3Store, Proxy]:
            proxy.script = script
            prefix = "".join(c if c.isalnum() else "-" for c in request.node.name)
            return S3Store(bucket, prefix, client=client, patience=Patience(DEADLINE, READ)), proxy

        yield make


def on(method: str, *faults: Fault) -> Script:
    """Strike the first requests of a method, one fault each; the others pass."""
    left = list(faults)
    return lambda asked, path, number: left.pop(0) if asked == method and left else Fault()


def test_a_write_that_landed_without_an_answer_is_unknown_and_not_repeated(broken: Broken) -> None:
    for fault in (
        Fault("cut"),
        Fault(500, code="InternalError", after=True),
        Fault(503, code="ServiceUnavailable", after=True),
        Fault("hold", seconds=2 * READ),
    ):
        store, proxy = broken(on("PUT", fault))
        first = store.get(KEY).tag if _there(store) else None
        before = len(proxy.requests)
        with pytest.raises(OutcomeUnknown) as caught:
            store.swap(KEY, str(fault).encode(), first)
        assert [method for method, _ in proxy.requests[before:]] == ["PUT"], "the SDK repeats nothing"
        assert "s3:PutObject" in caught.value.what
        assert store.get(KEY).data == str(fault).encode()


def _there(store: S3Store) -> bool:
    try:
        store.get(KEY)
    except KeyMissing:
        return False
    return True


def test_a_create_whose_answer_was_lost_is_found_there(broken: Broken) -> None:
    store, _ = broken(on("PUT", Fault("cut")))
    put_immutable(store, "keyring/1.json", b"ours")
    assert store.get("keyring/1.json").data == b"ours"


def test_a_create_that_was_cut_before_it_was_done_is_done_again(broken: Broken) -> None:
    store, proxy = broken(on("PUT", Fault("cut_before")))
    put_immutable(store, "keyring/1.json", b"ours")
    assert [method for method, _ in proxy.requests] == ["PUT", "GET", "PUT"]


def test_412_is_somebody_else_and_409_is_asked_again(broken: Broken) -> None:
    store, proxy = broken(on("PUT"))
    first = store.create(KEY, b"first")
    conflict = Fault(409, code="ConditionalRequestConflict")
    proxy.script = on("PUT", conflict, conflict)
    second = store.swap(KEY, b"second", first)
    assert [method for method, _ in proxy.requests] == ["PUT", "PUT", "HEAD", "PUT", "HEAD", "PUT"]
    assert store.get(KEY).tag == second

    proxy.script = on("PUT", conflict)
    with pytest.raises(SwapLost) as lost:
        store.swap(KEY, b"third", first)
    assert lost.value.found == second, "read after the 409"
    proxy.script = on("PUT", conflict)
    with pytest.raises(AlreadyThere):
        store.create(KEY, b"third")
    proxy.script = on("PUT", Fault(412, code="PreconditionFailed"))
    with pytest.raises(SwapLost) as lost:
        store.swap(KEY, b"third", second)
    assert lost.value.found is None


def test_409_without_end_is_given_up_at_the_deadline(broken: Broken) -> None:
    store, _ = broken(lambda method, path, n: Fault(409, code="OperationAborted") if method == "PUT" else Fault())
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        store.create(KEY, b"x")
    assert time.monotonic() - began < DEADLINE + 2 * READ
    assert "nothing changed" in caught.value.what
    assert "OperationAborted" in caught.value.why


def test_throttling_is_waited_out_for_reads_and_writes(broken: Broken) -> None:
    slow = Fault(503, code="SlowDown")
    store, proxy = broken(on("PUT", slow, slow))
    tag = store.create(KEY, b"x")
    proxy.script = on("GET", slow, slow)
    assert store.get(KEY).data == b"x"
    proxy.script = on("GET", slow)
    assert store.get_if_changed(KEY, tag) is None
    proxy.script = on("GET", slow)
    assert list(store.list("apps/")) == [KEY]


def test_throttling_without_end_is_given_up_and_nothing_was_written(broken: Broken) -> None:
    store, proxy = broken(lambda method, path, n: Fault(503, code="SlowDown"))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        store.swap(KEY, b"x", None)
    assert 0.3 < time.monotonic() - began < DEADLINE + READ
    assert "SlowDown" in caught.value.why
    assert len(proxy.requests) > 2


@pytest.mark.parametrize(
    "fault", [Fault(500, code="InternalError"), Fault("cut"), Fault("cut_before"), Fault("hold", seconds=2 * READ)]
)
def test_reads_are_repeated(broken: Broken, fault: Fault) -> None:
    store, proxy = broken(on("PUT"))
    store.create(KEY, b"x" * 1000)
    proxy.script = on("GET", fault)
    assert store.get(KEY).data == b"x" * 1000


def test_a_read_that_drips_ends_at_the_deadline(broken: Broken) -> None:
    store, proxy = broken(on("PUT"))
    store.create(KEY, bytes(4 * 1024 * 1024))
    proxy.script = lambda method, path, n: Fault("drip", seconds=0.2)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        store.get(KEY)
    assert time.monotonic() - began < DEADLINE + 4 * READ
    assert "of 4194304 bytes" in caught.value.why


def test_bytes_that_changed_on_the_way_are_not_given(broken: Broken, aws: StandIn, bucket: str) -> None:
    store, proxy = broken(on("PUT"))
    store.create(KEY, b"what was written")
    reply = proxy._forward

    def bent(*asked: object) -> tuple[int, list[tuple[str, str]], bytes]:
        status, headers, body = reply(*asked)  # type: ignore[arg-type]
        return status, headers, body.replace(b"what", b"that") if body == b"what was written" else body

    proxy._forward = bent  # type: ignore[method-assign,assignment]
    with pytest.raises(StoreUnavailable) as caught:
        store.get(KEY)
    assert "checksum" in caught.value.why.lower()


def test_a_refusal_names_the_permission(broken: Broken) -> None:
    denied = Fault(403, code="AccessDenied")
    store, proxy = broken(on("PUT"))
    arn = f"arn:aws:s3:::{store._bucket}"
    for method, call, action, resource in (
        ("PUT", lambda: store.create(KEY, b""), "s3:PutObject", f"{arn}/{store._prefix}{KEY}"),
        ("GET", lambda: store.get(KEY), "s3:GetObject", f"{arn}/{store._prefix}{KEY}"),
        ("GET", lambda: list(store.list("apps/")), "s3:ListBucket", arn),
    ):
        proxy.script = on(method, denied)
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert f"{action} on {resource}" in caught.value.what
        assert action in caught.value.fix
        assert caught.value.exit_code == 6
    store.create(KEY, b"")
    proxy.script = on("DELETE", denied)
    with pytest.raises(StoreUnavailable, match="s3:DeleteObject"):
        store.delete(KEY)
    for code, word in (("ExpiredToken", "credentials"), ("RequestTimeTooSkewed", "clock")):
        proxy.script = on("GET", Fault(403, code=code))
        with pytest.raises(StoreUnavailable, match=word):
            store.get(KEY)


def test_a_server_that_is_not_there_is_told_and_nothing_is_written(
    aws: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in aws.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    store = S3Store("a-bucket", client=open_client("s3", connect=READ, read=READ), patience=Patience(1.0, READ))
    for call in (lambda: store.get(KEY), lambda: store.swap(KEY, b"", None), lambda: list(store.list(""))):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert "127.0.0.1:9" in caught.value.why


def test_no_credentials_and_no_profile_are_told(monkeypatch: pytest.MonkeyPatch, aws: StandIn) -> None:
    for key, value in aws.environ.items():
        monkeypatch.setenv(key, value)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    store = S3Store("a-bucket")
    with pytest.raises(StoreUnavailable) as caught:
        store.get(KEY)
    assert "profile, SSO or a role" in caught.value.fix
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match="configuration"):
        S3Store("a-bucket")


def test_a_long_list_comes_in_pages_that_are_asked_for_one_by_one(broken: Broken) -> None:
    store, proxy = broken(lambda method, path, n: Fault())
    for n in range(25):
        store.create(f"history/{n:04d}", b"")
    list_objects = store._client.list_objects_v2
    store._client.list_objects_v2 = lambda **asked: list_objects(**asked, MaxKeys=10)
    before = len(proxy.requests)
    found = store.list("history/")
    assert next(found) == "history/0000"
    assert len(proxy.requests) == before + 1
    assert [*found] == [f"history/{n:04d}" for n in range(1, 25)]
    assert len(proxy.requests) == before + 3
    assert [*store.list("history/", "history/0020")] == [f"history/{n:04d}" for n in range(21, 25)]
    del store._client.list_objects_v2


def test_either_name_of_the_region_counts(monkeypatch: pytest.MonkeyPatch, aws: StandIn) -> None:
    for key, value in aws.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert open_client("ssm").meta.region_name == "eu-central-1"
    monkeypatch.setenv("AWS_REGION", "")
    with pytest.raises(UsageError, match="region"):
        open_client("ssm")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert open_client("ssm").meta.region_name == "us-west-2"
