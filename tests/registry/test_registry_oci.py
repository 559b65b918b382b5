"""Export and import; and what Debian's skopeo and docker-registry make of an export."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundlectl.model.errors import NotFound, UsageError, VerificationFailed
from bundlectl.registry.oci import export, import_, missing_from
from bundlectl.registry.registry import Registry
from bundlectl.storage.memory import MemoryStore
from tests.support.world import World, flip


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def layout(world: World, tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    export(world.registry, "support", world.bundle("v1").digest, folder)
    return folder


def blobs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "blobs" / "sha256").iterdir())


def check_import(world: World, folder: Path, attestations: int = 3) -> tuple[str, ...]:
    into = Registry(MemoryStore())
    found = import_(folder, into, "support")
    assert found.attestations == attestations
    assert (
        into.get_bundle("support", found.bundle).manifest_bytes
        == world.registry.get_bundle("support", found.bundle).manifest_bytes
    )
    if attestations == 3:
        assert into.attestations("support", found.bundle) == world.registry.attestations("support", found.bundle)
    return found.missing


def test_an_export_comes_back_whole(world: World, layout: Path) -> None:
    assert check_import(world, layout) == ()


def test_an_export_is_a_function_of_its_content(world: World, layout: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    export(world.registry, "support", world.bundle("v1", evidence=False).digest, again)
    assert blobs(again) == blobs(layout)
    assert (again / "index.json").read_bytes() == (layout / "index.json").read_bytes()


def test_descriptors_have_media_type_digest_and_size_only(layout: Path) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    inner = json.loads((layout / "blobs" / "sha256" / index["manifests"][0]["digest"][7:]).read_bytes())
    for descriptor in [*index["manifests"], *inner["manifests"]]:
        assert set(descriptor) == {"mediaType", "digest", "size"}
    attestation = json.loads((layout / "blobs" / "sha256" / inner["manifests"][1]["digest"][7:]).read_bytes())
    assert attestation["subject"] == inner["manifests"][0]


def test_export_does_not_write_into_a_folder_that_holds_something(world: World, layout: Path) -> None:
    with pytest.raises(UsageError, match="already holds"):
        export(world.registry, "support", world.bundle("v1").digest, layout)


def test_another_app_s_bundle_is_not_imported(layout: Path) -> None:
    with pytest.raises(VerificationFailed, match="not a bundle of app billing"):
        import_(layout, Registry(MemoryStore()), "billing")


def test_a_folder_that_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="oci-layout"):
        import_(tmp_path, Registry(MemoryStore()), "support")


def test_any_flipped_blob_is_refused_and_nothing_is_stored(layout: Path) -> None:
    for name in blobs(layout):
        path = layout / "blobs" / "sha256" / name
        true = path.read_bytes()
        store = MemoryStore()
        for at in {0, len(true) // 2, len(true) - 1}:
            path.write_bytes(flip(true, at))
            with pytest.raises(VerificationFailed):
                import_(layout, Registry(store), "support")
        assert list(store.list("")) == []
        path.write_bytes(true)


def test_a_missing_attestation_is_named(world: World, layout: Path) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    inner = json.loads((layout / "blobs" / "sha256" / index["manifests"][0]["digest"][7:]).read_bytes())
    gone = inner["manifests"][2]["digest"]
    (layout / "blobs" / "sha256" / gone[7:]).unlink()
    [missing] = check_import(world, layout, attestations=2)
    assert gone in missing


def test_a_missing_layer_is_refused(layout: Path, world: World) -> None:
    layer = world.bundle("v1").manifest.layers[0]
    (layout / "blobs" / "sha256" / layer.digest[7:]).unlink()
    with pytest.raises(VerificationFailed, match="not whole"):
        import_(layout, Registry(MemoryStore()), "support")


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_only_regular_files_are_read(layout: Path, tmp_path: Path, kind: str) -> None:
    path = layout / "index.json"
    true = tmp_path / "true.json"
    path.rename(true)
    if kind == "symlink":
        path.symlink_to(true)
    else:
        os.mkfifo(path)
    with pytest.raises(VerificationFailed):
        import_(layout, Registry(MemoryStore()), "support")


def test_an_attestation_about_another_bundle_is_refused(world: World, tmp_path: Path) -> None:
    bundle, other = world.bundle("v1"), world.bundle("v2")
    world.registry.attach("support", bundle.digest, "provenance", world.provenance(other))
    export(world.registry, "support", bundle.digest, tmp_path / "out")
    with pytest.raises(VerificationFailed, match="another bundle"):
        import_(tmp_path / "out", Registry(MemoryStore()), "support")


# ---------------------------------------------------------------- skopeo


def skopeo(*arguments: str) -> None:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def docker_registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry on a free loopback port; gives ``host:port``."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed (Debian package docker-registry)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path / 'images'}}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        host, _, port = address.partition(":")
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline, "docker-registry does not come up"
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.debian
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (Debian package skopeo)")
class TestSkopeo:
    def test_copy_all_keeps_every_digest(self, world: World, layout: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        skopeo("copy", "--all", f"oci:{layout}", f"oci:{copy}")
        assert blobs(copy) == blobs(layout)
        assert check_import(world, copy) == ()

    def test_copy_under_a_tag_is_imported(self, world: World, layout: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        skopeo("copy", "--all", f"oci:{layout}", f"oci:{copy}:v1")
        assert check_import(world, copy) == ()

    def test_a_copy_without_all_says_what_is_missing(self, world: World, layout: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        skopeo("copy", f"oci:{layout}", f"oci:{copy}")
        [missing] = missing_from(copy)
        assert "attestations" in missing and "--all" in missing
        assert check_import(world, copy, attestations=0) == (missing,)

    def test_push_and_pull_keep_every_digest(
        self, world: World, layout: Path, tmp_path: Path, docker_registry: str
    ) -> None:
        remote, copy = f"docker://{docker_registry}/support:v1", tmp_path / "copy"
        skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{layout}", remote)
        skopeo("copy", "--all", "--src-tls-verify=false", remote, f"oci:{copy}")
        assert blobs(copy) == blobs(layout)
        assert check_import(world, copy) == ()
