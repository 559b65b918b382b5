"""Batches in a store, worked on over a queue: for servers and workers that share no disk.

::

    pending/<batch>                           accepted, perhaps not all in the queue yet
    accepted/<seconds until 2286>.<batch>     the newest first; the batch itself may be missing
    uploads/<upload>/<portion>.jsonl          rows as they came
    batches/<batch>/batch.json                what was accepted; whoever creates it has accepted
    batches/<batch>/cancelled.json
    batches/<batch>/results/<line>.json       a row's only result: whoever creates it was first
    batches/<batch>/tally/<line>.<state>.<millionths of a dollar>.<seconds since 1970>
    batches/<batch>/ended.json                the last state, once it does not change any more

A row's message is deleted only after its result and its tally are there, so a tally that is missing is made when the
message comes again, out of the result.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from pydantic_core import from_json, to_json

from bundlectl.model.batch import Batch, BatchCounts, BatchHeader, BatchResult
from bundlectl.model.errors import BackendUnavailable, VerificationFailed
from bundlectl.router.batch.book import BatchMissing, KeyTaken, NewRow
from bundlectl.router.batch.queue import Queue
from bundlectl.router.router import random_ids
from bundlectl.storage.store import AlreadyThere, KeyMissing, OutcomeUnknown, Store

_RATE_OVER: Final = 60.0
_FAR: Final = 9_999_999_999
_PORTIONS_KEPT: Final = 16
_AT_ONCE: Final = 16
_TRIES: Final = 3
_UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Named:
    """What a message says: a row by its place, and how often it was asked in vain."""

    batch: str
    portion: int
    place: int
    attempts: int = 0

    def body(self) -> str:
        """Write the message."""
        return json.dumps(
            {"batch": self.batch, "portion": self.portion, "place": self.place, "attempts": self.attempts}
        )


def read_message(body: str) -> Named | None:
    """Read a message; ``None`` when it is none of ours."""
    try:
        value = json.loads(body)
        named = Named(**value)
    except (ValueError, TypeError):
        return None
    numbers = (named.portion, named.place, named.attempts)
    return named if isinstance(named.batch, str) and all(type(one) is int for one in numbers) else None


class StoreBook:
    """Implements ``Book`` over a store and a queue."""

    def __init__(self, store: Store, queue: Queue, clock: Callable[[], datetime]) -> None:
        """Take the store, the queue and the present time."""
        self.queue = queue
        self._store = store
        self._clock = clock
        self._ids = random_ids()
        self._lock = threading.Lock()
        self._portions: dict[str, int] = {}
        self._read: OrderedDict[tuple[str, int], list[NewRow]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="batch-store")

    # ------------------------------------------------------------ handing in

    def begin(self) -> str:
        """See ``Book.begin``."""
        name = self._ids()
        self._portions[name] = 0
        return name

    def add(self, upload: str, rows: Sequence[NewRow]) -> None:
        """See ``Book.add``: one object a call."""
        number = self._portions[upload] + 1
        lines = [to_json({"line": row.line, "id": row.id}) + b"\n" + row.request + b"\n" for row in rows]
        self._create(_portion_key(upload, number), b"".join(lines))
        self._portions[upload] = number

    def discard(self, upload: str) -> None:
        """See ``Book.discard``."""
        for number in range(1, self._portions.pop(upload, 0) + 1):
            self._delete(_portion_key(upload, number))

    def accept(self, header: BatchHeader) -> tuple[BatchHeader, bool]:
        """See ``Book.accept``. With the queue away, a worker's sweep names the rows to it later."""
        portions = self._portions.pop(header.upload, None)
        if portions is None:
            raise BackendUnavailable("The rows of the batch are not there any more.", fix="Send it again.")
        held = self._find(header.id)
        if held is None:
            held = self._found(header)
        if held.upload != header.upload:
            self._portions[header.upload] = portions
            self.discard(header.upload)
            if held.body != header.body:
                raise KeyTaken(held.id)
            return held, False
        try:
            self.enqueue(held)
        except BackendUnavailable:
            return held, True  # it is pending, which is not forgotten
        return held, True

    def _found(self, header: BatchHeader) -> BatchHeader:
        """Create a batch, or give the one that another server created just now."""
        # What is only said about a batch comes before it: once it is there, nothing may fail any more.
        self._create(f"pending/{header.id}", str(int(self._now())).encode())
        self._create(f"accepted/{_FAR - int(header.created.timestamp()):010d}.{header.id}", b"{}")
        return BatchHeader.model_validate_json(
            self._create(_key(header.id, "batch.json"), header.model_dump_json().encode())
        )

    def enqueue(self, header: BatchHeader) -> None:
        """Name every row to the queue. Rows may be named twice, which costs a look at their result."""
        for key in self._store.list(f"uploads/{header.upload}/"):
            number = int(key.rsplit("/", 1)[1].partition(".")[0])
            rows = self._portion(header.upload, number)
            self.queue.send([Named(header.id, number, place).body() for place in range(len(rows))])
        self._delete(f"pending/{header.id}")

    def sweep(self, older: float) -> int:
        """Name the rows of batches whose server was lost on the way; give how many batches. ``older``: seconds."""
        done = 0
        for key in list(self._store.list("pending/")):
            batch = key.rsplit("/", 1)[1]
            try:
                began = float(self._store.get(key).data)
                if self._now() - began < older:
                    continue
                self.enqueue(self.header(batch))
                done += 1
            except BatchMissing:
                self._delete(key)
            except KeyMissing:
                continue  # its server got there meanwhile
        return done

    # ------------------------------------------------------------ looking

    def header(self, batch: str) -> BatchHeader:
        """See ``Book.header``."""
        held = self._find(batch)
        if held is None:
            raise BatchMissing(batch)
        return held

    def status(self, batch: str) -> Batch:
        """See ``Book.status``: a call for each 1,000 results, until it has ended."""
        header = self.header(batch)
        ended = self._get(_key(batch, "ended.json"))
        state = self.queue.state()
        if ended is not None:
            return Batch.model_validate_json(ended).model_copy(update={"queue": state})
        tallies = [_Tally.of(key) for key in self._store.list(_key(batch, "tally/"))]
        found = self._counted(header, tallies)
        if found.ended:
            self._create(_key(batch, "ended.json"), found.model_dump_json(exclude_none=True).encode())
            for key in list(self._store.list(f"uploads/{header.upload}/")):
                self._delete(key)  # what was asked is not kept longer than it is needed
        return found.model_copy(update={"queue": state})

    def page(self, batch: str, after: int, limit: int) -> list[tuple[int, bytes]]:
        """See ``Book.page``: sixteen results are read at once."""
        keys = self._store.list(_key(batch, "tally/"), _key(batch, f"tally/{after:08d}.zzz"))
        lines = [_Tally.of(key).line for key in islice(keys, limit)]
        read = self._pool.map(lambda line: self._store.get(_result_key(batch, line)).data, lines)
        return [(line, data.partition(b"\n")[2]) for line, data in zip(lines, read, strict=True)]

    def recent(self, limit: int) -> list[Batch]:
        """See ``Book.recent``."""
        batches = (key.rpartition(".")[2] for key in self._store.list("accepted/"))
        return [self.status(batch) for batch in islice((one for one in batches if self._find(one)), limit)]

    def cancel(self, batch: str) -> None:
        """See ``Book.cancel``: rows are told so when their messages come up."""
        if not self.status(batch).ended:
            self._create(_key(batch, "cancelled.json"), b"{}")

    def cancelled(self, batch: str) -> bool:
        """Say whether a batch was cancelled."""
        return self._get(_key(batch, "cancelled.json")) is not None

    def close(self) -> None:
        """See ``Book.close``."""
        self._pool.shutdown(wait=True)

    # ------------------------------------------------------------ working

    def row(self, header: BatchHeader, named: Named) -> NewRow | None:
        """Give the row that a message names; ``None`` when there is none there."""
        try:
            rows = self._portion(header.upload, named.portion)
        except KeyMissing:
            return None
        return rows[named.place] if 0 <= named.place < len(rows) else None

    def settled(self, batch: str, line: int) -> bool:
        """Say whether a row has its result; if so, see that it is counted."""
        held = self._get(_result_key(batch, line))
        if held is not None:
            self._create(_tally_key(batch, held), b"")
        return held is not None

    def finish(self, batch: str, result: BatchResult, usd: float | None) -> bool:
        """Store a row's result; False when it has one already, which stays."""
        meta = {"usd": usd, "finished": int(result.finished.timestamp())}
        data = to_json(meta) + b"\n" + result.model_dump_json(by_alias=True, exclude_none=True).encode()
        held = self._create(_result_key(batch, result.line), data)
        self._create(_tally_key(batch, held), b"")
        return held == data

    # ------------------------------------------------------------ inside

    def _counted(self, header: BatchHeader, tallies: Sequence[_Tally]) -> Batch:
        now = self._now()
        counts = dict.fromkeys(("answered", "refused", "failed", "cancelled"), 0)
        for one in tallies:
            counts[one.state] += 1
        left = header.rows - len(tallies)
        cancelled = self.cancelled(header.id)
        lately = sum(1 for one in tallies if one.finished > now - _RATE_OVER)
        rate = lately / max(1.0, min(_RATE_OVER, now - header.created.timestamp())) if left and lately else None
        if not left:
            state = "cancelled" if cancelled else "completed"
        else:
            state = "cancelling" if cancelled else "running" if tallies else "waiting"
        return Batch(
            id=header.id,
            app=header.app,
            environment=header.environment,
            identity=header.owner.name,
            state=state,  # type: ignore[arg-type]
            created=header.created,
            expires=header.expires,
            finished=datetime.fromtimestamp(max(one.finished for one in tallies), UTC) if not left else None,
            rows=header.rows,
            counts=BatchCounts(waiting=left, **counts),
            usd=None if any(one.usd is None for one in tallies) else sum(one.usd or 0.0 for one in tallies),
            rate=None if rate is None else round(rate, 3),
            eta_seconds=None if rate is None else round(left / rate, 1),
        )

    def _portion(self, upload: str, number: int) -> list[NewRow]:
        with self._lock:
            held = self._read.get((upload, number))
            if held is not None:
                self._read.move_to_end((upload, number))
                return held
        lines = self._store.get(_portion_key(upload, number)).data.splitlines()
        rows = [
            NewRow(place["line"], place["id"], request)
            for place, request in zip(map(from_json, lines[::2]), lines[1::2], strict=True)
        ]
        with self._lock:
            self._read[upload, number] = rows
            if len(self._read) > _PORTIONS_KEPT:
                self._read.popitem(last=False)
        return rows

    def _create(self, key: str, data: bytes) -> bytes:
        """Create an object where there is none; give what is there then."""
        for _ in range(_TRIES):
            try:
                self._store.create(key, data)
                return data
            except AlreadyThere:
                return self._store.get(key).data
            except OutcomeUnknown:
                held = self._get(key)
                if held is not None:
                    return held
        self._store.create(key, data)
        return data

    def _find(self, batch: str) -> BatchHeader | None:
        held = self._get(_key(batch, "batch.json"))
        return None if held is None else BatchHeader.model_validate_json(held)

    def _get(self, key: str) -> bytes | None:
        try:
            return self._store.get(key).data
        except KeyMissing:
            return None

    def _delete(self, key: str) -> None:
        try:
            self._store.delete(key)
        except (KeyMissing, OutcomeUnknown):
            return  # it is gone, or may stay: nothing rests on it

    def _now(self) -> float:
        return self._clock().timestamp()


@dataclass(frozen=True, slots=True)
class _Tally:
    """What a tally's key says of a row's result. ``usd`` is ``None`` when a price was not known."""

    line: int
    state: str
    usd: float | None
    finished: float

    @classmethod
    def of(cls, key: str) -> _Tally:
        line, state, usd, finished = key.rsplit("/", 1)[1].split(".")
        return cls(int(line), state, None if usd == _UNKNOWN else int(usd) / 1e6, float(finished))


def _key(batch: str, name: str) -> str:
    return f"batches/{batch}/{name}"


def _portion_key(upload: str, number: int) -> str:
    return f"uploads/{upload}/{number:06d}.jsonl"


def _result_key(batch: str, line: int) -> str:
    return _key(batch, f"results/{line:08d}.json")


def _tally_key(batch: str, held: bytes) -> str:
    """Make a tally's key out of the result that is stored, so that whoever makes it makes the same."""
    try:
        first, _, second = held.partition(b"\n")
        meta: dict[str, Any] = from_json(first)
        result = BatchResult.model_validate_json(second)
    except ValueError as error:
        raise VerificationFailed(f"A result of {batch} is damaged.", why=str(error)) from error
    usd = _UNKNOWN if meta["usd"] is None else str(round(meta["usd"] * 1e6))
    return _key(batch, f"tally/{result.line:08d}.{result.state}.{usd}.{meta['finished']}")
