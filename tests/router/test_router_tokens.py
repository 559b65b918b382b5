"""OIDC tokens in place of API keys, over real sockets: a server, and an issuer that rotates, lies and goes away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import ValidationError

from bundlectl.inference.client import HttpClient
from bundlectl.model.bindings import Caller, Identities, TokenIssuer
from bundlectl.router import key_sets
from bundlectl.router.identity import Identity, Stranger
from bundlectl.router.key_sets import MAX_KEY_SET, KeySets, parse_key_set
from bundlectl.router.tokens import BELIEVED, Tokens, _fits
from tests.router.test_router_server import ask, body, serving
from tests.support.answering import setting
from tests.support.fake_idp import AUDIENCE, FakeIdp, fake_idp
from tests.support.fake_models import FakeModels, fake_models


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


@pytest.fixture
async def idp() -> AsyncIterator[FakeIdp]:
    async with fake_idp() as server:
        yield server


def issuer(idp: FakeIdp, **changes: Any) -> dict[str, Any]:
    callers = [{"subject": "agent-*", "tenants_claim": "tenants", "roles": ["agent"]}]
    return {"id": "idp", "issuer": idp.url, "audience": [AUDIENCE], "callers": callers, **changes}


def tokens_of(idp: FakeIdp, sets: KeySets, **changes: Any) -> Tokens:
    return Tokens([TokenIssuer.model_validate(issuer(idp, **changes))], sets)


async def judged(tokens: Tokens, token: str) -> Identity | Stranger:
    wait = tokens.look(token)
    if wait is not None:
        await wait
    return tokens.judge(token)


async def test_a_token_answers_and_names_its_caller(fake: FakeModels, idp: FakeIdp) -> None:
    bindings = {"identities": {"oidc": [issuer(idp)]}}
    async with setting(fake.base_url, bindings=bindings) as s, serving(s) as client:
        token = idp.token()
        for _ in range(3):
            status, found = await ask(client, body(), authorization=f"Bearer {token}")
            assert status == 200, found
        assert s.receipts.last.identity == "idp:agent-7"
        assert idp.asked == {"discovery": 1, "keys": 1}
        status, found = await ask(client, body(tenant_id="zenith"), authorization=f"Bearer {token}")
        assert status == 403 and found["refused"]["code"] == "access_denied"
        status, found = await ask(client, body())
        assert status == 401 and found["error"] == "unauthenticated"
        status, found = await ask(client, body(), authorization=f"Bearer {idp.token(exp=int(time.time()) - 60)}")
        assert status == 401 and "expired" in found["why"]


def _with_header(token: str, **header: Any) -> str:
    _, payload, signature = token.split(".")
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return f"{head}.{payload}.{signature}"


NOW = int(time.time())
BAD: list[tuple[str, Any, str]] = [
    ("wrong audience", {"aud": "another"}, "another audience"),
    ("no audience", {"aud": None}, "lacks"),
    ("wrong issuer", {"iss": "https://evil.example"}, "issuer is not among"),
    ("expired", {"exp": NOW - 3600}, "expired"),
    ("never expires", {"exp": None}, "lacks"),
    ("not yet", {"nbf": NOW + 3600}, "not valid yet"),
    ("no subject", {"sub": None}, "lacks"),
    ("another subject", {"sub": "customer-1"}, "not among the callers"),
    ("a subject that is no name", {"sub": "agent-\n7"}, "not a name"),
    ("unknown key", {"header": {"kid": "third"}}, "not among its issuer's"),
    ("critical extension", {"header": {"crit": ["exp2"], "exp2": 1}}, ""),
    ("kid is no string", {"header": {"kid": "x" * 20_000}}, "neither"),
]


@pytest.mark.parametrize(("changes", "why"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_tokens_that_are_not_believed(idp: FakeIdp, changes: dict[str, Any], why: str) -> None:
    async with HttpClient() as session:
        tokens = tokens_of(idp, KeySets(session))
        found = await judged(tokens, idp.token(**changes))
        assert isinstance(found, Stranger) and why in found.why and not found.later
        assert isinstance(await judged(tokens, idp.token()), Identity)


async def test_forged_tokens(idp: FakeIdp) -> None:
    async with HttpClient() as session:
        tokens = tokens_of(idp, KeySets(session))
        good = idp.token()
        header, payload, signature = good.split(".")
        pem = idp.public_pem()
        secret = base64.urlsafe_b64encode(pem).rstrip(b"=").decode()
        unsigned = f"{_with_header(good, alg='HS256', typ='JWT', kid='first').split('.')[0]}.{payload}"
        mac = base64.urlsafe_b64encode(hmac.digest(pem, unsigned.encode(), hashlib.sha256)).rstrip(b"=").decode()
        other = FakeIdp()
        other.url = idp.url
        own = {"jwk": other.listed[0], "jku": "https://evil.example/keys"}
        flipped = ("B" if payload[10] != "B" else "C").join((payload[:10], payload[11:]))
        for forged in (
            _with_header(good, alg="none", kid="first"),
            f"{_with_header(good, alg='none', kid='first').rsplit('.', 1)[0]}.",
            f"{unsigned}.{mac}",  # HS256, with the public key as the secret
            f"{unsigned}.{secret}",
            other.token(),  # another key under the same id
            other.token(header=own),
            f"{header}.{flipped}.{signature}",
            f"{header}.{payload}.",
            _with_header(good, alg="PS256", kid="first"),
            _with_header(good, alg="ES256", kid="first"),
            f"{good}.x",
            "..",
            "a.b.c",
            "é.é.é",
        ):
            found = await judged(tokens, forged)
            assert isinstance(found, Stranger), forged
        assert isinstance(await judged(tokens, good), Identity)


async def test_rotation_and_revocation(idp: FakeIdp, monkeypatch: pytest.MonkeyPatch) -> None:
    async with HttpClient() as session:
        tokens = tokens_of(idp, KeySets(session))
        old = idp.token()
        assert isinstance(await judged(tokens, old), Identity)
        idp.rotate("second", curve=ec.SECP384R1())
        new = idp.token("second", alg="ES384")
        assert isinstance(await judged(tokens, new), Stranger)  # asked for a moment ago
        monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 0.0)
        assert isinstance(await judged(tokens, new), Identity)  # one fetch because of it
        asked = idp.asked["keys"]
        assert isinstance(tokens.judge(old), Stranger)  # its key is gone, so it is believed no longer
        monkeypatch.setattr(key_sets, "UNKNOWN_KEY_PAUSE", 30.0)
        for n in range(20):
            found = await judged(tokens, idp.token("first", header={"kid": f"guess-{n}"}))
            assert isinstance(found, Stranger)
        assert idp.asked["keys"] == asked == 2


async def test_keys_are_there_before_a_release_serves(idp: FakeIdp) -> None:
    async with HttpClient() as session:
        tokens = tokens_of(idp, KeySets(session))
        await tokens.warm()
        assert tokens.look(idp.token()) is None and isinstance(tokens.judge(idp.token()), Identity)


async def test_many_at_once_fetch_once(idp: FakeIdp) -> None:
    async with HttpClient() as session:
        tokens = tokens_of(idp, KeySets(session))
        found = await asyncio.gather(*(judged(tokens, idp.token(jti=str(n))) for n in range(20)))
        assert all(isinstance(one, Identity) for one in found) and idp.asked["keys"] == 1


async def test_the_issuer_is_away(fake: FakeModels, idp: FakeIdp, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(key_sets, "FAILURE_PAUSE", 0.0)
    async with HttpClient() as session:
        sets = KeySets(session, said.append)
        brief, patient = tokens_of(idp, sets, keys_ttl="0s", keys_max_age="0s"), tokens_of(idp, sets, keys_ttl="0s")
        idp.fail = 503
        found = await judged(patient, idp.token())
        assert isinstance(found, Stranger) and found.later  # never had any
        idp.fail = None
        assert isinstance(await judged(patient, idp.token()), Identity)
        idp.fail = 500
        for n in range(3):  # kept keys go on, for tokens that were never seen before too
            assert isinstance(await judged(patient, idp.token(jti=str(n))), Identity)
        await sets.close()
        found = await judged(brief, idp.token())
        assert isinstance(found, Stranger) and found.later  # older than the bindings let them be
        assert [("cannot" in line, "again" in line) for line in said] == [(True, False), (False, True), (True, False)]
        assert not any("secret" in line or "eyJ" in line for line in said)
    bindings = {"identities": {"oidc": [issuer(idp)]}}
    async with setting(fake.base_url, bindings=bindings) as s, serving(s) as client:
        status, refused = await ask(client, body(), authorization=f"Bearer {idp.token()}")
        assert status == 503 and refused["error"] == "identity_unavailable" and s.receipts.kept == []


HUGE = b'{"keys": [' + b" " * MAX_KEY_SET + b"]}"
MANY = json.dumps({"keys": [{"kty": "RSA"}] * 101}).encode()


@pytest.mark.parametrize("raw", [HUGE, MANY, b"[]", b"{", b'{"keys": {}}', b"\xff", b"[" * 200_000])
async def test_key_sets_that_are_none(idp: FakeIdp, raw: bytes) -> None:
    async with HttpClient() as session:
        idp.raw = raw
        found = await judged(tokens_of(idp, KeySets(session)), idp.token())
        assert isinstance(found, Stranger) and found.later


@pytest.mark.parametrize(
    "named", [{"issuer": "https://other.example"}, {"jwks_uri": "http://10.0.0.1/keys"}, {"jwks_uri": 5}]
)
async def test_discovery_that_points_elsewhere(idp: FakeIdp, named: dict[str, Any]) -> None:
    async with HttpClient() as session:
        idp.named = named
        found = await judged(tokens_of(idp, KeySets(session)), idp.token())
        assert isinstance(found, Stranger) and found.later and idp.asked["keys"] == 0


def test_keys_that_may_verify_nothing_are_left_out() -> None:
    def listed(key: Any, maker: Any = jwt.algorithms.RSAAlgorithm, **more: Any) -> dict[str, Any]:
        return {**json.loads(maker.to_jwk(key)), **more}

    good, weak = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    keys = [
        listed(good, kid="private", key_ops=["verify"]),  # its public half serves
        listed(weak.public_key(), kid="weak"),
        listed(good.public_key(), kid="encrypts", use="enc"),
        listed(good.public_key(), kid="wraps", key_ops=["wrapKey"]),
        listed(good.public_key(), kid="odd", alg="HS256"),
        listed(curve.public_key(), jwt.algorithms.ECAlgorithm, kid="curve"),
        listed(curve.public_key(), jwt.algorithms.ECAlgorithm, kid="broken", x="AA"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        "nothing",
    ]
    found = parse_key_set(json.dumps({"keys": keys}).encode())
    assert [(key.kid, len(key.algorithms)) for key in found] == [("private", 6), ("curve", 1)]
    assert isinstance(found[0].key, rsa.RSAPublicKey)


async def test_keys_from_a_file(idp: FakeIdp, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": idp.listed}))
    tokens = tokens_of(idp, KeySets(), jwks=f"file:{file}")
    assert isinstance(await judged(tokens, idp.token()), Identity) and idp.asked["keys"] == 0
    found = await judged(tokens_of(idp, KeySets(), jwks=f"file:{tmp_path}/none"), idp.token())
    assert isinstance(found, Stranger) and found.later


EKS = {"subject": "system:serviceaccount:shop:*", "tenants": ["*"], "roles": ["support_agent"]}
AWS_TENANT = ["https://sts.amazonaws.com/", "principal_tags", "tenant"]
AWS = {"subject": "arn:aws:iam::111122223333:role/support-*", "tenants_claim": AWS_TENANT, "roles": ["support_agent"]}


async def test_service_accounts_and_aws_identities(idp: FakeIdp) -> None:
    """The forms of EKS service account tokens and of sts:GetWebIdentityToken."""
    async with HttpClient() as session:
        tokens = tokens_of(idp, KeySets(session), callers=[EKS, AWS])
        pod: Any = {"namespace": "shop", "serviceaccount": {"name": "api", "uid": "1"}}
        found = await judged(
            tokens,
            idp.token(sub="system:serviceaccount:shop:api", aud=[AUDIENCE], **{"kubernetes.io": pod}),  # nested
        )
        assert isinstance(found, Identity) and found.may_claim("acme", "support_agent")
        assert found.name == "idp:system:serviceaccount:shop:api" and not found.may_claim("acme", "admin")
        denied = await judged(tokens, idp.token(sub="system:serviceaccount:dev:api"))
        assert isinstance(denied, Stranger)
        claims: dict[str, Any] = {
            "https://sts.amazonaws.com/": {"aws_account": "111122223333", "principal_tags": {"tenant": "acme"}}
        }
        found = await judged(tokens, idp.token(sub="arn:aws:iam::111122223333:role/support-api", **claims))
        assert isinstance(found, Identity) and found.tenants == {"acme"}


async def test_who_may_pin_is_said_in_the_bindings_and_in_no_token(idp: FakeIdp) -> None:
    async with HttpClient() as session:
        callers = [{**EKS, "may_pin": True}, {**EKS, "subject": "*"}]
        tokens = tokens_of(idp, KeySets(session), callers=callers)
        for sub, may in (("system:serviceaccount:shop:api", True), ("somebody", False)):
            found = await judged(tokens, idp.token(sub=sub, may_pin=True))
            assert isinstance(found, Identity) and found.may_pin is may
            assert tokens.still(found) == found


@pytest.mark.parametrize("claimed", [["*"], "*", [""], {"acme": 1}, 5, None, [["acme"]], ["a b"], "acme\n"])
async def test_a_claim_never_means_any_tenant(idp: FakeIdp, claimed: Any) -> None:
    async with HttpClient() as session:
        found = await judged(tokens_of(idp, KeySets(session)), idp.token(tenants=claimed))
        assert isinstance(found, Identity) and found.tenants == frozenset()


async def test_the_memory_of_tokens_is_bounded(idp: FakeIdp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundlectl.router.tokens.BELIEVED", 4)
    async with HttpClient() as session:
        tokens = tokens_of(idp, KeySets(session))
        for n in range(9):
            assert isinstance(await judged(tokens, idp.token(jti=str(n))), Identity)
        assert len(tokens._believed) == 4 < BELIEVED
        brief = idp.token(exp=int(time.time()) + 1)
        assert isinstance(await judged(tokens, brief), Identity)
        monkeypatch.setattr(tokens, "_verify", lambda *_: Stranger("judged again"))
        assert isinstance(tokens.judge(brief), Identity)
        later = time.time() + 40  # beyond the leeway of 30 seconds
        monkeypatch.setattr("bundlectl.router.tokens.time.time", lambda: later)
        assert tokens.judge(brief) == Stranger("judged again")


def test_patterns_of_subjects() -> None:
    for pattern, subject, fits in (
        ("a", "a", True),
        ("a", "ab", False),
        ("*", "", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c", False),
        ("ab*bc", "abc", False),
        ("system:serviceaccount:shop:*", "system:serviceaccount:shopping:api", False),
        ("a.c", "abc", False),
    ):
        assert _fits(pattern, subject) is fits, (pattern, subject)


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "http://idp.example"},
        {"issuer": "https://user@idp.example"},
        {"issuer": "https://idp.example?x=1"},
        {"issuer": "http://127.0.0.1.evil.example"},
        {"jwks": "http://idp.example/keys"},
        {"jwks": "env:KEYS"},
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"audience": []},
        {"callers": []},
        {"callers": [{"subject": "a", "roles": ["x"]}]},
        {"callers": [{"subject": "a", "roles": ["x"], "tenants": ["t"], "tenants_claim": "t"}]},
        {"callers": [{"subject": "*a*b*c*d*", "roles": ["x"], "tenants": ["t"]}]},
    ],
)
def test_bindings_that_are_refused(changes: dict[str, Any]) -> None:
    plain = {"id": "idp", "issuer": "https://idp.example", "audience": [AUDIENCE], "callers": [EKS]}
    assert TokenIssuer.model_validate(plain).algorithms == ["RS256", "ES256", "ES384"]
    with pytest.raises(ValidationError):
        TokenIssuer.model_validate({**plain, **changes})


def test_bindings_without_issuers_keep_their_form() -> None:
    assert Identities().form() == {"api_keys": []}
    assert "tenants" not in Caller.model_validate(AWS).form()
