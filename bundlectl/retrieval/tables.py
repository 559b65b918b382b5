"""The index on disk: two LanceDB tables per snapshot, and how they are written and opened.

``chunks`` holds one row per chunk. ``form`` is the chunk's canonical JSON: its digest is what the snapshot
lists, and what is served is read from these verified bytes alone. The other columns only help to find it.
``partitions`` holds one row per set of labels, with the BM25 statistics of the chunks that carry it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from bundlectl.inference.words import terms
from bundlectl.model.canonical import canonical
from bundlectl.model.documents import Acl, Chunk
from bundlectl.model.errors import BackendUnavailable, MissingExtra, NotFound
from bundlectl.retrieval.chunking import searched_text
from bundlectl.retrieval.files import damage, write_list
from bundlectl.retrieval.scoring import Partition

CHUNKS = "chunks"
PARTITIONS = "partitions"

TERM_BYTES = 1024
"""No term is longer: words are cut at 64 characters before."""


def write_tables(folder: str, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]], dimensions: int) -> None:
    """Write both tables into an empty folder, rows in order of chunk id."""
    lancedb, pa = _lancedb()
    from lancedb.index import FTS, Bitmap

    numbers = _number(chunks)
    rows: list[dict[str, Any]] = []
    counted: dict[int, Counter[str]] = {number: Counter() for number in numbers.values()}
    sizes: Counter[int] = Counter()
    lengths: Counter[int] = Counter()
    for chunk, vector in sorted(zip(chunks, vectors, strict=True), key=lambda pair: pair[0].id):
        found = terms(searched_text(chunk))
        number = numbers[_labels(chunk.acl)]
        counted[number].update(set(found))
        sizes[number] += 1
        lengths[number] += len(found)
        rows.append(
            {
                "id": chunk.id,
                "partition": number,
                "terms": _joined(found),
                "length": len(found),
                "vector": list(vector),
                "form": canonical(chunk.form()),
            }
        )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("partition", pa.int32()),
            ("terms", pa.string()),
            ("length", pa.int32()),
            ("vector", pa.list_(pa.float32(), dimensions)),
            ("form", pa.binary()),
        ]
    )
    labels = {number: acl for acl, number in numbers.items()}
    partitions = [
        {
            "number": number,
            "tenant": labels[number][0],
            "scope": labels[number][1],
            "roles": list(labels[number][2]),
            "chunks": sizes[number],
            "length": lengths[number],
            "terms": sorted(counted[number]),
            "counts": [counted[number][term] for term in sorted(counted[number])],
        }
        for number in sorted(labels)
    ]
    partition_schema = pa.schema(
        [
            ("number", pa.int32()),
            ("tenant", pa.string()),
            ("scope", pa.string()),
            ("roles", pa.list_(pa.string())),
            ("chunks", pa.int64()),
            ("length", pa.int64()),
            ("terms", pa.list_(pa.string())),
            ("counts", pa.list_(pa.int64())),
        ]
    )
    with reported(folder):
        database = lancedb.connect(folder)
        table = database.create_table(CHUNKS, pa.Table.from_pylist(rows, schema=schema))
        # terms come ready made: the index must find exactly these, and treat none of them in its own way
        table.create_index(
            "terms",
            config=FTS(
                base_tokenizer="whitespace",
                stem=False,
                remove_stop_words=False,
                lower_case=False,
                ascii_folding=False,
                max_token_length=TERM_BYTES,
            ),
        )
        table.create_index("partition", config=Bitmap())
        database.create_table(PARTITIONS, pa.Table.from_pylist(partitions, schema=partition_schema))
        write_list(Path(folder))


def open_tables(folder: str, storage_options: dict[str, str] | None = None) -> tuple[Any, list[Partition]]:
    """Open the chunks' table and read the partitions.

    Raises:
        NotFound: the folder holds no index.
        BackendUnavailable: it cannot be read, or a file of it is not what was written.
    """
    lancedb, _ = _lancedb()
    if "://" not in folder and not Path(folder).is_dir():
        raise NotFound(f"No index at {folder}.", fix="Build it: bundlectl index build SOURCE")
    if "://" not in folder:
        _check_files(Path(folder))
    with reported(folder):
        database = lancedb.connect(folder, storage_options=storage_options)
        table = database.open_table(CHUNKS)
        rows = database.open_table(PARTITIONS).to_arrow().to_pylist()
    partitions = [
        Partition(
            number=row["number"],
            acl=Acl(tenant=row["tenant"], scope=row["scope"], roles=row["roles"]),
            chunks=row["chunks"],
            length=row["length"],
            frequencies=dict(zip(row["terms"], row["counts"], strict=True)),
        )
        for row in sorted(rows, key=lambda row: row["number"])
    ]
    return table, partitions


def _check_files(folder: Path) -> None:
    with reported(str(folder)):
        wrong = damage(folder)
    if wrong is not None:
        raise BackendUnavailable(
            f"The index at {folder} is damaged.", why=wrong, fix="Build it again: bundlectl index build SOURCE"
        )


@contextmanager
def reported(folder: str) -> Iterator[None]:
    """Turn what LanceDB raises for damaged or missing data (ValueError, RuntimeError, OSError) into ours."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise BackendUnavailable(
            f"The index at {folder} cannot be read or written.",
            why=str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
            fix="Build it again: bundlectl index build SOURCE",
        ) from error


def _joined(found: Sequence[str]) -> str:
    # two spaces between terms: each then stands between spaces of its own, and counting " term " misses none
    return f" {'  '.join(found)} "


def _labels(acl: Acl) -> tuple[str, str, tuple[str, ...]]:
    return acl.tenant, acl.scope, tuple(sorted(set(acl.roles)))


def _number(chunks: Sequence[Chunk]) -> dict[tuple[str, str, tuple[str, ...]], int]:
    return {labels: number for number, labels in enumerate(sorted({_labels(chunk.acl) for chunk in chunks}))}


def _lancedb() -> tuple[ModuleType, ModuleType]:
    """Load LanceDB when an index is first used: it takes a second and a hundred megabytes."""
    try:
        import lancedb
        import pyarrow
    except ModuleNotFoundError as error:
        raise MissingExtra("Retrieval", "rag") from error
    return lancedb, pyarrow
