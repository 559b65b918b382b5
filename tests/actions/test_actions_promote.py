"""What promote decides before it commits: which bindings, which rollback target, since when, whether a plan holds."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.bind import bind
from bundlectl.actions.opening import live_or_former
from bundlectl.actions.promote import Plan, load_plan, promote
from bundlectl.model.errors import BundlectlError, Conflict, GateNotPassed, NotFound, SourceError, UsageError
from bundlectl.model.reference import EnvironmentReference
from bundlectl.model.release import Release
from tests.support.workspace import APP, Workspace


def live(work: Workspace, environment: str) -> Release:
    return live_or_former(work.context(), EnvironmentReference(APP, environment)).release


def plan(work: Workspace, reference: str, environment: str, **more: Any) -> Plan:
    return promote(work.context(), reference, environment=environment, reason="x", plan_only=True, **more).plan


def test_a_plan_changes_nothing_and_holds_while_nothing_changes(work: Workspace) -> None:
    before = work.head("dev").read_bytes()
    bundle = work.next_version()
    saved = plan(work, str(work.folder), "dev")
    assert work.head("dev").read_bytes() == before
    assert (saved.bundle, saved.serial, saved.verdict) == (bundle, 2, "pass")
    assert saved.bindings_from == "environments/dev.yaml of the source"
    done = promote(work.context(), str(work.folder), environment="dev", reason="x", expected_plan=saved)
    assert done.released is not None and done.released.serial == 2


def test_a_plan_made_before_it_was_confirmed_holds_once_it_is(work: Workspace, tmp_path: Path) -> None:
    work.next_version()
    work.release("staging")
    saved = plan(work, f"{APP}:staging", "prod")
    assert saved.verdict == "inconclusive", "not confirmed yet"
    file = tmp_path / "plan.json"
    file.write_text(saved.model_dump_json(by_alias=True))
    done = promote(
        work.context(),
        f"{APP}:staging",
        environment="prod",
        reason="x",
        confirmed="prod",
        expected_plan=load_plan(file),
    )
    assert done.released is not None


def test_a_plan_is_stale_once_the_head_the_bindings_or_the_evidence_moved(work: Workspace, tmp_path: Path) -> None:
    first = live(work, "dev").bundle
    work.next_version()
    saved = plan(work, str(work.folder), "dev")
    other = tmp_path / "bindings.yaml"
    other.write_text("apiVersion: bundlectl/v1\nkind: Bindings\ndisabled_models: [quotes]\n")
    for reference, more, moved in (
        (f"{APP}@{first}", {}, "bundle"),
        (str(work.folder), {"bindings_file": other}, "bindings"),
    ):
        with pytest.raises(Conflict, match="stale") as caught:
            promote(work.context(), reference, environment="dev", reason="x", expected_plan=saved, **more)  # type: ignore[arg-type]
        assert moved in caught.value.why
    work.release("dev")
    with pytest.raises(Conflict, match="stale") as caught:
        promote(work.context(), str(work.folder), environment="dev", reason="x", expected_plan=saved)
    assert "serial 2 -> 3" in caught.value.why


def test_a_plan_for_one_environment_is_none_for_another(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path)
    saved = plan(work, str(work.folder), "staging")
    with pytest.raises(Conflict, match="stale") as caught:
        promote(work.context(), str(work.folder), environment="dev", reason="x", expected_plan=saved)
    assert "environment staging -> dev" in caught.value.why
    assert not work.head("dev").exists()


def test_no_plan(tmp_path: Path) -> None:
    for text in ("", "{}", '{"kind": "Plan"}', "[1"):
        file = tmp_path / "plan.json"
        file.write_text(text)
        with pytest.raises(UsageError, match="not a saved plan"):
            load_plan(file)
    with pytest.raises(UsageError, match="not a saved plan"):
        load_plan(tmp_path / "none.json")


def test_which_bindings(work: Workspace, tmp_path: Path) -> None:
    stored = work.next_version()
    bind(work.context(), f"{APP}:dev", reason="outage", disable=["quotes"])
    assert plan(work, f"{APP}@{stored}", "dev").bindings_from == "the live release"
    assert plan(work, f"{APP}@{stored}", "dev").bindings == live_bindings(work)
    assert plan(work, str(work.folder), "dev").bindings_from == "environments/dev.yaml of the source"
    file = tmp_path / "b.yaml"
    file.write_text("apiVersion: bundlectl/v1\nkind: Bindings\n")
    assert plan(work, str(work.folder), "dev", bindings_file=file).bindings_from == str(file)
    (work.folder / "environments" / "dev.yaml").unlink()
    assert plan(work, str(work.folder), "dev").bindings_from == "the live release"


def live_bindings(work: Workspace) -> str:
    from bundlectl.model.canonical import canonical, digest

    return digest(canonical(live(work, "dev").bindings.form()))


def test_bindings_that_no_resolver_could_load_are_not_made_live(work: Workspace, tmp_path: Path) -> None:
    work.next_version()
    before = work.head("dev").read_bytes()
    for line, told in (
        ("disabled_models: [nobody]", "environment dev disables the model 'nobody'"),
        ("models: {nobody: {base_url: http://x}}", "environment dev binds the model 'nobody'"),
        ("indexes: {nowhere: /tmp/x}", "environment dev binds the index 'nowhere'"),
        ("models: {quotes: {base_url: not a url}}", "'not a url' is no address of a model server"),
    ):
        file = tmp_path / "b.yaml"
        file.write_text(f"apiVersion: bundlectl/v1\nkind: Bindings\n{line}\n")
        with pytest.raises(SourceError, match=f"b.yaml:3: {told}"):
            promote(work.context(), str(work.folder), environment="dev", reason="x", bindings_file=file)
        with pytest.raises(SourceError, match=f"b.yaml:3: {told}"):
            bind(work.context(), f"{APP}:dev", reason="x", file=file)
    assert work.head("dev").read_bytes() == before


def test_who_takes_the_identities_away_is_told(work: Workspace, tmp_path: Path) -> None:
    file, head = tmp_path / "b.yaml", "apiVersion: bundlectl/v1\nkind: Bindings\n"
    key = f'{{id: web, hash: "sha256:{"1" * 64}", tenants: [acme], roles: [agent]}}'
    file.write_text(f"{head}identities: {{api_keys: [{key}]}}\n")
    assert bind(work.context(), f"{APP}:dev", reason="x", file=file).released.warnings == []
    file.write_text(head)
    (warning,) = bind(work.context(), f"{APP}:dev", reason="x", file=file).released.warnings
    assert warning.startswith(f"{APP}:dev has no identities any more")


def test_what_bind_cannot_mean_is_refused(work: Workspace) -> None:
    before = work.head("dev").read_bytes()
    with pytest.raises(UsageError, match="names one release") as caught:
        bind(work.context(), f"{APP}:dev@1", reason="x", disable=["quotes"])
    assert caught.value.fix == f"Name the environment: {APP}:dev"
    with pytest.raises(UsageError, match="quotes cannot be switched off and on"):
        bind(work.context(), f"{APP}:dev", reason="x", disable=["quotes"], enable=["quotes"])
    assert work.head("dev").read_bytes() == before


def test_a_model_without_an_address_is_not_made_live(work: Workspace) -> None:
    with_own_model(work)
    with pytest.raises(UsageError, match="do not fit") as caught:
        work.release("dev")
    assert "own has no base_url" in caught.value.why
    file = work.folder / "environments" / "dev.yaml"
    file.write_text("apiVersion: bundlectl/v1\nkind: Bindings\nmodels: {own: {}}\n")
    with pytest.raises(SourceError, match=r"dev\.yaml:3: the model own has no base_url"):
        promote(work.context(), str(work.folder), environment="dev", reason="x", bindings_file=file)
    file.write_text("apiVersion: bundlectl/v1\nkind: Bindings\ndisabled_models: [own]\n")
    work.release("dev")


def with_own_model(work: Workspace) -> str:
    work.edit("bundle.yaml", "  # own: {", "  own: {")
    work.edit("bundle.yaml", "  # complex: {model: own", "  complex: {model: own")
    work.edit("bundle.yaml", "    # - {when: {prompt_tokens", "    - {when: {prompt_tokens")
    return work.next_version()


def test_since_stays_while_the_bundle_stays(work: Workspace) -> None:
    since = live(work, "dev").since
    later = datetime.now(UTC) + timedelta(hours=1)
    promote(work.context(clock=lambda: later), str(work.folder), environment="dev", reason="again")
    again = live(work, "dev")
    assert (again.since, again.serial) == (since, 2)
    assert again.time > since
    work.next_version()
    work.release("dev")
    assert live(work, "dev").since == live(work, "dev").time


def test_the_rollback_target_is_the_promotion_that_was_live(work: Workspace) -> None:
    first = live(work, "dev")
    assert first.rollback_target is None
    work.next_version()
    work.release("dev")
    bind(work.context(), f"{APP}:dev", reason="outage", disable=["quotes"])
    second = live(work, "dev")
    assert second.rollback_target is not None
    assert (second.rollback_target.bundle, second.rollback_target.serial) == (first.bundle, 1)
    work.release("dev", reason="the same bundle again keeps its target")
    assert live(work, "dev").rollback_target == second.rollback_target


def test_a_named_rollback_target_must_have_been_live(work: Workspace) -> None:
    first = live(work, "dev").bundle
    work.edit("bundle.yaml", "{target: previous}", f"{{target: {first}}}")
    work.next_version()
    work.release("dev")
    target = live(work, "dev").rollback_target
    assert target is not None and (target.bundle, target.serial) == (first, 1)
    work.edit("bundle.yaml", first, "sha256:" + "0" * 64)
    from bundlectl.actions.build import build

    build(work.context(), work.folder)
    with pytest.raises(NotFound, match="never live"):
        work.release("dev")


def test_soak_does_not_count_where_an_older_head_was_put_back(work: Workspace) -> None:
    old = live(work, "staging").bundle
    work.next_version()
    work.release("staging")
    work.release("staging", reason="so that the second is archived")
    archived = work.environment_folder("staging") / "history" / "1-0000000000000001.json"
    shutil.copyfile(archived, work.head("staging"))
    with pytest.raises(GateNotPassed) as caught:
        promote(work.context(), f"{APP}@{old}", environment="prod", reason="x", confirmed="prod")
    assert "soak" in caught.value.why


def test_a_gate_that_is_not_passed_changes_nothing_and_says_each_reason(work: Workspace) -> None:
    work.edit("prompts/answer.yaml", "and from nothing else", "and from nothing else at all")
    from bundlectl.actions.build import build

    build(work.context(), work.folder)
    before = work.head("staging").read_bytes()
    with pytest.raises(GateNotPassed) as caught:
        work.release("staging")
    assert "evaluation" in caught.value.why and "bundlectl eval" in caught.value.fix
    assert work.head("staging").read_bytes() == before
    assert isinstance(caught.value, BundlectlError) and caught.value.exit_code == 3
