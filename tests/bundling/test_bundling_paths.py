"""What a path may name: a regular file under the folder, and nothing else, without waiting for anything."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path

import pytest

from bundlectl.bundling.files import MAX_FILE, BadPath, Folder
from tests.bundling.sources import edit, fixture, only, problems

BUNDLE = "bundle.yaml"
ASK = "prompts/ask.yaml"
LINE = 5


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return fixture("small", tmp_path / "inner")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../ask.yaml", ["'../ask.yaml' must stay under its folder", "'..'"]),
        ("prompts/../../ask.yaml", ["must stay under"]),
        ("./prompts/ask.yaml", ["must stay under", "'.'"]),
        ("prompts//ask.yaml", ["empty part"]),
        ("prompts/ask.yaml/", ["empty part"]),
        ("/etc/passwd", ["'/etc/passwd' is not a relative path"]),
        ('"prompts\\\\ask.yaml"', ["not a relative path with /"]),
        ('"prompts/a\\0sk.yaml"', ["not a relative path"]),
        ('"prompts/\\u0061\\u0308sk.yaml"', ["normal form C"]),
        ("prompts/nothing.yaml", ["prompts/nothing.yaml does not exist"]),
        ("prompts/asks.yaml", ["does not exist", "did you mean 'ask.yaml'?"]),
        ("prompts/Ask.yaml", ["'Ask' is no prompt name"]),
        ("Prompts/ask.yaml", ["Prompts does not exist", "there is 'prompts'", "letter by letter"]),
        ("prompts", ["prompts is a folder", "only regular files"]),
        ("bundle.yaml/ask.yaml", ["bundle.yaml in bundle.yaml/ask.yaml is a file"]),
        ("prompts/" + "a" * 64 + ".yaml", ["does not exist"]),
    ],
)
def test_paths_in_bundle_yaml(small: Path, path: str, words: list[str]) -> None:
    edit(small, BUNDLE, "prompts/ask.yaml", path)
    only(small, BUNDLE, LINE, *words)


def test_what_lies_outside_is_not_read(small: Path) -> None:
    (small.parent / "ask.yaml").write_bytes((small / ASK).read_bytes())
    edit(small, BUNDLE, "prompts/ask.yaml", "../ask.yaml")
    only(small, BUNDLE, LINE, "must stay under its folder")


def test_link_to_a_file(small: Path) -> None:
    (small / ASK).rename(small / "prompts" / "real.yaml")
    (small / ASK).symlink_to("real.yaml")
    only(small, BUNDLE, LINE, "prompts/ask.yaml is a symbolic link", "only regular files")


def test_link_to_a_folder_on_the_way(small: Path) -> None:
    (small / "prompts").rename(small / "real")
    (small / "prompts").symlink_to("real")
    only(small, BUNDLE, LINE, "prompts in prompts/ask.yaml is a symbolic link")


def test_linked_bundle_yaml_bindings_and_access(small: Path) -> None:
    for name in ("bundle.yaml", "access"):
        (small / name).rename(small.parent / name)
        (small / name).symlink_to(small.parent / name)
        assert "symbolic link" in str(problems(small)[0])
        (small / name).unlink()
        (small.parent / name).rename(small / name)
    (small / "environments").mkdir()
    (small.parent / "prod.yaml").write_text("apiVersion: bundlectl/v1\n")
    (small / "environments" / "prod.yaml").symlink_to(small.parent / "prod.yaml")
    only(small, "environments/prod.yaml", 0, "is a symbolic link")


@pytest.mark.timeout(20)
def test_fifo_never_waits(small: Path) -> None:
    (small / ASK).unlink()
    os.mkfifo(small / ASK)
    only(small, BUNDLE, LINE, "prompts/ask.yaml is a named pipe", "only regular files")


@pytest.mark.timeout(20)
def test_fifo_as_bundle_yaml_and_among_policies(small: Path) -> None:
    os.mkfifo(small / "access" / "more.cedar")
    only(small, BUNDLE, 1, "access/more.cedar is a named pipe")
    (small / BUNDLE).unlink()
    os.mkfifo(small / BUNDLE)
    only(small, BUNDLE, 0, "bundle.yaml is a named pipe")


def test_socket(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / ASK).unlink()
    monkeypatch.chdir(small / "prompts")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("ask.yaml")
        only(small, BUNDLE, LINE, "prompts/ask.yaml is a socket")


def test_device() -> None:
    with pytest.raises(BadPath, match="null is a device"):
        Folder(Path("/dev")).read("null")


def test_too_large(small: Path) -> None:
    (small / ASK).write_bytes(b"#" * (MAX_FILE + 1))
    only(small, BUNDLE, LINE, "has 1,048,577 bytes", "at most 1,048,576")


def test_unreadable(small: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (small / ASK).chmod(0)
    only(small, BUNDLE, LINE, "Permission denied")


def test_names_that_are_one_on_other_machines(small: Path) -> None:
    (small / "prompts" / "ASK.yaml").touch()
    only(small, BUNDLE, LINE, "prompts/ask.yaml and 'ASK.yaml' differ only by case", "rename one")


def test_folder_with_a_name_in_another_unicode_form(small: Path) -> None:
    (small / unicodedata.normalize("NFD", "größe")).mkdir()
    edit(small, BUNDLE, "prompts/ask.yaml", "größe/ask.yaml")
    only(small, BUNDLE, LINE, "größe does not exist", "letter by letter")


@pytest.mark.parametrize(
    ("file", "line"),
    [(ASK, 2), ("access/all.cedar", 1), ("access/schema.cedarschema", 3), ("access/cases.yaml", 1), (BUNDLE, 1)],
)
def test_crlf_bom_and_other_encodings(small: Path, file: str, line: int) -> None:
    right = (small / file).read_bytes()
    lines = right.split(b"\n")
    (small / file).write_bytes(b"\n".join([*lines[: line - 1], lines[line - 1] + b"\r", *lines[line:]]))
    only(small, file, line, "CRLF", "LF line ends")
    (small / file).write_bytes(b"\xef\xbb\xbf" + right)
    only(small, file, 1, "byte order mark", "UTF-8 without BOM")
    (small / file).write_bytes(right + b"\xe9\n")
    only(small, file, right.count(b"\n") + 1, "0xe9 is not UTF-8")
    (small / file).write_bytes(right.decode().encode("utf-16"))
    assert "not UTF-8" in str(only(small, file, 1))
    (small / file).write_bytes(right)


def test_files_that_nothing_names_are_not_looked_at(small: Path) -> None:
    from bundlectl.bundling.source import read_source

    os.mkfifo(small / "prompts" / "other.yaml")
    (small / "prompts" / "broken.yaml").write_text("a: [")
    (small / "access" / ".hidden.cedar").write_text("nonsense")
    assert set(read_source(small).files) == {"access/all.cedar", "access/schema.cedarschema"}
