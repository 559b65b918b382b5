"""Build is a function of content: the same source gives the same digest everywhere, another source another one."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundlectl.bundling.build import build
from bundlectl.bundling.lint import lint
from bundlectl.bundling.source import read_source
from bundlectl.model.bundle import Bundle, open_bundle
from bundlectl.model.canonical import canonical
from tests.bundling.sources import FIXTURES, fixture

ROOT = Path(__file__).parents[2]

GOLDEN = {
    "small": "sha256:b6f53bb9f37ac21bdc6a1a53123e50736a23a0cb516550789acf8c8467d681e9",
    "full": "sha256:99e95d90ac747e5ba20bd9191c2c22190d766992c88a045b001b3295ff4f6f87",
}
"""These never change: a bundle that was built once keeps its digest in every later version."""


def built(folder: Path) -> Bundle:
    return build(read_source(folder))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digests(name: str) -> None:
    assert built(FIXTURES / name).digest == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_built_opens_and_says_the_same(name: str) -> None:
    source = read_source(FIXTURES / name)
    bundle = build(source)
    opened = open_bundle(bundle.manifest_bytes, bundle.blobs, bundle.digest)
    assert opened.components == source.components
    assert {opened.file(ref.digest) for ref in opened.components.access.policies} <= set(source.files.values())


@pytest.mark.parametrize("name", GOLDEN)
def test_layers_are_canonical_sorted_and_bare(name: str) -> None:
    bundle = built(FIXTURES / name)
    manifest = json.loads(bundle.manifest_bytes)
    assert canonical(manifest) == bundle.manifest_bytes
    assert manifest["config"]["size"] == 2
    assert "annotations" not in manifest
    types = [layer["mediaType"] for layer in manifest["layers"]]
    assert types == sorted(types)
    for layer in manifest["layers"]:
        assert set(layer) == {"mediaType", "digest", "size"}
        if layer["mediaType"].endswith("+json"):
            data = bundle.blobs[layer["digest"]]
            assert canonical(json.loads(data)) == data


def test_defaults_are_written_out_and_what_is_absent_is_left_out() -> None:
    bundle = built(FIXTURES / "small")
    routes = json.loads(bundle.blobs[bundle.component_digests()["routes"]])
    assert routes == {
        "routes": {"only": {"fallback": [], "mode": "sync", "model": "plain", "retries": 1, "timeout": "30s"}},
        "select": [{"use": "only"}],
    }


def test_writing_a_default_changes_nothing(tmp_path: Path) -> None:
    root = fixture("small", tmp_path)
    path = root / "bundle.yaml"
    text = path.read_text()
    for old, new in (
        ("{model: plain}", "{retries: 1, timeout: 30s, model: plain, fallback: [], first_token: null}"),
        ("open: {}", "open: {input: {max_chars: 16000, detectors: []}}"),
        ("profiles: [open]}", "scopes: [], output: {repair: 1, format: text}, profiles: [open]}"),
        ("guardrails:", "retrieval: {}\nembedding:\nrollback: {target: previous}\nevaluation: {}\nguardrails:"),
        ("guardrails:", "access: {policies: [access/all.cedar], cases: access/cases.yaml}\nguardrails:"),
        ("app: small", "app: 'small'   # as text"),
    ):
        text = text.replace(old, new)
        path.write_text(text)
        assert built(root).digest == GOLDEN["small"], new


# --------------------------------------------------------- the same content, otherwise laid out


def shuffled(value: Any, seed: random.Random) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        seed.shuffle(keys)
        return {key: shuffled(value[key], seed) for key in keys}
    return [shuffled(item, seed) for item in value] if isinstance(value, list) else value


def rewritten(source: Path, target: Path, seed: random.Random) -> None:
    """Write a source again: files in another order, with other times and modes; keys in another order."""
    files = [path for path in source.rglob("*") if path.is_file()]
    seed.shuffle(files)
    for path in files:
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        if path.suffix == ".yaml":
            text = json.dumps(shuffled(yaml.safe_load(data), seed), ensure_ascii=False, indent=seed.choice([None, 1]))
            data = f"# {seed.random()}\n{text}\n".encode()
        elif path.suffix == ".json":
            data = json.dumps(shuffled(json.loads(data), seed), indent=seed.choice([None, 2, "\t"])).encode()
        to.write_bytes(data)
        to.chmod(seed.choice([0o400, 0o644, 0o777]))
        when = seed.randrange(0, 2**31)
        os.utime(to, (when, when))
    (target / "unrelated.txt").write_text(str(seed.random()))


@given(st.integers(0, 2**32), st.sampled_from(sorted(GOLDEN)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_of_files_keys_times_modes_and_layout_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, number: int, name: str
) -> None:
    target = tmp_path_factory.mktemp("copy")
    rewritten(FIXTURES / name, target, random.Random(number))
    assert built(target).digest == GOLDEN[name]
    shutil.rmtree(target)


# --------------------------------------------------------- other content


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("bundle.yaml", '"2.14.0-größe"', '"2.14.1"'),
        ("bundle.yaml", "app: full-app", "app: full-ap"),
        ("bundle.yaml", "repair: 2", "repair: 1"),
        ("bundle.yaml", "temperature: 0.7", "temperature: 0.70001"),
        ("bundle.yaml", "[1, 2.5, true, null", "[1, 2.5, true, false"),
        ("bundle.yaml", "[1, 2.5, true, null", '["1", 2.5, true, null'),
        ("bundle.yaml", '"\\n\\n", "END"', '"END", "\\n\\n"'),
        ("bundle.yaml", "timeout: 60s", "timeout: 1m"),
        ("bundle.yaml", "first_token: 3s, ", ""),
        ("bundle.yaml", "fallback: [fast, fallback]", "fallback: [fallback, fast]"),
        ("bundle.yaml", "over: 4000", "over: 4001"),
        ("bundle.yaml", "latency_class: batch, task", "latency_class: interactive, task"),
        ("bundle.yaml", "rerank: vector", "rerank: none"),
        ("bundle.yaml", "abcdef\n", "abcdee\n"),
        ("bundle.yaml", "stale_after: 7d", "stale_after: 168h"),
        ("bundle.yaml", "max_chars: 5000", "max_chars: 5001"),
        ("bundle.yaml", "action: block}\n        - {name", "action: flag}\n        - {name"),
        ("bundle.yaml", "suites: [answers, refusals]", "suites: [refusals, answers]"),
        ("bundle.yaml", "target: sha256:a", "target: sha256:b"),
        ("bundle.yaml", "scopes: [product, tickets]", "scopes: [tickets, product]"),
        ("prompts/answer.yaml", "stay as they are.", "stay as they are. "),
        ("prompts/answer.yaml", "漢字", "漢"),
        ("prompts/answer.yaml", "[question, plan]", "[question, plan, more]"),
        ("output/answer.schema.json", '"minLength": 1', '"minLength": 2'),
        ("output/answer.schema.json", '"minLength": 1', '"minLength": 1, "default": null'),
        ("access/main.cedar", '"agent"]', '"agent" ]'),
        ("access/extra/more.cedar", "@id(", "\n@id("),
        ("access/examples.yaml", "name: an agent under", "name: some agent under"),
        ("access/examples.yaml", "    scopes: [product]\n", ""),
    ],
)
def test_any_change_of_meaning_gives_another_digest(tmp_path: Path, file: str, old: str, new: str) -> None:
    root = fixture("full", tmp_path)
    text = (root / file).read_text("utf-8")
    assert text.count(old) == 1
    (root / file).write_text(text.replace(old, new), "utf-8")
    assert built(root).digest != GOLDEN["full"]


def test_bindings_suites_and_documents_are_no_part_of_it(tmp_path: Path) -> None:
    root = fixture("full", tmp_path)
    (root / "environments" / "prod.yaml").unlink()
    (root / "indexes" / "manual.yaml").unlink()
    assert built(root).digest == GOLDEN["full"]


# --------------------------------------------------------- other machines

SCRIPT = """
import sys
from pathlib import Path
from bundlectl.bundling.build import build
from bundlectl.bundling.source import read_source
print(build(read_source(Path(sys.argv[1]))).digest)
"""


def test_one_digest_in_other_folders_zones_locales_umasks_and_hash_seeds(tmp_path: Path) -> None:
    digests = []
    for number, (zone, language, seed, umask) in enumerate(
        [
            ("UTC", "C", "0", 0o022),
            ("Pacific/Kiritimati", "tr_TR.UTF-8", "4711", 0o077),
            ("Asia/Kolkata", "C", "1", 0),
        ]
    ):
        folder = tmp_path / ("x" * (number + 1)) / "größe mit leerzeichen"
        before = os.umask(umask)
        try:
            folder.mkdir(parents=True)
            shutil.copytree(FIXTURES / "full", folder / "full", copy_function=shutil.copyfile)
        finally:
            os.umask(before)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": seed,
            "TZ": zone,
            "LANG": language,
            "LC_ALL": language,
            "PYTHONUTF8": "0",
        }
        given, where = (str(folder / "full"), tmp_path) if number else ("full", folder)
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, given],
            cwd=where,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(run.stdout.strip())
    assert set(digests) == {GOLDEN["full"]}


# --------------------------------------------------------- the example


def test_the_example_validates_fast_and_lints_as_said() -> None:
    folder = ROOT / "bundles" / "support"
    built(folder)
    began = time.process_time()
    source = read_source(folder)
    build(source)
    findings = lint(source.components)
    assert time.process_time() - began < 1
    assert [finding.rule for finding in findings] == ["floating-snapshot"]
    assert set(source.bindings) == {"dev", "staging", "prod"}
