"""Models on Amazon Bedrock through batch jobs: for routes of mode ``async`` whose binding names a place and a role.

Calls that come close together become one job (CreateModelInvocationJob, of type Converse): a line of JSON each in S3,
and replies from where the job puts them. A job takes at least a hundred records, so what is left over is asked on
demand. Texts stay under the bound prefix until a lifecycle rule removes them.

A record is named by what is asked of which model, and its place among those that ask the same. A list of each job's
records is stored before the job is created, so that a process that is restarted finds the replies that it paid for,
instead of asking anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from pydantic_core import from_json, to_json

from bundlectl.inference.aws import KINDS
from bundlectl.inference.bedrock import BedrockProvider
from bundlectl.inference.http import MAX_REPLY, deadline
from bundlectl.inference.provider import Delta, ErrorKind, ModelCall, ModelReply, ProviderError
from bundlectl.inference.sagemaker_async import S3Place
from bundlectl.model.components import Model

HOURS: Final = 24
"""What a job may take: the least that can be asked for."""
_ENDED: Final = frozenset({"Completed", "PartiallyCompleted", "Failed", "Stopped", "Expired"})
_FAILURES: Final = (ClientError, BotoCoreError)


@dataclass(frozen=True, slots=True)
class Pace:
    """When a job is made of what came: after ``quiet`` seconds without a call, or ``longest`` after the first.

    ``least`` and ``most`` are records of one job, as Bedrock's quotas have them; looks at a job are ``first_look`` to
    ``last_look`` seconds apart.
    """

    quiet: float = 5.0
    longest: float = 60.0
    least: int = 100
    most: int = 10_000
    first_look: float = 5.0
    last_look: float = 60.0


@dataclass(slots=True)
class _Job:
    """A job: its own key, the model that it calls, its records, and its ARN once it is known."""

    key: str
    model: str
    began: int
    records: list[str]
    arn: str | None = None


@dataclass(slots=True)
class _Record:
    """What is asked, and who waits for it. The reply is ``None`` where it is to be asked on demand."""

    line: bytes
    model: str
    reply: asyncio.Future[Mapping[str, Any] | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class BedrockJobs:
    """One model's calls as jobs; a whole reply is all that it gives."""

    name: Final = "bedrock"
    reads_prompt: Final = True
    deterministic: Final = False

    def __init__(
        self, online: BedrockProvider, bedrock: Any, s3: Any, place: S3Place, role: str, pace: Pace | None = None
    ) -> None:
        """Take what asks on demand, boto3 clients of Bedrock and S3, the bound prefix and role, and the pace."""
        self._online = online
        self._bedrock = bedrock
        self._s3 = s3
        self._place = place
        self._role = role
        self._pace = pace or Pace()
        self._records: dict[str, _Record] = {}
        self._new: dict[str, _Record] = {}
        self._came = asyncio.Event()
        self._gatherer: asyncio.Task[None] | None = None
        self._following: set[asyncio.Task[None]] = set()
        self._known: dict[str, _Job] = {}
        self._read: set[str] = set()
        """Keys of jobs that give nothing more: whoever lacks a reply of them asks anew."""

    async def generate(self, call: ModelCall) -> ModelReply:
        """Make one attempt; its first token is its whole reply."""
        conversation = self._online.conversation(call)
        model = self._online.called(call)
        body = to_json(conversation.body(stream=False))
        ends = asyncio.get_running_loop().time() + call.total
        with deadline(ends, conversation.what, "reply"):
            found = await asyncio.shield(self._asked(model, body))
        if found is None:
            left = ends - asyncio.get_running_loop().time()
            return await self._online.generate(replace(call, total=left, first_token=None))
        if "error" in found:
            raise _error(found["error"], conversation.what)
        return replace(conversation.reply(found["modelOutput"]), priced_as=f"{conversation.called}@batch")

    def priced_as(self, model: Model) -> str:
        """Give the name for asking a model on demand, which is the dearer way and may become necessary."""
        return self._online.priced_as(model)

    async def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Make one attempt; the text comes in one piece."""
        reply = await self.generate(call)
        yield Delta(reply.text)
        yield Delta("", reply)

    # ------------------------------------------------------------ gathering

    def _asked(self, model: str, body: bytes) -> asyncio.Future[Mapping[str, Any] | None]:
        """Give where the reply will be. Equal questions that wait at the same time are records of their own."""
        place = 0
        while (name := _name(model, body, place)) in self._records:
            place += 1
        line = b'{"recordId":"' + name.encode() + b'","modelInput":' + body + b"}\n"
        held = self._records[name] = self._new[name] = _Record(line, model)
        # Whoever waited may be gone; an error that nobody asks for is none.
        held.reply.add_done_callback(lambda done: done.cancelled() or done.exception())
        held.reply.add_done_callback(lambda _: self._records.pop(name, None))
        self._came.set()
        if self._gatherer is None or self._gatherer.done():
            self._gatherer = asyncio.create_task(self._gather())
        return held.reply

    async def _gather(self) -> None:
        """Wait until no more calls come, and make jobs of them; end when there are none."""
        loop = asyncio.get_running_loop()
        while self._new:
            ends = loop.time() + self._pace.longest
            while len(self._new) < self._pace.most and loop.time() < ends:
                self._came.clear()
                try:
                    async with asyncio.timeout(min(self._pace.quiet, ends - loop.time())):
                        await self._came.wait()
                except TimeoutError:
                    break
            names = list(self._new)[: self._pace.most]
            taken = {name: self._new.pop(name) for name in names}
            try:
                await self._begin(taken)
            except _FAILURES as error:
                _fail(taken.values(), _refusal(error))
            except BaseException:
                _fail(taken.values(), ProviderError("unavailable", "The batch job was not begun."))
                raise

    async def _begin(self, taken: dict[str, _Record]) -> None:
        """Follow the jobs that hold some of the records already, and create one for the others."""
        await asyncio.to_thread(self._look_up)
        for job in list(self._known.values()):
            held = {name: taken.pop(name) for name in job.records if name in taken}
            if held:
                self._follow(job, held)
        by_model: dict[str, dict[str, _Record]] = {}
        for name, record in taken.items():
            by_model.setdefault(record.model, {})[name] = record
        for model, records in by_model.items():
            if len(records) < self._pace.least:
                for record in records.values():
                    if not record.reply.done():
                        record.reply.set_result(None)
                continue
            job = _Job(secrets.token_hex(16), model, int(time.time()), list(records))
            data = b"".join(record.line for record in records.values())
            await asyncio.to_thread(partial(self._create, job, data))
            self._follow(job, records)

    def _look_up(self) -> None:
        """Read the lists of jobs that other processes made, or this one before it was restarted."""
        since = int(time.time()) - HOURS * 3600
        prefix = f"{self._place.key}jobs/"
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._place.bucket, Prefix=prefix, StartAfter=f"{prefix}{since:010d}"
        )
        for page in pages:
            for one in page.get("Contents", ()):
                key = one["Key"].rsplit("-", 1)[-1].removesuffix(".json")
                if key not in self._known and key not in self._read:
                    data = self._s3.get_object(Bucket=self._place.bucket, Key=one["Key"])["Body"].read()
                    value = from_json(data)
                    self._known[key] = _Job(
                        value["key"], value["model"], value["began"], value["records"], value.get("arn")
                    )

    def _create(self, job: _Job, data: bytes | None) -> None:
        """Store a job's list and input, create it, and store the list with its ARN. The key makes it one job."""
        if data is not None:
            self._put(f"input/{job.key}.jsonl", data)
            self._put(_list_key(job), _list(job))
        reply = self._bedrock.create_model_invocation_job(
            jobName=f"bundlectl-{job.key}",
            roleArn=self._role,
            clientRequestToken=job.key,
            modelId=job.model,
            modelInvocationType="Converse",
            inputDataConfig={
                "s3InputDataConfig": {"s3InputFormat": "JSONL", "s3Uri": self._uri(f"input/{job.key}.jsonl")}
            },
            outputDataConfig={"s3OutputDataConfig": {"s3Uri": self._uri(f"output/{job.key}/")}},
            timeoutDurationInHours=HOURS,
        )
        job.arn = reply["jobArn"]
        self._put(_list_key(job), _list(job))

    # ------------------------------------------------------------ following

    def _follow(self, job: _Job, records: dict[str, _Record]) -> None:
        self._known[job.key] = job
        task = asyncio.create_task(self._followed(job, records))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _followed(self, job: _Job, records: dict[str, _Record]) -> None:
        """Look at a job until it has ended, and give its replies to those who wait."""
        lost = ProviderError("unavailable", "The batch job was not followed to its end.")
        try:
            if job.arn is None:
                # Whoever made it was lost before it was told its name; the key gives the same job, or makes it.
                await asyncio.to_thread(partial(self._create, job, None))
            status = await self._end_of(job)
            found = await asyncio.to_thread(partial(self._replies, job, set(records)))
            for name, reply in found.items():
                if not records[name].reply.done():
                    records[name].reply.set_result(reply)
            lost = ProviderError("unavailable", f"The batch job gave no reply; it is {status}.", why=f"job {status}")
        except _FAILURES as error:
            lost = _refusal(error)
        finally:
            self._read.add(job.key)
            self._known.pop(job.key, None)
            _fail(records.values(), lost)

    async def _end_of(self, job: _Job) -> str:
        pause = self._pace.first_look
        while True:
            look = partial(self._bedrock.get_model_invocation_job, jobIdentifier=job.arn)
            try:
                status = str((await asyncio.to_thread(look))["status"])
            except _FAILURES as error:
                if _refusal(error).kind == "refused":
                    raise
                status = "unknown"
            if status in _ENDED:
                return status
            await asyncio.sleep(pause)
            pause = min(self._pace.last_look, pause * 1.5)

    def _replies(self, job: _Job, wanted: set[str]) -> dict[str, Mapping[str, Any]]:
        """Read a job's output; lines come in any order, and a job that was cut short lacks some."""
        found: dict[str, Mapping[str, Any]] = {}
        prefix = f"{self._place.key}output/{job.key}/"
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._place.bucket, Prefix=prefix)
        for page in pages:
            for one in page.get("Contents", ()):
                if one["Key"].endswith(".jsonl.out"):
                    body = self._s3.get_object(Bucket=self._place.bucket, Key=one["Key"])["Body"]
                    for line in body.iter_lines():
                        reply = _read_line(line)
                        if reply is not None and reply["recordId"] in wanted:
                            found[reply["recordId"]] = reply
        return found

    def _put(self, name: str, data: bytes) -> None:
        self._s3.put_object(Bucket=self._place.bucket, Key=f"{self._place.key}{name}", Body=data)

    def _uri(self, name: str) -> str:
        return f"s3://{self._place.bucket}/{self._place.key}{name}"


def _name(model: str, body: bytes, place: int) -> str:
    return hashlib.sha256(b"\0".join((model.encode(), str(place).encode(), body))).hexdigest()[:32]


def _list_key(job: _Job) -> str:
    return f"jobs/{job.began:010d}-{job.key}.json"


def _list(job: _Job) -> bytes:
    arn = {"arn": job.arn} if job.arn is not None else {}
    return to_json({"key": job.key, "model": job.model, "began": job.began, "records": job.records, **arn})


def _read_line(line: bytes) -> dict[str, Any] | None:
    """Read a line of output; ``None``: it is none."""
    if len(line) > MAX_REPLY * 2:
        return None
    try:
        value = from_json(line)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("recordId"), str):
        return None
    return value if "modelOutput" in value or "error" in value else None


def _fail(records: Iterable[_Record], error: ProviderError) -> None:
    for record in records:
        if not record.reply.done():
            record.reply.set_exception(error)


def _error(error: Any, what: str) -> ProviderError:
    """Say what a record's error means. Its message may repeat the prompt and is not kept."""
    code = error.get("errorCode") if isinstance(error, dict) else None
    number = int(code) if isinstance(code, int | str) and str(code).isdigit() else 500
    kind: ErrorKind = "refused"
    if number == 429:
        kind = "throttled"
    elif number == 408:
        kind = "timeout"
    elif number >= 500:
        kind = "unavailable"
    return ProviderError(kind, f"{what}: its record of the batch job failed.", why=f"record: {number}")


def _refusal(error: Exception) -> ProviderError:
    """Say what a call of Bedrock or S3 that failed means."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        plain = code.removesuffix("Exception").removesuffix("Error").lower()
        kind = KINDS.get(plain, "unavailable" if status >= 500 or not status else "refused")
        return ProviderError(kind, "The batch job was refused.", why=f"job: {code}")
    return ProviderError("unavailable", "The batch job cannot be reached.", why=f"job: {type(error).__name__}")
