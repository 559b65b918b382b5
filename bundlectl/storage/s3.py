"""A store in S3: one object per key under ``s3://bucket/prefix``, its ETag as its tag (DESIGN 4).

- ``create``: PutObject with ``If-None-Match: *``; ``swap``: with ``If-Match: <tag>``. S3 decides who is first.
- 412 is the answer "somebody else". 409 (two conditional writes met) is none: it is read again, and repeated if
  nothing came between. A 5xx, a timeout or a cut connection after sending is ``OutcomeUnknown``, never repeated
  here: the repetition of a write that had landed would be told 412.
- Bodies carry SHA-256, checked by S3 when written and by the SDK when read.
- What may be repeated is repeated with full jitter inside one total deadline; a poll, inside a shorter one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from bundlectl.model.errors import UsageError
from bundlectl.storage.aws import (
    DEADLINE_SECONDS,
    POLL_READ_SECONDS,
    POLL_SECONDS,
    READ_SECONDS,
    AwsError,
    Failure,
    GivenUp,
    Lost,
    Patience,
    Refused,
    TooLate,
    failure_of,
    giving_up,
    open_client,
    refusal,
)
from bundlectl.storage.store import (
    MAX_OBJECT_BYTES,
    AlreadyThere,
    KeyMissing,
    OutcomeUnknown,
    Stored,
    StoreUnavailable,
    SwapLost,
    Tag,
    check_key,
    check_prefix,
    check_size,
    is_key,
)

Reply = TypeVar("Reply")

_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?", re.DOTALL)
_PIECE = 1024 * 1024


class S3Store:
    """Implements ``Store`` in a bucket. Threads may share it.

    Args:
        bucket: the bucket's name.
        prefix: what comes before every key, without slashes at its ends; "" for the whole bucket.
        client: a boto3 client of S3 that does not repeat calls; by default one from the default chain, and another
            one, which waits less, for polls.
        patience: how long to repeat what may be repeated; by default less for polls.
    """

    def __init__(self, bucket: str, prefix: str = "", *, client: Any = None, patience: Patience | None = None) -> None:
        self.url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience = patience or Patience(DEADLINE_SECONDS, READ_SECONDS)
        # What fails at once is repeated for as long as it can; what hangs, once.
        self._poll_patience = patience or Patience(POLL_SECONDS, 1.0)
        self._client = client if client is not None else open_client("s3")
        self._poll_client = client

    def get(self, key: str) -> Stored:
        """See ``Store.get``. An object over 64 MiB is ``StoreUnavailable``."""
        stored = self._get(key, None, self._client, self._patience)
        assert stored is not None  # only If-None-Match makes it None
        return stored

    def get_if_changed(self, key: str, tag: Tag) -> Stored | None:
        """See ``Store.get_if_changed``: If-None-Match, so that what is unchanged costs one call and no body.

        It is what resolvers poll with, so it gives up sooner: within :data:`POLL_SECONDS` and one silence.
        """
        if self._poll_client is None:
            self._poll_client = open_client("s3", read=POLL_READ_SECONDS)
        # An empty If-None-Match is no condition; no object has such a tag.
        return self._get(key, tag or None, self._poll_client, self._poll_patience)

    def create(self, key: str, data: bytes) -> Tag:
        """See ``Store.create``."""
        try:
            return self._put(key, data, None)
        except SwapLost as error:
            raise AlreadyThere(key) from error

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """See ``Store.swap``. ``SwapLost.found`` is not told unless it is known without asking."""
        return self._put(key, data, expected)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See ``Store.list``: a call for each 1,000 keys, made when they are asked for."""
        check_prefix(prefix)
        return self._list(prefix, after)

    def delete(self, key: str) -> None:
        """See ``Store.delete``. In a bucket with versions, the versions stay."""
        where = self._where(check_key(key))
        if self._tag_of(key) is None:
            raise KeyMissing(key)
        until = self._patience.until()
        self._call(lambda: self._client.delete_object(**where), until, "s3:DeleteObject", key, write=True)

    # ------------------------------------------------------------ reading

    def _get(self, key: str, unless: Tag | None, client: Any, patience: Patience) -> Stored | None:
        where = self._where(check_key(key))
        if unless is not None:
            where["IfNoneMatch"] = unless
        until = patience.until()

        def attempt() -> Stored | None:
            try:
                reply = client.get_object(**where, ChecksumMode="ENABLED")
            except AwsError as error:
                if failure_of(error).status == 304:
                    return None
                raise
            body = reply["Body"]
            try:
                return Stored(self._read(key, body, int(reply["ContentLength"]), until), reply["ETag"])
            finally:
                # Not `with body`: that gives the raw stream, on which no checksum is checked.
                body.close()

        try:
            return self._call(attempt, until, "s3:GetObject", key, write=False, patience=patience)
        except _NoSuchKey:
            raise KeyMissing(key) from None

    def _read(self, key: str, body: Any, size: int, until: float) -> bytes:
        if size > MAX_OBJECT_BYTES:
            raise StoreUnavailable(
                f"{key} was not read from {self.url}.",
                why=f"It has {size} bytes, and an object has at most {MAX_OBJECT_BYTES}.",
                fix="Find out who put it there.",
            )
        pieces = []
        # In pieces, so that a server that drips cannot hold this longer than the deadline.
        while piece := body.read(_PIECE):
            pieces.append(piece)
            if self._patience.monotonic() > until:
                raise TooLate(f"{sum(map(len, pieces))} of {size} bytes had come by then.")
        return b"".join(pieces)

    def _list(self, prefix: str, after: str) -> Iterator[str]:
        asked: dict[str, str] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if after:
            asked["StartAfter"] = self._prefix + after
        while True:
            until = self._patience.until()
            page = self._call(
                lambda: self._client.list_objects_v2(**asked), until, "s3:ListBucket", prefix, write=False
            )
            for entry in page.get("Contents", []):
                key = entry["Key"].removeprefix(self._prefix)
                # What is no key was put there by others: a console's "folder", a log.
                if is_key(key):
                    yield key
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _tag_of(self, key: str) -> Tag | None:
        where, until = self._where(key), self._patience.until()
        try:
            reply = self._call(lambda: self._client.head_object(**where), until, "s3:GetObject", key, write=False)
        except _NoSuchKey:
            return None
        return str(reply["ETag"])

    # ------------------------------------------------------------ writing

    def _put(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """Write if the key still is at ``expected``.

        Raises:
            SwapLost: it is not.
        """
        where = self._where(check_key(key))
        check_size(key, data)
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        if expected == "":
            raise SwapLost(key, expected=expected)
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        until = self._patience.until()

        def attempt() -> Any:
            return self._client.put_object(**where, **condition, Body=data, ChecksumSHA256=checksum)

        attempts = 0
        while True:
            try:
                return str(self._call(attempt, until, "s3:PutObject", key, write=True)["ETag"])
            except (_NotFirst, _NoSuchKey) as error:
                raise SwapLost(key, expected=expected) from error
            except _TwoMet as error:
                found = self._tag_of(key)
                if found != expected:
                    raise SwapLost(key, expected=expected, found=found) from error
                pause = self._patience.pause(attempts)
                if self._patience.monotonic() + pause + self._patience.attempt > until:
                    raise StoreUnavailable(
                        f"{key} was not written to {self.url} within {self._patience.deadline:g} s; nothing changed.",
                        why=str(error),
                        fix="Others write to the same key again and again: repeat later.",
                    ) from error
                attempts += 1
                self._patience.sleep(pause)

    # ------------------------------------------------------------ errors

    def _call(
        self,
        call: Callable[[], Reply],
        until: float,
        action: str,
        key: str,
        *,
        write: bool,
        patience: Patience | None = None,
    ) -> Reply:
        """Ask, and say what went wrong in the words of a store, except what depends on the method."""
        patience = patience or self._patience
        did = {"s3:PutObject": "written to", "s3:DeleteObject": "deleted from", "s3:ListBucket": "listed in"}
        what = f"{key or 'It'} was not {did.get(action, 'read from')} {self.url}"
        try:
            return patience.ask(call, until, write=write)
        except Refused as error:
            raise self._refused(error.failure, action, key, what) from error
        except Lost as error:
            raise OutcomeUnknown(
                f"S3 gave no clear answer to {action} of {key} in {self.url}; it may have been done.",
                why=error.failure.why,
                fix="Read it again: it is as it was, or as it was to be.",
            ) from error
        except GivenUp as error:
            said, fix = giving_up(error.failure, what, patience.deadline, "AWS_ENDPOINT_URL_S3")
            raise StoreUnavailable(said, why=error.failure.why, fix=fix) from error

    def _refused(self, failure: Failure, action: str, key: str, what: str) -> Exception:
        if failure.code == "NoSuchBucket":
            return StoreUnavailable(
                f"There is no bucket {self._bucket}.",
                why=failure.why,
                fix="Check the registry's address, the account and the region; or make it: bundlectl registry create.",
            )
        if failure.code in ("NoSuchKey", "404"):
            return _NoSuchKey(failure.why)
        if failure.code in ("PreconditionFailed", "412"):
            return _NotFirst(failure.why)
        if failure.status == 409:
            return _TwoMet(failure.why)
        arn = f"arn:aws:s3:::{self._bucket}"
        said, fix = refusal(failure, action, arn if action == "s3:ListBucket" else f"{arn}/{self._prefix}{key}")
        if failure.status == 403 and action == "s3:GetObject":
            # Without it S3 answers 403 for what is not there, and nothing can be told to be missing.
            fix += f" It also takes s3:ListBucket on {arn}: without it S3 says the same of what is not there."
        return StoreUnavailable(f"{what}: {said}.", why=failure.why, fix=fix)

    def _where(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}


class _NoSuchKey(Exception):
    """There is no such object."""


class _NotFirst(Exception):
    """412: the object is not as the condition says."""


class _TwoMet(Exception):
    """409: two conditional writes met, and S3 took neither side."""


def open_s3(url: str) -> S3Store:
    """Open the store at ``s3://bucket`` or ``s3://bucket/prefix``.

    Raises:
        UsageError: the URL is not such, or AWS is not configured.
    """
    found = _URL.fullmatch(url)
    prefix = (found["prefix"] or "").rstrip("/") if found else ""
    if found is None or (prefix and not is_key(prefix)):
        raise UsageError(
            f"{url!r} does not name a place in S3.",
            fix="Use s3://bucket or s3://bucket/prefix, with letters, digits and . _ = - in the prefix.",
        )
    return S3Store(found["bucket"], prefix)
