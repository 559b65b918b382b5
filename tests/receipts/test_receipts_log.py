"""Receipts on disk: written whole, found again, and never in a request's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bundlectl.model.contract import Cost, ReleaseRef
from bundlectl.model.errors import BackendUnavailable, NotFound, UsageError
from bundlectl.model.receipt import Receipt
from bundlectl.receipts import writer
from bundlectl.receipts.reader import find, recent
from bundlectl.receipts.writer import ReceiptLog, append

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64


def receipt(id_: str, time: datetime = NOON, **changes: Any) -> Receipt:
    values: dict[str, Any] = {
        "id": id_,
        "time": time,
        "identity": "local",
        "task": "answer",
        "tenant": "acme",
        "role": "agent",
        "scopes": ["product_docs"],
        "latency_class": "interactive",
        "response_format": "text",
        "profile": "plain",
        "release": ReleaseRef(app="support", environment="prod", epoch=1, serial=3, bundle=DIGEST, bindings=DIGEST),
        "components": {"prompts": DIGEST},
        "code_version": "0.1.0",
        "input_digest": "hmac-sha256:00",
        "cost": Cost(usd=0.0, price_book="USD-1"),
        "stages": {"access": 0.001},
    }
    return Receipt(**{**values, **changes})


def test_written_found_and_equal(tmp_path: Path) -> None:
    with ReceiptLog(tmp_path / "receipts", process="p1") as log:
        log.write(receipt("aaaa-1111"))
        log.flush()
        assert find(log.folder, "aaaa-1111") == receipt("aaaa-1111")
        log.write(receipt("bbbb-2222", NOON + timedelta(days=1)))
    assert (log.written, log.lost) == (2, 0)
    assert sorted(p.relative_to(log.folder).as_posix() for p in log.folder.glob("*/*")) == [
        "date=2026-11-23/p1.jsonl",
        "date=2026-11-24/p1.jsonl",
    ]
    line = (log.folder / "date=2026-11-23" / "p1.jsonl").read_text()
    assert json.loads(line) == receipt("aaaa-1111").form()
    assert "null" not in line


def test_by_prefix(tmp_path: Path) -> None:
    with ReceiptLog(tmp_path) as log:
        for id_ in ("abcdef-1", "abcdef-2", "abcxyz-3"):
            log.write(receipt(id_))
    assert find(tmp_path, "abcxyz").id == "abcxyz-3"
    with pytest.raises(UsageError, match="2 receipts begin"):
        find(tmp_path, "abcdef")
    for missing in ("abc", "nothing-here", 'x"'):
        with pytest.raises(NotFound):
            find(tmp_path, missing)
    with pytest.raises(NotFound):
        find(tmp_path / "no folder", "abcxyz")


def test_newest_first_with_filters(tmp_path: Path) -> None:
    with ReceiptLog(tmp_path) as log:
        for n in range(30):
            log.write(receipt(f"r-{n:03}", NOON + timedelta(hours=n), tenant="acme" if n % 2 else "zenith"))
    assert [r.id for r in recent(tmp_path, 3)] == ["r-029", "r-028", "r-027"]
    assert [r.id for r in recent(tmp_path, 2, tenant="zenith")] == ["r-028", "r-026"]
    assert len(recent(tmp_path, 100)) == 30
    assert recent(tmp_path, 5, task="other") == []
    assert recent(tmp_path / "none") == []
    assert [r.id for r in recent(tmp_path, 1, keep=lambda r: r.id < "r-010")] == ["r-009"]


def test_same_second_keeps_the_order_of_writing(tmp_path: Path) -> None:
    with ReceiptLog(tmp_path) as log:
        for n in range(12):
            log.write(receipt(f"r-{n}"))
    assert [r.id for r in recent(tmp_path, 12)] == [f"r-{n}" for n in reversed(range(12))]


def test_a_torn_line_is_left_out_and_reported(tmp_path: Path) -> None:
    with ReceiptLog(tmp_path, process="p") as log:
        log.write(receipt("whole-1"))
    path = tmp_path / "date=2026-11-23" / "p.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id":"torn-22","ti')
    seen: list[tuple[Path, int]] = []
    assert [r.id for r in recent(tmp_path, 5, on_damage=lambda p, n: seen.append((p, n)))] == ["whole-1"]
    assert seen == [(path, 2)]


def test_a_full_queue_loses_counts_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = writer.append

    def slow(*args: Any, **kwargs: Any) -> None:
        assert gate.wait(10)
        real(*args, **kwargs)

    monkeypatch.setattr(writer, "append", slow)
    told: list[str] = []
    log = ReceiptLog(tmp_path, capacity=5, on_loss=told.append)
    for n in range(50):
        log.write(receipt(f"r-{n}"))
    assert log.lost > 0 and len(told) == 1 and "could not be stored" in told[0]
    with pytest.raises(BackendUnavailable):
        log.flush(0.05)
    gate.set()
    log.close()
    assert log.written + log.lost == 50
    log.write(receipt("late"))
    assert log.lost + log.written == 51


def test_a_full_disk_loses_whole_lines_only_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    log = ReceiptLog(tmp_path, process="p", on_loss=told.append)
    log.write(receipt("before"))
    log.flush()
    real = os.write
    left = 40

    def full(handle: int, data: bytes) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(28, "No space left on device")
        taken = real(handle, bytes(data[:left]))
        left -= taken
        return taken

    monkeypatch.setattr(os, "write", full)
    log.write(receipt("lost-1"))
    log.flush()
    monkeypatch.setattr(os, "write", real)
    assert log.lost == 1 and "No space left" in told[0]
    log.write(receipt("after"))
    log.close()
    assert {r.id for r in recent(tmp_path, 10)} == {"before", "after"}


def test_the_size_limit_of_the_process_is_a_full_disk_too(tmp_path: Path) -> None:
    program = f"""
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
from bundlectl.receipts.writer import append
path = Path({str(tmp_path)!r}) / "x" / "p.jsonl"
append(path, b"a" * 90)
try:
    append(path, b"b" * 90)
except OSError as error:
    print(error.strerror)
print(path.stat().st_size)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["File too large", "90"]


def test_append_makes_private_files(tmp_path: Path) -> None:
    append(tmp_path / "d" / "f.jsonl", b"{}\n")
    assert (tmp_path / "d" / "f.jsonl").stat().st_mode & 0o077 == 0


def test_many_threads_write_at_once(tmp_path: Path) -> None:
    with ReceiptLog(tmp_path) as log:
        threads = [
            threading.Thread(target=lambda k=k: [log.write(receipt(f"t{k}-{n}")) for n in range(100)]) for k in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({r.id for r in recent(tmp_path, 1000)}) == 800


def test_a_receipt_that_has_no_json_is_lost_alone(tmp_path: Path) -> None:
    told: list[str] = []
    with ReceiptLog(tmp_path, on_loss=told.append) as log:
        for n in range(writer.TOGETHER + 2):
            log.write(receipt(f"r-{n:03}", route_why="half a pair: \ud800" if n == 3 else ""))
    assert (log.written, log.lost) == (writer.TOGETHER + 1, 1) and "r-003" in told[0]
    assert "r-003" not in {r.id for r in recent(tmp_path, 100)}
