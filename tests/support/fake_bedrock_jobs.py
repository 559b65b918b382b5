"""Bedrock's batch jobs on 127.0.0.1: the two operations on their own wire, and the work itself on objects in S3."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.started import started

USAGE = {"inputTokens": 100, "outputTokens": 7, "totalTokens": 107}


def said(text: str) -> dict[str, Any]:
    """Give what Converse answers."""
    message = {"role": "assistant", "content": [{"text": text}]}
    return {"modelOutput": {"output": {"message": message}, "stopReason": "end_turn", "usage": USAGE}}


@dataclass
class FakeJobs:
    """``reply`` gives the rest of a record's output line, or None to lack it; ``status`` what a job ends as.

    While ``held``, jobs stay in progress. ``created`` has each CreateModelInvocationJob; equal tokens are one job.
    """

    s3: Any
    url: str = ""
    reply: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda record: said("Use promote [1].")
    status: str = "Completed"
    held: bool = False
    refuse: tuple[int, str] | None = None
    created: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.created.append(body)
        if self.refuse is not None:
            status, code = self.refuse
            headers = {"x-amzn-ErrorType": code}
            return web.json_response({"message": "no"}, status=status, headers=headers)
        arn = self.tokens.get(body["clientRequestToken"])
        if arn is None:
            arn = f"arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/{len(self.jobs):012x}"
            self.tokens[body["clientRequestToken"]] = arn
            self.jobs[arn] = body
        return web.json_response({"jobArn": arn})

    async def _get(self, request: web.Request) -> web.Response:
        arn = request.match_info["arn"]
        job = self.jobs[arn]
        status = "InProgress" if self.held else self.status
        if status in ("Completed", "PartiallyCompleted") and not job.get("done"):
            job["done"] = True
            await asyncio.to_thread(self._work, arn, job)
        return web.json_response({"jobArn": arn, "status": status, "modelId": job["modelId"]})

    def _work(self, arn: str, job: dict[str, Any]) -> None:
        bucket, _, key = job["inputDataConfig"]["s3InputDataConfig"]["s3Uri"].removeprefix("s3://").partition("/")
        out, _, prefix = job["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"].removeprefix("s3://").partition("/")
        lines = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read().splitlines()
        records = [json.loads(line) for line in lines]
        done = [(record, self.reply(record)) for record in records]
        # The order of records is not kept.
        data = b"".join(json.dumps({**r, **reply}).encode() + b"\n" for r, reply in reversed(done) if reply is not None)
        where = f"{prefix}{arn.rpartition('/')[2]}/"
        self.s3.put_object(Bucket=out, Key=f"{where}{key.rpartition('/')[2]}.out", Body=data)
        self.s3.put_object(Bucket=out, Key=f"{where}manifest.json.out", Body=b'{"totalRecordCount": 1}')


@contextlib.asynccontextmanager
async def fake_jobs(s3: Any) -> AsyncIterator[FakeJobs]:
    """Run it on a free port."""
    fake = FakeJobs(s3)
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/model-invocation-job", fake._create)
    app.router.add_get("/model-invocation-job/{arn:.+}", fake._get)
    async with started(app) as fake.url:
        yield fake
