"""The files of deploy/ are in step with the program: their commands parse, their paths and variables exist."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import yaml

from bundlectl.actions.listening import IDLE_SECONDS, configured
from bundlectl.router.openapi import openapi
from tests.cli import commands
from tests.support.workspace import ROOT

DEPLOY = ROOT / "deploy"
SERVE = ["serve", "support:prod", "--host", "0.0.0.0", "--port", "8080"]
GRACE = configured(lambda *_: None).timeout_graceful_shutdown


def parses(words: list[str]) -> None:
    problem = commands.Line("deploy", words, whole=True).problem()
    assert problem is None, problem


def known(names: set[str]) -> None:
    """Check that the program reads these variables."""
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "bundlectl").rglob("*.py"))
    for name in names:
        if name.startswith("BUNDLECTL_"):
            assert f'"{name}"' in code or f"{name}]" in code or f"{name};" in code, name


def instructions(name: str) -> list[tuple[str, str]]:
    """Give a container file's instructions; those of its last stage stand after the last FROM."""
    text = (DEPLOY / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def last_stage(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    at = max(n for n, (word, _) in enumerate(found) if word == "FROM")
    return found[at:]


def test_the_container_runs_the_server_as_nobody_with_nothing_to_install_by() -> None:
    every = instructions("Containerfile")
    final = last_stage(every)
    held = dict(final)
    assert held["USER"] == "10001:10001" and held["WORKDIR"] == "/var/lib/bundlectl" and held["EXPOSE"] == "8080"
    assert json.loads(held["ENTRYPOINT"]) == ["bundlectl"] and json.loads(held["CMD"]) == SERVE
    parses(json.loads(held["CMD"]))
    runs = [rest for word, rest in final if word == "RUN"]
    assert not any(re.search(r"\b(apt-get|gcc|install)\b", run) for run in runs)
    assert any("uninstall --yes" in run and " pip" in run for run in runs)
    installs = [rest for word, rest in every if word == "RUN" and " install " in rest]
    assert any("--require-hashes -r /install/requirements.lock" in run for run in installs)
    assert all("--require-hashes" in run or "--no-index" in run for run in installs)
    assert all(shlex.split(run) for run in runs + installs)
    source = next(rest for word, rest in every if word == "COPY").split()[0]
    assert source == "deploy/requirements.lock" and (ROOT / source).is_file()
    check = json.loads(held["HEALTHCHECK"].partition("CMD ")[2])
    compile(check[2], "check", "exec")
    assert "/readyz" in check[2] and "/readyz" in openapi()["paths"]


def locked(name: str) -> dict[str, str]:
    """Give the version of each name that a lock pins; all have hashes, and no address is named."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    return dict(entry.split()[0].split("==") for entry in entries)


def test_the_locks_are_in_step() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]

    def wanted(*names: str) -> set[str]:
        found = set()
        for line in [*project["dependencies"], *(line for name in names for line in extras[name])]:
            own = re.fullmatch(r"bundlectl\[(.+)\]", line)
            found |= wanted(*own[1].split(",")) if own else {re.split(r"[\[<>=]", line)[0].lower()}
        return found

    demo, server, everything = map(locked, ("requirements.lock", "deploy/requirements.lock", "requirements-dev.lock"))
    assert wanted("router", "rag") <= demo.keys()
    assert wanted("server") <= server.keys()
    assert wanted("all", "dev") <= everything.keys()
    assert demo.items() <= server.items() <= everything.items(), "what is served is what was tested: make lock"


def test_the_function_flushes_and_works_on_no_batches() -> None:
    found = instructions("Containerfile.lambda")
    held = dict(last_stage(found))
    parses(json.loads(held["CMD"]))
    settings = dict(pair.split("=", 1) for pair in held["ENV"].split())
    assert settings["BUNDLECTL_FLUSH"] == "1" and settings["AWS_LWA_READINESS_CHECK_PATH"] == "/readyz"
    assert settings["AWS_LWA_PORT"] == json.loads(held["CMD"])[json.loads(held["CMD"]).index("--port") + 1]
    known(set(settings))


def test_the_unit_stops_it_gently() -> None:
    text = (DEPLOY / "bundlectl.service").read_text(encoding="utf-8")
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    program, *words = shlex.split(settings["ExecStart"])
    assert Path(program).name == "bundlectl"
    parses(words)
    assert int(settings["TimeoutStopSec"]) > GRACE + 10 and settings["KillSignal"] == "SIGTERM"
    assert settings["WorkingDirectory"] == f"/var/lib/{settings['StateDirectory']}"
    known(set(re.findall(r"BUNDLECTL_\w+", text)))


def test_the_task_and_the_manifests() -> None:
    task: dict[str, Any] = json.loads((DEPLOY / "ecs-task.json").read_text(encoding="utf-8"))
    [box] = task["containerDefinitions"]
    parses(box["command"])
    known({one["name"] for one in box["environment"]})
    assert box["stopTimeout"] > GRACE + 10 and box["readonlyRootFilesystem"] is True
    assert {one["sourceVolume"] for one in box["mountPoints"]} == {one["name"] for one in task["volumes"]}
    parts = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "eks.yaml").read_text(encoding="utf-8"))}
    assert set(parts) == {"ServiceAccount", "StatefulSet", "Service", "PodDisruptionBudget"}
    pod = parts["StatefulSet"]["spec"]["template"]["spec"]
    [box] = pod["containers"]
    parses(box["args"])
    known({one["name"] for one in box["env"]})
    pause = int(box["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > GRACE + pause + 10
    probes = {name: box[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    assert set(probes.values()) <= set(openapi()["paths"])
    assert pod["serviceAccountName"] == parts["ServiceAccount"]["metadata"]["name"]
    labels = parts["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("StatefulSet", "PodDisruptionBudget"):
        assert parts[kind]["spec"]["selector"]["matchLabels"] == labels
    assert parts["Service"]["spec"]["selector"] == labels
    volumes = {one["name"] for one in pod["volumes"]}
    claims = {one["metadata"]["name"] for one in parts["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert {one["name"] for one in box["volumeMounts"]} == volumes | claims


def test_the_page_says_what_holds() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert f"up to {GRACE} seconds" in page and f"below {IDLE_SECONDS} seconds" in page
    for file in DEPLOY.iterdir():
        assert f"deploy/{file.name}" in page
