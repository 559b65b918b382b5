"""Every way a source can be wrong: one problem, at its file and line, that says what would be right."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bundlectl.bundling.documents import load_document
from bundlectl.bundling.source import read_source
from bundlectl.model.bindings import Bindings
from bundlectl.model.errors import SourceError
from bundlectl.model.suite import Suite
from tests.bundling.sources import edit, fixture, only, problems

BUNDLE = "bundle.yaml"
PROMPT = "prompts/answer.yaml"
CASES = "access/examples.yaml"
POLICY = "access/main.cedar"
SCHEMA = "output/answer.schema.json"
PROD = "environments/prod.yaml"


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return fixture("full", tmp_path)


@pytest.mark.parametrize("name", ["small", "full"])
def test_a_right_source_is_read(name: str, tmp_path: Path) -> None:
    root = fixture(name, tmp_path)
    source = read_source(root)
    assert source.app == source.components.application.app
    assert read_source(root / BUNDLE).components == source.components


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # unknown fields
        ("    retrieval: docs", "    retreival: docs", ["unknown field 'retreival'", "tasks.answer", "'retrieval'"]),
        ("app: full-app", "app: full-app\nappl: x", ["unknown field 'appl'", "the file", "did you mean 'app'?"]),
        ("max_chars: 5000", "presidio: {entities: {email: block}}", ["'email' is not an entity of", "EMAIL_ADDRESS"]),
        ("max_chars: 5000", "max_char: 5000", ["unknown field 'max_char'", "guardrails.strict.input", "'max_chars'"]),
        ("timeout: 800ms", "timeot: 800ms", ["unknown field 'timeot'", "routes.fallback", "did you mean 'timeout'?"]),
        ("schema: output/", "schema_: output/", ["unknown field 'schema_'"]),
        # wrong types
        (
            "candidates: 80",
            "candidates: '80'",
            ["candidates: expected a whole number, got the text '80'", "write 80"],
        ),
        ("candidates: 80", "candidates: 080", ["expected a whole number, got the text '080'", "write 80, without"]),
        ("candidates: 80", "candidates: 1_000", ["whole number", "write 1000"]),
        ("candidates: 80", "candidates: 80.5", ["candidates", "whole number", "80.5"]),
        ("candidates: 80", "candidates:", ["expected a whole number, got nothing"]),
        ("candidates: 80", "candidates: [80]", ["expected a whole number, got a list"]),
        ('version: "2.14.0-größe"', "version: 2.14", ["version: expected text, got the number 2.14", '"2.14"']),
        ('version: "2.14.0-größe"', "version: true", ["version: expected text, got the boolean true", '"true"']),
        ("scopes: [product, tickets]", "scopes: product", ["scopes: expected a list, got the text", "[product]"]),
        ("scopes: [product, tickets]", "scopes: [product, 3]", ["item 2", "expected text, got the number 3"]),
        ("application: {version", "application: [version", ["not YAML"]),
        # values out of range or of the wrong form
        ("candidates: 80", "candidates: 5000", ["candidates: 5000 is out of range", "at most 1000"]),
        ("retries: 1,", "retries: -1,", ["retries: -1 is out of range", "at least 0"]),
        ("mode: hybrid", "mode: hybrd", ["mode: expected 'lexical', 'vector' or 'hybrid'", "did you mean 'hybrid'?"]),
        ("provider: extractive", "provider: extract", ["provider: expected", "did you mean 'extractive'?"]),
        ("timeout: 8s", "timeout: 8", ["timeout: expected a duration, got the number 8", "8s"]),
        ("timeout: 8s", "timeout: 8 s", ["'8 s' is no duration", "e.g. 8s"]),
        ("app: full-app", "app: Full App", ["'Full App' is not a name of an app", "lower-case"]),
        ("    mode: hybrid", "    mode: hybrid\n    mode: vector", ["'mode' is here a second time", "first on line"]),
        ("name: ticket_id, pattern: 'TKT-\\d{6}'", "entity: email, pattern: 'x'", ["either 'entity' or 'pattern'"]),
        (
            "snapshot: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "snapshot: latest",
            ["snapshot: expected 'following' or a digest (sha256:", "got the text 'latest'"],
        ),
        ("format: structured_json, schema: output/answer.schema.json", "format: text, schema: x.json", ["'schema'"]),
        ("stop: [", "stream: on\n      stop: [", ["on may be meant as text", 'write "on" if it is text, true if']),
        ("stop: [", "seed: 007\n      stop: [", ["007 may be meant", "7 if it is not"]),
        # names that must exist
        ("    retrieval: docs", "    retrieval: dosc", ["retrieval 'dosc', which is not defined", "'docs'?"]),
        ("profiles: [strict, phi", "profiles: [strikt, phi", ["profile 'strikt'", "did you mean 'strict'?"]),
        (
            "scopes: [product, tickets]",
            "scopes: [product, tickets, ticket]",
            ["scope 'ticket'", "manual.yaml", "'tickets'?"],
        ),
        (
            "scopes: [product, tickets]",
            "scopes: [product, tickets, product]",
            ["'product' is in the list a second time"],
        ),
        ("{model: plain,", "{model: plan,", ["model 'plan', which is not defined", "did you mean 'plain'?"]),
        ("fallback: [fast, fallback]", "fallback: [fasst]", ["falls back to 'fasst'", "did you mean 'fast'?"]),
        ("    - {use: fast}", "    - {use: fest}", ["rule 4 uses the route 'fest'", "did you mean 'fast'?"]),
        ("task: summarize}, use", "task: summarise}, use", ["task 'summarise'", "did you mean 'summarize'?"]),
        (
            "when: {profile: phi_restricted}",
            "when: {profile: phi}",
            ["profile 'phi'", "one of: phi_restricted, strict"],
        ),
        # routes and rules
        ("retries: 0, fallback: [fast, fallback]", "fallback: [complex]", ["circle: complex -> complex"]),
        ("{over: 4000, under: 90000}", "{over: 4000, under: 4001}", ["no number is over 4000 and under 4001"]),
        ("{over: 4000, under: 90000}", "{}", ["no bound is given", "{over: 4000}"]),
        ("when: {profile: phi_restricted}", "when: {}", ["'when' is empty", "leave it out"]),
        ("    - {use: fast}", "    - {use: fast}\n    - {use: complex}", []),
        ("fallback: []}", "fallback: [fast]}", ["restricted falls back to fast, which is another model (small)"]),
        # retrieval
        ("top: 8", "top: 90", ["top 90 is more than candidates 80"]),
        # guards
        ("pattern: 'TKT-\\d{6}'", "pattern: 'TKT-(\\d{6}'", ["missing )"]),
        ("pattern: 'TKT-\\d{6}'", "pattern: '(a)\\1'", ["\\1"]),
    ],
)
def test_bundle_yaml(full: Path, old: str, new: str, words: list[str]) -> None:
    line = edit(full, BUNDLE, old, new)
    if not words:
        line, words = line + 1, ["rule 5 is never reached: rule 4", "last"]
    found = [p for p in problems(full) if "has no input" not in p.message]
    at = [p for p in found if p.line == line + new.count("\n    mode: vector") + new.count("\nappl")]
    assert at, [*map(str, found)]
    text = "\n".join(map(str, at))
    for word in words:
        assert word in text, text
    assert all(problem.file == str(full / BUNDLE) for problem in found)


def test_a_model_without_an_id(full: Path) -> None:
    line = edit(full, BUNDLE, "    model: qwen3-32b\n", "")
    only(full, BUNDLE, line - 1, "provider openai needs 'model'")


def test_missing_and_misspelt_field_suggests_the_missing_one(full: Path) -> None:
    line = edit(full, BUNDLE, "    prompt: prompts/answer.yaml", "    promt: prompts/answer.yaml")
    first, second = problems(full)
    assert str(first) == f"{full}/bundle.yaml:{line - 1}: 'prompt' is missing in tasks.answer"
    assert str(second) == (f"{full}/bundle.yaml:{line}: unknown field 'promt' in tasks.answer (did you mean 'prompt'?)")


def test_a_longer_circle_is_named_at_each_of_its_steps(full: Path) -> None:
    line = edit(full, BUNDLE, "fallback: {model: plain, ", "fallback: {model: plain, fallback: [complex], ")
    found = problems(full)
    assert any(p.line == line and "fallback -> complex -> fallback" in p.message for p in found)
    assert all("circle" in p.message for p in found)


def test_no_rule_for_the_rest(full: Path) -> None:
    line = edit(full, BUNDLE, "      use: complex\n    - {use: fast}", "      use: complex")
    only(full, BUNDLE, line - 1, "no rule takes the requests", "{use:")


def test_a_rule_before_the_restricted_one_takes_none_of_its_requests(full: Path) -> None:
    edit(full, BUNDLE, "    - {when: {profile: phi_restricted}, use: restricted}\n", "")
    line = edit(
        full,
        BUNDLE,
        "    - {use: fast}",
        "    - {when: {profile: phi_restricted}, use: restricted}\n    - {use: fast}",
    )
    only(full, BUNDLE, line, "rule 1 would take some requests of this rule to batch", "move this rule up")


def test_vectors_need_an_embedding(full: Path) -> None:
    edit(full, BUNDLE, "embedding: {provider: wordllama, model: l2_supercat, dimensions: 256}\n", "")
    line = (full / BUNDLE).read_text().split("\n").index("    mode: hybrid") + 1
    only(full, BUNDLE, line, "mode: hybrid", "no embedding", "add embedding: {provider: wordllama")


def test_the_embedding_is_that_of_the_index(full: Path) -> None:
    line = edit(full, BUNDLE, "dimensions: 256", "dimensions: 128")
    only(full, BUNDLE, line, "not the one of indexes/manual.yaml (wordllama l2_supercat, 256 dimensions)")


def test_the_index_source_beside_is_checked(full: Path) -> None:
    line = edit(full, "indexes/manual.yaml", "dimensions: 256", "dimensions: many")
    only(full, "indexes/manual.yaml", line, "expected a whole number, got the text 'many'")


def test_suites_must_exist_where_evals_is(full: Path) -> None:
    (full / "evals").mkdir()
    (full / "evals" / "answer.yaml").touch()
    (full / "evals" / "refusals.yaml").touch()
    line = (full / BUNDLE).read_text().split("\n").index("evaluation: {suites: [answers, refusals]}") + 1
    only(full, BUNDLE, line, "there is no suite 'answers': evals/answers.yaml", "did you mean 'answer'?")


def test_no_bundle_at_all(tmp_path: Path) -> None:
    only(tmp_path, BUNDLE, 0, "bundle.yaml does not exist")
    (tmp_path / "Bundle.yaml").touch()
    only(tmp_path, BUNDLE, 0, "there is 'Bundle.yaml'", "letter by letter")
    assert "does not exist" in str(problems(tmp_path / "nowhere" / BUNDLE)[0]) or "cannot be read" in str(
        problems(tmp_path / "nowhere" / BUNDLE)[0]
    )


# ------------------------------------------------------------- prompts


def test_undeclared_variable(full: Path) -> None:
    line = edit(full, PROMPT, "      {{ input.plan }}:", "      {{ input.plam }}:")
    only(full, PROMPT, line, "undeclared input 'plam'", "plan")


def test_undeclared_name(full: Path) -> None:
    line = edit(full, PROMPT, "      {{ input.plan }}:", "      {{ customer }}:")
    only(full, PROMPT, line, "undeclared variable 'customer'", "passages")


def test_line_in_a_template_that_is_one_line(full: Path) -> None:
    line = edit(full, "prompts/summarize.yaml", "{{ input.text }}", "{{ input.txt }}")
    only(full, "prompts/summarize.yaml", line, "undeclared input 'txt'")


def test_template_that_does_not_parse(full: Path) -> None:
    line = edit(full, PROMPT, "      {% endfor %}\n", "      {% endfro %}\n")
    only(full, PROMPT, line, "endfro")


def test_template_that_loops_for_ever(full: Path) -> None:
    loop = "{% for a in range(9000) %}{% for b in range(9000) %}{{ b }}{% endfor %}{% endfor %}"
    line = edit(full, PROMPT, "      {{ input.plan }}:", f"      {loop}{{{{ input.plan }}}}:")
    began = time.process_time()
    only(full, PROMPT, line, "stopped after")
    assert time.process_time() - began < 5


def test_prompt_form(full: Path) -> None:
    line = edit(full, PROMPT, "  - role: system", "  - role: sistem")
    only(full, PROMPT, line, "role: expected 'system', 'user' or 'assistant'", "did you mean 'system'?")


def test_prompt_names_collide(full: Path) -> None:
    (full / "more").mkdir()
    (full / "more" / "answer.yaml").write_bytes((full / PROMPT).read_bytes())
    line = edit(full, BUNDLE, "prompts/summarize.yaml", "more/answer.yaml")
    only(full, BUNDLE, line, "more/answer.yaml and prompts/answer.yaml would both be the prompt 'answer'", "rename")


def test_a_prompt_two_tasks_share_is_one(full: Path) -> None:
    edit(full, BUNDLE, "prompts/summarize.yaml", "prompts/answer.yaml")
    assert list(read_source(full).components.prompts) == ["answer"]


def test_a_broken_prompt_two_tasks_share_is_told_once(full: Path) -> None:
    edit(full, BUNDLE, "prompts/summarize.yaml", "prompts/answer.yaml")
    line = edit(full, PROMPT, "inputs: [question, plan]", "inputs: question")
    only(full, PROMPT, line, "inputs: expected a list")


def test_prompt_file_name_is_a_name(full: Path) -> None:
    (full / PROMPT).rename(full / "prompts" / "The Answer.yaml")
    line = edit(full, BUNDLE, "prompts/answer.yaml", "prompts/The Answer.yaml")
    only(full, BUNDLE, line, "'The Answer' is no prompt name", "lower-case")


# ------------------------------------------------------------- access


def test_policy_that_does_not_parse(full: Path) -> None:
    line = edit(full, POLICY, 'when { ["lead", "agent"].contains(principal.role) };', "when { principal.role == };")
    only(full, POLICY, line, "does not parse")


def test_policy_that_does_not_fit_the_schema(full: Path) -> None:
    line = edit(full, POLICY, "principal.role", "principal.rol")
    only(full, POLICY, line, "rol")


def test_policy_that_errors(full: Path) -> None:
    # Valid by the schema, and errors when it runs: the integer overflows.
    policy = full / "access" / "extra" / "more.cedar"
    text = policy.read_text()
    policy.write_text(
        text + '\nforbid (principal, action, resource) when { 9223372036854775807 + 1 > 0 && resource.task == "x" };\n'
    )
    found = problems(full)
    assert {problem.file for problem in found} == {str(full / CASES)}
    text = "\n".join(map(str, found))
    assert "overflow" in text and "more.cedar:" in text


def test_failing_access_case(full: Path) -> None:
    edit(full, POLICY, '["lead", "agent"]', '["leed", "agent"]')
    found = only(full, CASES, 4, "'a lead under the restricted profile' expects allow, but it is denied")
    assert "change the policy, or what the case expects" in found.right


def test_access_case_of_a_task_that_is_not_there(full: Path) -> None:
    edit(
        full,
        CASES,
        "    task: answer\n    tenant: acme\n    role: lead",
        "    task: anwser\n    tenant: acme\n    role: lead",
    )
    line = (full / CASES).read_text().split("\n").index("    task: anwser") + 1
    only(full, CASES, line, "task 'anwser'", "did you mean 'answer'?")


def test_access_case_form(full: Path) -> None:
    edit(full, CASES, "    expect: allow", "    expect: permit")
    line = (full / CASES).read_text().split("\n").index("    expect: permit") + 1
    only(full, CASES, line, "expect: expected 'allow' or 'deny', got the text 'permit'")


def test_no_policy_at_all(tmp_path: Path) -> None:
    root = fixture("small", tmp_path)
    (root / "access" / "all.cedar").unlink()
    only(root, BUNDLE, 1, "no access policy", "every request is denied")


def test_schema_that_lacks_a_part(full: Path) -> None:
    edit(full, "access/schema.cedarschema", "  profile: String,\n", "")
    assert all(p.file.startswith(str(full / "access")) for p in problems(full))


# ------------------------------------------------------------- output schemas


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"type": "object",', '"type": "objekt",', ["objekt"]),
        ('"type": "object",', '"type": "object"', ["not JSON", "delimiter"]),
        ('"required": ["answer"],', '"required": ["answer"], "required": [],', ["'required'", "twice", "keep one"]),
        ('"maximum": 1.0', '"maximum": NaN', ["NaN is not JSON"]),
        ('"maximum": 1.0', '"maximum": 1e999', ["too large"]),
        ('"maximum": 1.0', '"maximum": 90071992547409920', ["2^53"]),
        ('"minLength": 1', '"$ref": "https://example.com/x.json"', ["example.com"]),
    ],
)
def test_output_schema(full: Path, old: str, new: str, words: list[str]) -> None:
    line = edit(full, SCHEMA, old, new)
    found = problems(full)
    assert [problem.file for problem in found] == [str(full / SCHEMA)], [*map(str, found)]
    # A comma that is missing shows on the next line.
    assert found[0].line - line in (0, 1), str(found[0])
    for word in words:
        assert word in str(found[0])


def test_output_schema_depth_bomb(full: Path) -> None:
    for depth in (40, 100_000):
        (full / SCHEMA).write_text('{"a":' * depth + "1" + "}" * depth)
        only(full, SCHEMA, 1, "nested deeper than 32")


def test_output_schema_is_an_object(full: Path) -> None:
    (full / SCHEMA).write_text("[]")
    only(full, SCHEMA, 1, "must hold a JSON object")


# ------------------------------------------------------------- bindings


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  large: {base", "  lrage: {base", ["environment prod binds the model 'lrage'", "did you mean 'large'?"]),
        ("{manual:", "{manuel:", ["binds the index 'manuel'", "did you mean 'manual'?"]),
        ("[endpoint]", "[endpint]", ["disables the model 'endpint'", "did you mean 'endpoint'?"]),
        ('"aws-sm:vllm-key"', "hunter2", ["'hunter2' is not a reference to a credential", "env:NAME"]),
        ("base_url:", "url:", ["unknown field 'url' in models.large"]),
        ("requests_per_minute: 60", "requests_per_minute: 0", ["0 is out of range", "at least 1"]),
        ('version: "3"', "version: 03", ["03 may be meant", "3 if it is not"]),
        ("{bedrock:", "{bedrok:", ["binds the guard 'bedrok'", "'bedrock'"]),
        ('"https://vllm.internal/v1"', "vllm.internal:8000", ["'vllm.internal:8000' is no address", "e.g. https://"]),
        ('"https://vllm.internal/v1"', '"http://:8000/v1"', ["is no address of a model server"]),
        ("{default: {req", "{acme inc: {req", ["no request can name the tenant 'acme inc'", "default is for whoever"]),
        ("disabled_models:", "cache: {ttl: 10}\ndisabled_models:", ["ttl: expected a duration, got the number 10"]),
    ],
)
def test_bindings(full: Path, old: str, new: str, words: list[str]) -> None:
    line = edit(full, PROD, old, new)
    only(full, PROD, line, *words)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("id: web, hash: H2", ["the API key 'web' is here a second time", "has an id of its own"]),
        ("id: shop, hash: H1", ["the API keys 'web' and 'shop' have the same hash"]),
        ("id: shop, hash: H2, tenants: ['ac*']", ["no request can name the tenant 'ac*'", "* alone for any tenant"]),
        ("id: shop, hash: H2, roles: [a b]", ["no request can name the role 'a b'"]),
    ],
)
def test_callers_that_would_be_taken_for_others(full: Path, second: str, words: list[str]) -> None:
    claims = [f"{name}: ['*']" for name in ("tenants", "roles") if name not in second]
    keys = ["{id: web, hash: H1, tenants: [acme], roles: ['*']}", f"{{{', '.join([second, *claims])}}}"]
    lines = "".join(f"    - {key}\n" for key in keys)
    for name, digit in (("H1", "1"), ("H2", "2")):
        lines = lines.replace(f"hash: {name}", f'hash: "sha256:{digit * 64}"')
    line = edit(full, PROD, "disabled_models:", f"identities:\n  api_keys:\n{lines}disabled_models:")
    only(full, PROD, line + 3, *words)


def test_environment_names(full: Path) -> None:
    (full / PROD).rename(full / "environments" / "Prod_EU.yaml")
    only(full, "environments/Prod_EU.yaml", 0, "'Prod_EU' is no environment's name")


# ------------------------------------------------------------- all at once


def test_problems_of_all_files_in_order(full: Path) -> None:
    edit(full, PROMPT, "{{ input.plan }}", "{{ input.plam }}")
    edit(full, BUNDLE, "{model: plain,", "{model: plan,")
    edit(full, BUNDLE, "    retrieval: docs", "    retrieval: dosc")
    edit(full, PROD, "[endpoint]", "[endpint]")
    edit(full, SCHEMA, '"type": "object",', '"type": "objekt",')
    files = [problem.file.removeprefix(f"{full}/") for problem in problems(full)]
    assert files == [BUNDLE, BUNDLE, PROD, SCHEMA, PROMPT]
    lines = [problem.line for problem in problems(full)]
    assert lines[:2] == sorted(lines[:2])


def test_a_broken_bundle_yaml_does_not_hide_broken_bindings(full: Path) -> None:
    edit(full, BUNDLE, "app: full-app", "app: Full")
    edit(full, PROD, "base_url:", "url:")
    assert len(problems(full)) == 2


def test_load_document(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("apiVersion: bundlectl/v1\nkind: Suite\nname: a\ntask: t\ndataset: a.jsonl\nscorers: []\n")
    with pytest.raises(SourceError) as caught:
        load_document(path, Suite)
    assert str(caught.value) == f"{path}:6: scorers: 0 items here, at least 1 expected"
    path.write_text(path.read_text().replace("[]", "[{name: contains, as: c}]"))
    assert load_document(path, Suite).scorers[0].key == "c"
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    assert load_document(link, Suite).name == "a"
    with pytest.raises(SourceError, match="does not exist"):
        load_document(tmp_path / "none.yaml", Bindings)
    path.write_text(path.read_text().replace("as: c", "as_: c"))
    with pytest.raises(SourceError, match="unknown field 'as_'"):
        load_document(path, Suite)
