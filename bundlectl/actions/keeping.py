"""What a machine keeps of a registry that is far away, so that it need not ask again: all of it is verified anew."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from bundlectl.actions.context import Context


def keep(ctx: Context, name: str, text: str) -> None:
    """Write a file in the workspace's cache, whole or not at all; that it cannot be written is only told."""
    file = ctx.workspace / "cache" / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            Path(temporary).replace(file)
        finally:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
    except OSError as error:
        ctx.reporter.warn(f"{file} cannot be written: {error.strerror or error}")


def kept(ctx: Context, name: str) -> str | None:
    """Read it back; None if it is not there or cannot be read."""
    try:
        return (ctx.workspace / "cache" / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def keep_keyrings(ctx: Context, pin: str, chain: list[bytes]) -> None:
    """Keep the keyrings that follow from a pin. Not of a folder: reading them there costs nothing."""
    if ctx.registry_folder is None:
        keep(ctx, _keyrings(pin), json.dumps([data.decode("utf-8") for data in chain]))


def kept_keyrings(ctx: Context, pin: str) -> list[bytes]:
    """Give the keyrings that were kept, from version 1 on. Whoever reads them verifies them from the pin."""
    text = kept(ctx, _keyrings(pin)) if ctx.registry_folder is None else None
    try:
        found = json.loads(text) if text else []
    except ValueError:
        return []
    whole = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return [one.encode() for one in found] if whole else []


def _keyrings(pin: str) -> str:
    return f"keyrings.{pin.removeprefix('sha256:')[:16]}.json"
