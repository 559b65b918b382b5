"""Chunks, snapshots and tables: a function of content, whole or not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.canonical import canonical, hex_of
from bundlectl.model.documents import Chunking, Snapshot
from bundlectl.model.errors import BackendUnavailable, BundlectlError, NotFound, UsageError
from bundlectl.retrieval import index as index_module
from bundlectl.retrieval.chunking import count_tokens, cut, searched_text
from bundlectl.retrieval.index import build_index, open_index, snapshot_digest
from tests.retrieval.builders import EMBEDDING, HashEmbedder, acl, asker, built, document, use

PAGES = [
    document("b.md", "# Pumps\n\nOil them weekly.\n\n## Spares\n\nSeals and oil."),
    document("a.md", "# Valves\n\nReplace the seal.", acl("acme", roles=["lead", "agent"])),
]


# ---------------------------------------------------------------- chunks


@settings(deadline=None)
@given(
    st.text(alphabet="ab .,\n#é漢-", max_size=400),
    st.integers(16, 40),
    st.integers(0, 8),
)
def test_offsets_point_at_the_text(text: str, tokens: int, overlap: int) -> None:
    made = document("a.md", text + "\n\n# Heading\n\n" + text)
    chunks = cut(made, Chunking(tokens=tokens, overlap=overlap))
    assert [chunk.id for chunk in chunks] == sorted({chunk.id for chunk in chunks})
    for chunk in chunks:
        assert made.text[chunk.start : chunk.end] == chunk.text != ""
        assert chunk.tokens == count_tokens(chunk.text) <= tokens
    if overlap == 0:
        words = "".join(made.text[s.start : s.end] for s in made.sections).split()
        assert "".join(words) == "".join("".join(chunk.text.split()) for chunk in chunks)


def test_chunks_stay_within_sections() -> None:
    made = document("a.md", "# A\n\n" + "One two three. " * 40 + "\n\n## B\n\nshort")
    chunks = cut(made, Chunking(tokens=30))
    assert len(chunks) > 3
    assert [chunk.section for chunk in chunks[-2:]] == [["A"], ["A", "B"]]
    assert chunks[-1].id == "a.md#0001.000"
    assert searched_text(chunks[-1]) == "A\nA > B\nshort"


def test_overlap_repeats_the_end() -> None:
    text = "# A\n\n" + " ".join(f"word{n}." for n in range(100))
    first, second, *_ = cut(document("a.md", text), Chunking(tokens=30, overlap=10))
    assert first.start < second.start < first.end < second.end


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("retrieval", 2), ("2026", 2), ("a, b!", 4), ("漢字", 2), ("naïve", 3)]
)
def test_token_estimate(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens


# ---------------------------------------------------------------- snapshots


def test_snapshot_is_a_function_of_content_and_settings(tmp_path: Path) -> None:
    one = built(tmp_path / "1", PAGES)
    assert one == built(tmp_path / "2", list(reversed(PAGES)))
    assert Snapshot.model_validate_json(canonical(one.form())) == one
    others = [
        built(tmp_path / "3", PAGES[:1]),
        built(tmp_path / "4", PAGES, chunking=Chunking(tokens=16)),
        built(tmp_path / "5", [PAGES[0], document("a.md", "# Valves\n\nReplace the seal.", acl("acme"))]),
        built(tmp_path / "6", [PAGES[0], document("a.md", "# Valves\n\nReplace a seal.", PAGES[1].acl)]),
        built(tmp_path / "7", [PAGES[0], document("c.md", "# Valves\n\nReplace the seal.", PAGES[1].acl)]),
    ]
    assert len({snapshot_digest(snapshot) for snapshot in [one, *others]}) == 6


def test_snapshot_digest_is_golden(tmp_path: Path) -> None:
    """Never changes: bundles pin it. A change here needs a new kind of snapshot."""
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from tests.retrieval.test_retrieval_index import PAGES, built, snapshot_digest\n"
        "print(snapshot_digest(built(Path(sys.argv[1]), PAGES)))"
    )
    made = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": str(tmp_path)},
    )
    assert made.stdout.strip() == snapshot_digest(built(tmp_path, PAGES)) == GOLDEN


GOLDEN = "sha256:bd353291790f9ff391b4eecd821ead6c8e72ee72d7b277f971295d961d0a0d3f"


def test_sections_ignore_reflow_but_not_words(tmp_path: Path) -> None:
    def sections(text: str) -> list[str]:
        snapshot = built(tmp_path, [document("a.md", text)])
        return [section.digest for section in snapshot.documents[0].sections]

    assert sections("# A\n\none two\nthree") == sections("# A\n\none\ntwo   three\n")
    assert sections("# A\n\none two") != sections("# A\n\none Two")


# ---------------------------------------------------------------- tables


def test_build_again_does_no_work(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    snapshot = built(tmp_path, PAGES, embedder)
    folder = tmp_path / hex_of(snapshot_digest(snapshot))
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    built(tmp_path, PAGES, embedder)
    assert embedder.calls == 1
    assert before == sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_damaged_tables_are_built_again(tmp_path: Path) -> None:
    snapshot = built(tmp_path, PAGES)
    folder = tmp_path / hex_of(snapshot_digest(snapshot))
    for path in (folder / "chunks.lance" / "data").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BackendUnavailable):
        open_index(tmp_path, snapshot, None).search_now("oil", asker(), use())
    built(tmp_path, PAGES)
    assert open_index(tmp_path, snapshot, None).search_now("oil", asker(), use()).hits
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_crash_while_building_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(index_module, "_put_in_place", crash)
        with pytest.raises(KeyboardInterrupt):
            built(tmp_path, PAGES)
    assert list(tmp_path.iterdir()) == []
    snapshot = built(tmp_path, PAGES)
    assert open_index(tmp_path, snapshot, None).search_now("oil", asker(), use()).hits


def test_second_builder_leaves_the_firsts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = index_module.write_tables

    def overtaken(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as inner:
            inner.setattr(index_module, "write_tables", write)
            built(tmp_path, PAGES)

    monkeypatch.setattr(index_module, "write_tables", overtaken)
    snapshot = built(tmp_path, PAGES)
    assert [path.name for path in tmp_path.iterdir()] == [hex_of(snapshot_digest(snapshot))]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendUnavailable, match="cannot be read or written"):
        built(tmp_path / "file", PAGES)


def test_not_there(tmp_path: Path) -> None:
    snapshot = built(tmp_path, PAGES)
    with pytest.raises(NotFound, match="No index at"):
        open_index(tmp_path / "elsewhere", snapshot, None)


def test_flipped_bytes_give_an_error_or_the_truth(tmp_path: Path) -> None:
    """Whatever file is damaged, a search fails clearly, or serves only what the snapshot lists."""
    snapshot = built(tmp_path, PAGES)
    folder = tmp_path / hex_of(snapshot_digest(snapshot))
    listed = {digest for page in snapshot.documents for digest in page.chunks}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for at in sorted({len(data) // 7, len(data) // 2, len(data) - 1}):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
            try:
                found = open_index(tmp_path, snapshot, HashEmbedder()).search_now(
                    "oil seal", asker("zeta"), use("hybrid")
                )
            except BundlectlError:
                continue
            finally:
                path.write_bytes(data)
            assert {hit.digest for hit in found.hits} <= listed
            assert all(hit.chunk.digest() == hit.digest for hit in found.hits)
            assert all(hit.chunk.acl.tenant == "*" for hit in found.hits)


# ---------------------------------------------------------------- what is refused


def test_no_documents(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no documents"):
        built(tmp_path, [])


def test_two_documents_with_one_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two documents with one key"):
        built(tmp_path, [PAGES[0], PAGES[0]])


def test_vectors_of_another_dimension(tmp_path: Path) -> None:
    settings_ = EMBEDDING.model_copy(update={"dimensions": 8})
    with pytest.raises(UsageError, match="16"):
        build_index("d", PAGES, chunking=Chunking(), embedding=settings_, embedder=HashEmbedder(), folder=tmp_path)


def test_embedder_of_another_dimension(tmp_path: Path) -> None:
    snapshot = built(tmp_path, PAGES)
    other = snapshot.model_copy(update={"embedding": EMBEDDING.model_copy(update={"dimensions": 8})})
    with pytest.raises(UsageError, match="dimensions"):
        open_index(tmp_path, other, HashEmbedder())
