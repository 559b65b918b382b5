"""The credential chain against fake token services, and its renewal off the event loop.

The token services run on the same event loop as the code under test: a renewal that blocked it would never end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.credentials
import pytest

from bundlectl.inference.aws_session import AwsCredentials, AwsSession, aws_session
from bundlectl.inference.bedrock import BedrockProvider, open_bedrock
from bundlectl.inference.client import HttpClient
from bundlectl.inference.provider import ModelCall, ProviderError
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.components import Model
from bundlectl.model.errors import NotFound, UsageError
from tests.support.fake_bedrock import KEY, SECRET, FakeBedrock, fake_bedrock
from tests.support.fake_tokens import FakeTokens, fake_tokens

START = "https://example.awsapps.com/start"


@pytest.fixture
async def tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeTokens]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("HOME", str(tmp_path))
    async with fake_tokens() as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", fake.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", fake.url)
        yield fake


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch, tokens: FakeTokens) -> AsyncIterator[FakeBedrock]:
    async with fake_bedrock() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
        yield server


@pytest.fixture
async def http(tokens: FakeTokens) -> AsyncIterator[Any]:
    session = HttpClient()
    yield session
    await session.close()


async def opened(http: Any) -> BedrockProvider:
    model = Model(provider="bedrock", model="m")
    return await asyncio.to_thread(open_bedrock, "small", model, ModelBinding(), {}, http, {}, None)


def call() -> ModelCall:
    return ModelCall(model="m", messages=[{"role": "user", "content": "?"}], question="?", total=5.0)


def assumed_role(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    (tmp_path / "config").write_text(
        "[profile base]\n[profile models]\nrole_arn = arn:aws:iam::123456789012:role/models\nsource_profile = base\n"
    )
    (tmp_path / "credentials").write_text(f"[base]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_PROFILE", "models")
    return "AssumeRole"


def web_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """IRSA: what EKS puts into a pod."""
    (tmp_path / "token").write_text("a.jwt.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models")
    return "AssumeRoleWithWebIdentity"


def sso(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A developer who has logged in with ``aws sso login``."""
    (tmp_path / "config").write_text(
        f"[profile dev]\nsso_start_url = {START}\nsso_region = eu-west-1\nsso_account_id = 123456789012\n"
        "sso_role_name = developer\n"
    )
    cache = tmp_path / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    ends = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    name = hashlib.sha1(START.encode()).hexdigest()
    (cache / f"{name}.json").write_text(json.dumps({"accessToken": "sso-token", "expiresAt": ends}))
    monkeypatch.setenv("AWS_PROFILE", "dev")
    # Where the home was when botocore was imported.
    monkeypatch.setattr(botocore.credentials.SSOProvider, "_SSO_TOKEN_CACHE_DIR", str(cache))
    return "GetRoleCredentials sso-token"


@pytest.mark.parametrize("chain", [assumed_role, web_identity, sso])
async def test_the_default_chain(
    chain: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: FakeTokens, fake: FakeBedrock, http: Any
) -> None:
    action = chain(monkeypatch, tmp_path)
    first, second = await opened(http), await opened(http)
    await asyncio.gather(*(provider.generate(call()) for provider in (first, second) for _ in range(5)))
    assert tokens.asked == [action], "one renewal serves all models and calls"
    assert {seen.headers["X-Amz-Security-Token"] for seen in fake.seen} == {"token-1"}
    assert "/eu-west-1/bedrock/" in fake.seen[0].headers["Authorization"]


async def test_credentials_that_end_are_renewed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: FakeTokens, fake: FakeBedrock, http: Any
) -> None:
    web_identity(monkeypatch, tmp_path)
    tokens.lasting.extend([30, 12 * 60])
    provider = await opened(http)
    for _ in range(3):
        await provider.generate(call())
    used = [seen.headers["X-Amz-Security-Token"] for seen in fake.seen]
    # Those of 30 s sign nothing more; those of 12 minutes still sign while they are being renewed.
    assert used == ["token-1", "token-2", "token-2"]
    for _ in range(50):
        if len(tokens.asked) == 3:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    await provider.generate(call())
    assert fake.seen[-1].headers["X-Amz-Security-Token"] == "token-3"
    assert len(tokens.asked) == 3


async def test_denied_and_then_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: FakeTokens, fake: FakeBedrock, http: Any
) -> None:
    web_identity(monkeypatch, tmp_path)
    tokens.lasting.append(-1)
    provider = await opened(http)
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call())
    assert (caught.value.kind, caught.value.why) == ("refused", "AccessDenied")
    assert "secret-name" not in str(caught.value)
    assert not fake.seen
    assert (await provider.generate(call())).text


async def test_a_token_file_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake: FakeBedrock, http: Any
) -> None:
    web_identity(monkeypatch, tmp_path)
    (tmp_path / "token").unlink()
    with pytest.raises(ProviderError) as caught:
        await (await opened(http)).generate(call())
    assert caught.value.kind == "unavailable"


async def test_no_credentials_at_all(fake: FakeBedrock, http: Any) -> None:
    with pytest.raises(NotFound, match="no AWS credentials"):
        await opened(http)


async def test_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch, fake: FakeBedrock, http: Any) -> None:
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(UsageError, match="profile"):
        await opened(http)


class Source:
    """Credentials whose renewal can be held up."""

    def __init__(self, *, lasts: float) -> None:
        self.lasts = lasts
        self.renewals = 0
        self.threads: set[int] = set()
        self.go = threading.Event()

    def refresh_needed(self, refresh_in: float) -> bool:
        return self.lasts < refresh_in

    def get_frozen_credentials(self) -> str:
        self.renewals += 1
        self.threads.add(threading.get_ident())
        assert self.go.wait(5)
        return f"keys-{self.renewals}"


async def test_one_renewal_for_all_and_off_the_loop() -> None:
    source = Source(lasts=0)
    credentials: Any = AwsCredentials(source)  # type: ignore[arg-type]
    waiting = [asyncio.create_task(credentials.current("m")) for _ in range(20)]
    await asyncio.sleep(0.05)
    waiting[0].cancel()
    source.lasts = 3600
    source.go.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == ["keys-1"] * 19
    assert source.renewals == 1 and threading.get_ident() not in source.threads


async def test_nobody_waits_while_the_old_ones_last() -> None:
    source = Source(lasts=3600)
    source.go.set()
    credentials: Any = AwsCredentials(source)  # type: ignore[arg-type]
    assert await credentials.current("m") == "keys-1"
    source.lasts = 600
    source.go.clear()
    assert [await credentials.current("m") for _ in range(5)] == ["keys-1"] * 5
    await asyncio.sleep(0.05)
    assert source.renewals == 2, "one is under way, and no more are begun"
    source.go.set()


async def test_models_of_one_http_session_share_their_aws_session() -> None:
    one, two = HttpClient(), HttpClient()
    assert aws_session(one) is aws_session(one)
    assert isinstance(aws_session(two), AwsSession) and aws_session(two) is not aws_session(one)
    await one.close()
    await two.close()
