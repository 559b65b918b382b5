"""The services that give AWS credentials, STS and the SSO portal, on 127.0.0.1, with scripted ends of validity."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

from aiohttp import web

from tests.support.fake_bedrock import KEY, SECRET
from tests.support.started import started


class FakeTokens:
    """``lasting``: seconds that the next credentials last, one per request; then an hour. Negative: an error."""

    def __init__(self) -> None:
        self.lasting: deque[float] = deque()
        self.asked: list[str] = []
        self.url = ""

    def _ends(self) -> datetime | None:
        seconds = self.lasting.popleft() if self.lasting else 3600
        return None if seconds < 0 else datetime.now(UTC) + timedelta(seconds=seconds)

    async def _sts(self, request: web.Request) -> web.Response:
        body = parse_qs((await request.read()).decode())
        action = body["Action"][0]
        self.asked.append(action)
        ends = self._ends()
        if ends is None:
            error = "<Error><Type>Sender</Type><Code>AccessDenied</Code><Message>role/secret-name</Message></Error>"
            return web.Response(status=403, text=f"<ErrorResponse>{error}</ErrorResponse>", content_type="text/xml")
        text = (
            f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>'
            f"<AccessKeyId>{KEY}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>"
            f"<SessionToken>token-{len(self.asked)}</SessionToken><Expiration>{ends.isoformat()}</Expiration>"
            f"</Credentials></{action}Result></{action}Response>"
        )
        return web.Response(text=text, content_type="text/xml")

    async def _sso(self, request: web.Request) -> web.Response:
        self.asked.append("GetRoleCredentials " + request.headers["x-amz-sso_bearer_token"])
        ends = self._ends() or datetime.now(UTC)
        given = {
            "accessKeyId": KEY,
            "secretAccessKey": SECRET,
            "sessionToken": f"token-{len(self.asked)}",
            "expiration": int(ends.timestamp() * 1000),
        }
        return web.json_response({"roleCredentials": given})


@contextlib.asynccontextmanager
async def fake_tokens() -> AsyncIterator[FakeTokens]:
    """Run the services on a free port of 127.0.0.1."""
    fake = FakeTokens()
    app = web.Application()
    app.router.add_post("/", fake._sts)
    app.router.add_get("/federation/credentials", fake._sso)
    async with started(app) as fake.url:
        yield fake
