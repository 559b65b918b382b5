"""Access: what Cedar decides, that errors never allow, that faults name file and line, and the cache's law."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.canonical import digest
from bundlectl.model.components import Access, AccessCase, FileRef
from bundlectl.stages.access import VOCABULARY, AccessPolicy, AccessQuestion
from bundlectl.stages.errors import PolicyError

EXAMPLE = Path(__file__).parents[2] / "bundles" / "support" / "access"
PERMIT_ALL = "permit (principal, action, resource);"
CASES = [AccessCase(name=name, task="t", tenant="a", role="r", profile="p", expect="allow") for name in ("one", "two")]


def compile_texts(*policies: str | bytes, schema: str = VOCABULARY, cases=None) -> AccessPolicy:
    files = [policy.encode() if isinstance(policy, str) else policy for policy in policies]
    access = Access(
        policies=[FileRef(path=f"access/{n}.cedar", digest=digest(data)) for n, data in enumerate(files)],
        schema=FileRef(path="access/schema.cedarschema", digest=digest(schema.encode())),
        cases=cases or CASES,
    )
    return AccessPolicy.compile(access, {digest(data): data for data in (*files, schema.encode())})


def example() -> tuple[Access, AccessPolicy]:
    policy = (EXAMPLE / "support.cedar").read_bytes()
    schema = (EXAMPLE / "schema.cedarschema").read_bytes()
    document = yaml.safe_load((EXAMPLE / "cases.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("bundlectl/v1", "AccessCases")
    access = Access(
        policies=[FileRef(path="access/support.cedar", digest=digest(policy))],
        schema=FileRef(path="access/schema.cedarschema", digest=digest(schema)),
        cases=[AccessCase.model_validate(case) for case in document["cases"]],
    )
    return access, AccessPolicy.compile(access, {digest(policy): policy, digest(schema): schema})


QUESTION = AccessQuestion(
    task="customer_support_answer",
    tenant="northwind",
    role="support_agent",
    scopes=frozenset({"product_docs", "support_tickets"}),
    profile="pii_safe_support",
    resource_tenant="northwind",
)


def test_the_example_decides_its_own_cases_and_they_cover_both_answers():
    access, policy = example()
    assert policy.run_cases() == []
    assert {case.expect for case in access.cases} == {"allow", "deny"}


def test_a_decision_names_the_policies_that_made_it():
    _, policy = example()
    decision = policy.decide(QUESTION)
    assert (decision.allow, decision.policies, decision.errors) == (True, ("support-staff",), ())
    unnamed = compile_texts("// a comment; with a semicolon\n\n" + PERMIT_ALL)
    assert unnamed.decide(QUESTION).policies == ("access/0.cedar:3",)


@pytest.mark.parametrize(
    "change",
    [
        {"role": "visitor"},
        {"role": "support_agent\n"},
        {"task": "other_task"},
        {"profile": "open"},
        {"scopes": frozenset({"product_docs", "billing"})},
        {"resource_tenant": "quayside"},
        {"tenant": "quayside"},
        {"tenant": "north/wind", "resource_tenant": "quayside"},
    ],
)
def test_the_example_denies(change):
    _, policy = example()
    assert not policy.decide(QUESTION._replace(**change)).allow


def test_another_tenants_data_is_denied_in_code_whatever_the_policies_say():
    decision = compile_texts(PERMIT_ALL).decide(QUESTION._replace(resource_tenant="quayside"))
    assert not decision.allow
    assert "tenant" in decision.errors[0]


def test_a_policy_that_errors_never_allows():
    overflow = 'forbid (principal, action, resource)\nwhen { 9223372036854775807 + 1 > 0 && principal.role == "x" };'
    decision = compile_texts(PERMIT_ALL, overflow).decide(QUESTION)
    assert not decision.allow
    assert decision.errors
    assert "access/1.cedar:1" in decision.errors[0]


def test_ids_are_data_and_never_cedar_text():
    policy = compile_texts('permit (principal == Caller::"a/admin", action, resource);')
    for role in ('admin"', 'x" || true || "', "admin\\", 'r", action, resource); permit (principal'):
        assert not policy.decide(QUESTION._replace(tenant="a", resource_tenant="a", role=role)).allow


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            'permit (principal, action, resource)\nwhen {\n  principal.role == "a" &&\n  principal.nope == "x" };',
            4,
            "nope",
        ),
        (f"{PERMIT_ALL}\n\n// c ; c\nforbid (principal,\n  action resource);", 5, "does not parse"),
        (f'{PERMIT_ALL}\npermit (principal, action, resource) when {{ "abc', 2, "does not parse"),
        (f"{PERMIT_ALL}\npermit (principal == ?principal, action, resource);", 2, "template"),
        ('permit (principal, action == Action::"erase", resource);', 1, "erase"),
        ("permit (principal, action, resource)\nwhen { principal.role == 3 };", 1, "String"),
        (b"permit (principal, action, resource);\n\xff", 2, "UTF-8"),
        ("// nothing but this", 0, "no policy"),
    ],
)
def test_a_faulty_policy_names_its_file_and_line(text, line, message):
    with pytest.raises(PolicyError) as raised:
        compile_texts(text)
    (problem, *_) = raised.value.problems
    assert (problem.file, problem.line) == ("access/0.cedar", line)
    assert message in problem.message


def test_the_faults_of_all_files_come_together():
    with pytest.raises(PolicyError) as raised:
        compile_texts("permit (", PERMIT_ALL, "forbid (principal, action, resource) when { resource.nope };")
    assert {problem.file for problem in raised.value.problems} == {"access/0.cedar", "access/2.cedar"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("entity Caller {", "unexpected"),
        ("entity Caller { tenant: Foo };", "Foo"),
        (VOCABULARY.replace("  profile: String,\n", ""), "does not fit"),
        (VOCABULARY.replace('"ask"', '"tell"'), "does not fit"),
    ],
)
def test_a_faulty_schema_names_its_file(schema, message):
    with pytest.raises(PolicyError) as raised:
        compile_texts(PERMIT_ALL, schema=schema)
    (problem,) = raised.value.problems
    assert problem.file == "access/schema.cedarschema"
    assert message in problem.message


def test_a_file_that_the_bundle_lacks_is_said():
    access, _ = example()
    with pytest.raises(PolicyError, match="does not hold this file"):
        AccessPolicy.compile(access, {})


def test_a_case_that_fails_says_what_came_out_and_why():
    policy = compile_texts('@id("none")\nforbid (principal, action, resource);')
    failed = policy.run_cases()
    assert [case.case.name for case in failed] == ["one", "two"]
    assert failed[0].why == "access case 'one' expects allow, but it is denied by none"


names = st.sampled_from(["a", "b", "northwind", 'q"', "support_agent"])
questions = st.builds(
    AccessQuestion,
    task=st.sampled_from(["customer_support_answer", "t"]),
    tenant=names,
    role=names,
    scopes=st.frozensets(st.sampled_from(["product_docs", "support_tickets", "billing"])),
    profile=st.sampled_from(["pii_safe_support", "open"]),
    resource_tenant=names,
)
SHARED = example()[1]


@settings(max_examples=200, deadline=None)
@given(questions, questions)
def test_the_cache_answers_as_an_uncached_decision_whichever_field_differs(one, other):
    fields = ("task", "tenant", "role", "scopes", "profile", "resource_tenant")
    for field in fields:
        varied = one._replace(**{field: getattr(other, field)})
        assert (varied == one) == (getattr(varied, field) == getattr(one, field))
        assert SHARED.decide(varied) == SHARED.decide_uncached(varied)
    assert SHARED.decide(one) == SHARED.decide_uncached(one)


def test_the_cache_is_bounded_and_not_shared_between_bundles():
    allowing = compile_texts(PERMIT_ALL)
    denying = compile_texts("forbid (principal, action, resource);")
    assert allowing.decide(QUESTION).allow
    assert not denying.decide(QUESTION).allow
    assert allowing.decide.cache_info().maxsize == 4096
