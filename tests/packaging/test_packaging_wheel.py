"""The wheel, installed into an empty folder: what it holds is all it needs, and the checkout is never looked at."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

WATCH = """\
import os, sys
def _watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith({root!r}) and not path.startswith({libraries!r}):
            with_log(path)
def with_log(path):
    handle = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (path + "\\n").encode())
    os.close(handle)
sys.addaudithook(_watch)
"""
"""Started by each interpreter of the installation: notes every file and folder of the checkout that is opened."""


@dataclass(frozen=True)
class Installed:
    """An installation; ``work`` is an empty folder to call it in, ``log`` what it looked at in the checkout."""

    wheel: Path
    python: Path
    work: Path
    log: Path

    def run(self, *argv: str, exits: int = 0) -> str:
        """Call the installed command; give its standard output."""
        return self._python(str(self.python.parent / "bundlectl"), *argv, exits=exits)

    def say(self, code: str) -> str:
        return self._python("-c", code)

    def _python(self, *argv: str, exits: int = 0) -> str:
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.work), "LANG": "C.UTF-8", "NO_COLOR": "1"}
        done = subprocess.run(
            [str(self.python), "-I", *argv], cwd=self.work, env=environ, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == exits, f"{argv}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("installation")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT)]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-I", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, cwd=folder, check=True)
    [own] = (folder / "venv" / "lib").glob("python*/site-packages")
    # The libraries are those of the running environment. Its own .pth files (the editable bundlectl) do not count.
    libraries = site.getsitepackages()[0]
    (own / "libraries.pth").write_text(f"{libraries}\nimport watch_opens\n")
    log = folder / "opened.txt"
    (own / "watch_opens.py").write_text(WATCH.format(root=f"{ROOT}{os.sep}", libraries=libraries, log=str(log)))
    (folder / "work").mkdir()
    yield Installed(wheel, python, folder / "work", log)
    assert not log.exists(), "the installation looked into the checkout: " + log.read_text()[:2000]


def test_the_wheel_holds_package_and_data_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
    for path in (
        "bundlectl/py.typed",
        "bundlectl/scaffold/bundle.yaml",
        "bundlectl/scaffold/gitignore",
        "bundlectl/evaluation/reports/page.css",
        "bundlectl/evaluation/reports/page.js",
        "bundlectl/data/README.md",
        "bundlectl/data/bundles/support/bundle.yaml",
        "bundlectl/data/bundles/support/tickets/northwind/nw-1001.md",
        "bundlectl/data/docs/concepts.md",
        "bundlectl/data/evals/support.jsonl",
        "bundlectl/data/schemas/output/promote.schema.json",
    ):
        assert path in names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"bundlectl"}
    assert [name for name in names if "__pycache__" in name or "/tests/" in name or ".bundlectl" in name] == []
    for folder in ("bundles", "evals", "docs", "schemas"):
        tracked = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
        missing = [path for path in tracked.stdout.splitlines() if f"bundlectl/data/{path}" not in names]
        assert missing == []


def test_data_is_found_beside_the_package(installed: Installed) -> None:
    said = installed.say("import bundlectl, bundlectl.resources as r; print(bundlectl.__file__); print(r.data_root())")
    package, data = (Path(line) for line in said.splitlines())
    assert installed.python.parents[1] in package.parents
    assert data == package.parent / "data"
    assert (data / "README.md").is_file() and (data / "schemas" / "bundle.schema.json").is_file()


def test_init_validate_build(installed: Installed) -> None:
    made = json.loads(installed.run("init", "x", "--app", "x", "-o", "json"))
    _fits("init", made)
    assert made["snapshot"].startswith("sha256:")
    valid = json.loads(installed.run("validate", "x", "-o", "json"))
    _fits("validate", valid)
    built = json.loads(installed.run("build", "x", "--registry", "x/.bundlectl/registry", "-o", "json"))
    _fits("build", built)
    assert built["reference"] == f"x@{valid['bundle']}"
    installed.run("validate", "nowhere", exits=2)


def test_the_example_is_valid_where_it_was_installed(installed: Installed) -> None:
    data = installed.say("import bundlectl.resources as r; print(r.data_root())").strip()
    there = json.loads(installed.run("validate", f"{data}/bundles/support", "-o", "json"))
    from bundlectl.actions.validate import validate

    assert there["bundle"] == validate(ROOT / "bundles" / "support").bundle


def test_demo(installed: Installed) -> None:
    installed.run("demo")


def _fits(verb: str, value: object) -> None:
    schema = json.loads((ROOT / "schemas" / "output" / f"{verb}.schema.json").read_text(encoding="utf-8"))
    assert [error.message for error in Draft202012Validator(schema).iter_errors(value)] == []
