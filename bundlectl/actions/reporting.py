"""Writing an evaluation's reports into a folder: JSON, JUnit, one HTML page, Markdown for a pull request."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bundlectl.evaluation.report import report_bytes
from bundlectl.evaluation.reports.html import page
from bundlectl.evaluation.reports.junit import junit
from bundlectl.evaluation.reports.markdown import markdown
from bundlectl.evaluation.reports.material import Material
from bundlectl.model.errors import UsageError

FILES = ("report.json", "junit.xml", "report.html", "report.md")


def check_folder(folder: Path) -> None:
    """Make the folder and see that files can be written to it: before a run, not after it.

    Raises:
        UsageError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_reports(folder: Path, material: Material) -> None:
    """Write the four files; ``report.json`` is byte for byte what the signed result's ``report`` is the digest of.

    The files hold questions and answers, so only their owner may read them.

    Raises:
        UsageError: the folder cannot be written.
    """
    contents = (
        report_bytes(material.report),
        junit(material),
        page(material).encode(),
        markdown(material).encode(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in zip(FILES, contents, strict=True):
            _write(folder / name, data)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"Reports cannot be written to {folder}.", why=error.strerror or str(error), fix="Name another folder."
    )
