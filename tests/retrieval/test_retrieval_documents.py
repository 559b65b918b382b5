"""From an index source to documents: which files, whose they are, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bundlectl.model.documents import IndexSource
from bundlectl.model.errors import SourceError
from bundlectl.retrieval.documents import Document, read_documents

LABELLED = "---\ntenant: acme\nroles: [agent]\n---\n# Title\n\nText.\n"


def source(*entries: dict[str, Any], base: str = ".") -> IndexSource:
    return IndexSource.model_validate(
        {
            "apiVersion": "bundlectl/v1",
            "kind": "IndexSource",
            "index": "docs",
            "base": base,
            "sources": list(entries),
            "embedding": {"provider": "wordllama", "model": "l2_supercat", "dimensions": 256},
        }
    )


def everyone(*include: str, scope: str = "docs") -> dict[str, Any]:
    return {"scope": scope, "include": list(include), "tenant": "*", "roles": ["*"]}


def read(folder: Path, *entries: dict[str, Any], base: str = ".") -> list[Document]:
    return read_documents(source(*entries, base=base), folder / "index.yaml")


def refused(folder: Path, *entries: dict[str, Any], base: str = ".") -> str:
    with pytest.raises(SourceError) as caught:
        read(folder, *entries, base=base)
    return str(caught.value)


def put(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_keys_are_sorted_and_relative_to_base(tmp_path: Path) -> None:
    for name in ("docs/b.md", "docs/a.md", "docs/deep/c.md", "README.md"):
        put(tmp_path, name, "# T\n\nx")
    folder = tmp_path / "app" / "indexes"
    folder.mkdir(parents=True)
    found = read(folder, everyone("README.md", "docs/**/*.md"), base="../..")
    assert [document.key for document in found] == ["README.md", "docs/a.md", "docs/b.md", "docs/deep/c.md"]
    assert found == read(folder, everyone("docs/**/*.md", "docs/a.md", "README.md"), base="../..")


def test_index_source_wins_over_front_matter(tmp_path: Path) -> None:
    put(tmp_path, "a.md", "---\ntenant: '*'\nscope: public\nroles: ['*']\ntitle: T\nupdated: 2026-01-02\n---\nText.")
    (found,) = read(tmp_path, {"scope": "tickets", "include": ["*.md"], "tenant": "acme", "roles": ["lead"]})
    assert found.acl.form() == {"tenant": "acme", "scope": "tickets", "roles": ["lead"]}
    assert (found.title, found.updated) == ("T", "2026-01-02")


def test_front_matter_fills_what_is_open(tmp_path: Path) -> None:
    put(tmp_path, "a.md", LABELLED)
    (found,) = read(tmp_path, {"scope": "docs", "include": ["a.md"]})
    assert found.acl.form() == {"tenant": "acme", "scope": "docs", "roles": ["agent"]}


@pytest.mark.parametrize(
    ("labels", "entry", "missing"),
    [
        ("", {}, "no tenant and no roles"),
        ("---\ntenant: acme\n---\n", {}, "no roles"),
        ("---\nroles: [a]\n---\n", {}, "no tenant"),
        ("", {"tenant": "acme"}, "no roles"),
        ("", {"roles": ["a"]}, "no tenant"),
        ("", {"roles": [], "tenant": "acme"}, "no roles"),
        ("", {"roles": ["a"], "tenant": ""}, "no tenant"),
    ],
)
def test_never_public_by_default(tmp_path: Path, labels: str, entry: dict[str, Any], missing: str) -> None:
    put(tmp_path, "a.md", labels + "# T\n\nText.")
    message = refused(tmp_path, {"scope": "docs", "include": ["a.md"], **entry})
    assert f"a.md:1: the document has {missing}" in message


def test_every_files_problems_are_told(tmp_path: Path) -> None:
    put(tmp_path, "a.md", "---\ntenant: no\n---\nx")
    put(tmp_path, "b.md", b"\xff\xfe")
    put(tmp_path, "c.docx", "x")
    message = refused(tmp_path, everyone("*.md", "*.docx", "nothing/*.md"))
    assert "a.md:2: 'tenant' must be a string" in message
    assert "b.md:1: not UTF-8" in message
    assert "files ending in '.docx' cannot be indexed" in message
    assert "'nothing/*.md' matches no file" in message


@pytest.mark.parametrize("pattern", ["../x.md", "/etc/passwd", "docs/../../x.md", "a\\b.md", ""])
def test_patterns_stay_under_base(tmp_path: Path, pattern: str) -> None:
    put(tmp_path, "x.md", "x")
    assert "sources[0].include" in refused(tmp_path, everyone(pattern))


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    outside = put(tmp_path, "outside/secret.md", LABELLED)
    base = tmp_path / "base"
    put(base, "ok.md", LABELLED)
    (base / "link.md").symlink_to(outside)
    assert "link.md: reached through a symbolic link" in refused(base, everyone("*.md"))
    (base / "link.md").unlink()
    (base / "folder").symlink_to(outside.parent)
    assert "symbolic link" in refused(base, everyone("folder/*.md"))
    assert [document.key for document in read(base, everyone("**/*.md"))] == ["ok.md"]


def test_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    assert "symbolic link" in refused(tmp_path, everyone("*.md"))


def test_base_may_itself_be_reached_through_a_link(tmp_path: Path) -> None:
    put(tmp_path, "real/a.md", "# T\n\nx")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [document.key for document in read(tmp_path / "link", everyone("*.md"))] == ["a.md"]


def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    assert "not a regular file" in refused(tmp_path, everyone("*.md"))


def test_base_must_be_a_folder(tmp_path: Path) -> None:
    assert "is no folder" in refused(tmp_path, everyone("*.md"), base="nowhere")


def test_two_sources_may_not_share_a_file(tmp_path: Path) -> None:
    put(tmp_path, "a.md", "# T\n\nx")
    message = refused(tmp_path, everyone("*.md"), everyone("a.*", scope="other"))
    assert "included by both sources[0] and sources[1]" in message


def test_empty_document_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.md", "# Only a heading\n")
    assert "has no text" in refused(tmp_path, everyone("a.md"))


def test_line_ends_and_marks_do_not_matter(tmp_path: Path) -> None:
    put(tmp_path, "a.md", "# T\n\nüber\n")
    put(tmp_path, "b/a.md", "\ufeff# T\r\n\r\nu\u0308ber\r\n")
    (one,) = read(tmp_path, everyone("a.md"))
    (two,) = read(tmp_path / "b", everyone("a.md"))
    assert one == two


def test_version_covers_text_and_labels(tmp_path: Path) -> None:
    versions = set()
    for number, (text, roles) in enumerate([("x", "a"), ("y", "a"), ("x", "b")]):
        put(tmp_path, f"{number}/a.md", f"---\ntenant: acme\nroles: [{roles}]\n---\n{text}")
        versions.add(read(tmp_path / str(number), {"scope": "docs", "include": ["a.md"]})[0].version)
    assert len(versions) == 3


# ---------------------------------------------------------------- other formats


def test_html(tmp_path: Path) -> None:
    page = (
        "<!doctype html><html><head><title> The  page </title><style>p {}</style></head><body><nav>Menu</nav>"
        "<h1>Pumps &amp; <em>valves</em></h1><p>Oil\n   them <b>weekly</b>.</p><script>alert(1)</script>"
        "<h2>Spares</h2><ul><li>seal<li>oil</ul><pre>a\n  b</pre></body></html>"
    )
    put(tmp_path, "a.html", page)
    (found,) = read(tmp_path, everyone("*.html"))
    assert found.title == "The page"
    sections = [(section.path, found.text[section.start : section.end]) for section in found.sections]
    assert sections == [
        ((), "Menu"),
        (("Pumps & valves",), "Oil them weekly."),
        (("Pumps & valves", "Spares"), "seal\noil\na\n  b"),
    ]


def test_text(tmp_path: Path) -> None:
    put(tmp_path, "notes.txt", "---\nnot: labels\n---\n# nor a heading\n")
    (found,) = read(tmp_path, everyone("*.txt"))
    assert (found.title, [section.path for section in found.sections]) == ("notes", [()])
    assert found.text.startswith("---")


def pdf(*pages: str) -> bytes:
    """Write a minimal PDF by hand: one line of Helvetica per page."""
    count = len(pages)
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{' '.join(f'{4 + 2 * n} 0 R' for n in range(count))}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    at = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    data += b"".join(f"{offset:010} 00000 n \n".encode() for offset in offsets)
    return data + f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{at}\n%%EOF\n".encode()


def test_pdf(tmp_path: Path) -> None:
    put(tmp_path, "manual.pdf", pdf("Oil the pump weekly.", "", "Order seals."))
    (found,) = read(tmp_path, everyone("*.pdf"))
    sections = [(section.path, found.text[section.start : section.end]) for section in found.sections]
    assert sections == [(("page 1",), "Oil the pump weekly."), (("page 3",), "Order seals.")]
    assert found.title == "manual"


@pytest.mark.parametrize("data", [b"", b"not a pdf", pdf("x")[:80]])
def test_damaged_pdf(tmp_path: Path, data: bytes) -> None:
    put(tmp_path, "a.pdf", data)
    assert "a.pdf: " in refused(tmp_path, everyone("*.pdf"))


def test_pdf_without_text(tmp_path: Path) -> None:
    put(tmp_path, "scan.pdf", pdf("", ""))
    assert "a PDF without text" in refused(tmp_path, everyone("*.pdf"))
