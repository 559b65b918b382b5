"""rollback returns to what was live: by target, by serial, after a rebind, a renewal or another rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.ask import ask
from bundlectl.actions.bind import bind
from bundlectl.actions.build import build
from bundlectl.actions.evaluate import evaluate
from bundlectl.actions.opening import live_or_former
from bundlectl.actions.promote import promote
from bundlectl.actions.renew import renew
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import history
from bundlectl.inference.fitting import misfits, provider_misfits
from bundlectl.model.bindings import Bindings, ModelBinding
from bundlectl.model.components import Model
from bundlectl.model.errors import NotFound, UsageError
from bundlectl.model.fitting import returning
from bundlectl.model.reference import EnvironmentReference
from bundlectl.model.release import Release
from tests.support.workspace import APP, Workspace

DEV = f"{APP}:dev"
QUESTION = "What does it cost?"


def live(work: Workspace) -> Release:
    return live_or_former(work.context(), EnvironmentReference(APP, "dev")).release


@pytest.fixture
def two(work: Workspace) -> tuple[Workspace, str, str]:
    """Two versions released to dev."""
    first = live(work).bundle
    second = work.next_version()
    work.release("dev", reason="second")
    return work, first, second


def verified(work: Workspace) -> list[str]:
    """Walk the chain, every link of it, and give the actions from the first on."""
    return [entry.action for entry in reversed(history(work.context(), DEV, verify=True).entries)]


def test_to_the_target_and_back_again(two: tuple[Workspace, str, str]) -> None:
    work, first, second = two
    done = rollback(work.context(), DEV, reason="bad answers")
    assert (done.released.bundle, done.released.serial, done.returned_to) == (first, 3, 1)
    target = live(work).rollback_target
    assert target is not None and (target.bundle, target.serial) == (second, 2), "a rollback can be undone"
    again = rollback(work.context(), DEV, reason="it was not the bundle")
    assert (again.released.bundle, again.released.serial, again.returned_to) == (second, 4, 2)
    assert verified(work) == ["promotion", "promotion", "rollback", "rollback"]


def test_asking_the_target_is_asking_what_a_rollback_brings(two: tuple[Workspace, str, str]) -> None:
    work, first, second = two
    bind(work.context(), DEV, reason="3: off at night", disable=["quotes"])
    prompt: Any = {"tenant": "acme", "role": "customer"}
    before = ask(work.context(), DEV, QUESTION, rollback_target=True, **prompt)
    assert before.answer.pinned is not None and before.answer.pinned.serial == 3
    assert before.receipt.pinned == before.answer.pinned and before.answer.release.serial == 1
    now = ask(work.context(), DEV, QUESTION, **prompt)
    assert now.answer.pinned is None and now.answer.release.bundle == second
    rollback(work.context(), DEV, reason="4")
    after = ask(work.context(), DEV, QUESTION, **prompt)
    assert (after.answer.release.bundle, after.answer.release.bindings) == (first, before.answer.release.bindings)
    assert after.receipt.components == before.receipt.components
    with pytest.raises(UsageError, match="no rollback target"):
        ask(work.context(), first.replace("sha256:", f"{APP}@sha256:"), QUESTION, rollback_target=True, **prompt)
    with pytest.raises(NotFound, match="no rollback target"):
        ask(work.context(), f"{APP}:staging", QUESTION, rollback_target=True, **prompt)


def test_to_a_serial_that_is_itself_a_rollback_a_rebind_or_a_renewal(two: tuple[Workspace, str, str]) -> None:
    work, first, second = two
    rollback(work.context(), DEV, reason="3 is a rollback to 1")
    bind(work.context(), DEV, reason="4 is a rebind of it", disable=["quotes"])
    renew(work.context(), DEV, reason="5 is a renewal of that")
    assert live(work).action == "renewal"
    rollback(work.context(), f"{DEV}@2", reason="6")
    for serial in (3, 4, 5):
        done = rollback(work.context(), f"{DEV}@{serial}", reason="back")
        assert (done.released.bundle, done.returned_to) == (first, 1), serial
        assert rollback(work.context(), f"{DEV}@2", reason="and forth").released.bundle == second
    assert set(verified(work)) == {"promotion", "rollback", "rebind", "renewal"}


def test_after_a_rebind_the_switch_that_was_thrown_stays(two: tuple[Workspace, str, str]) -> None:
    work, first, _ = two
    bind(work.context(), DEV, reason="outage", disable=["quotes"])
    done = rollback(work.context(), DEV, reason="bad answers")
    assert done.released.bundle == first
    assert live(work).bindings.disabled_models == ["quotes"]
    assert not [warning for warning in done.released.warnings if warning.startswith("bindings")]


def test_after_a_renewal(two: tuple[Workspace, str, str]) -> None:
    work, first, _ = two
    before = live(work)
    renewed = renew(work.context(), DEV)
    assert (renewed.serial, renewed.bundle, live(work).since) == (3, before.bundle, before.since)
    assert rollback(work.context(), DEV, reason="bad answers").released.bundle == first
    verified(work)


def test_to_what_is_live_keeps_the_way_back(two: tuple[Workspace, str, str]) -> None:
    work, _, second = two
    before = live(work)
    done = rollback(work.context(), f"{DEV}@2", reason="nothing new")
    assert done.released.bundle == second
    assert any("already" in warning for warning in done.released.warnings)
    assert (live(work).rollback_target, live(work).since) == (before.rollback_target, before.since)
    verified(work)


def test_nothing_to_return_to(work: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rollback target"):
        rollback(work.context(), DEV, reason="x")
    for serial in (0, 2, 99):
        with pytest.raises((NotFound, UsageError)):
            rollback(work.context(), f"{DEV}@{serial}", reason="x")
    empty = Workspace.at(tmp_path / "empty")
    with pytest.raises(NotFound, match="Nothing is live"):
        rollback(empty.context(), DEV, reason="x")


def test_bindings_that_speak_of_the_later_bundle_only_do_not_keep_resolvers_from_the_earlier_one(
    work: Workspace, tmp_path: Path
) -> None:
    first = live(work).bundle
    work.edit("bundle.yaml", "  # own: {", "  own: {")
    work.edit("bundle.yaml", "  # complex: {model: own", "  complex: {model: own")
    second = work.next_version()
    file = tmp_path / "b.yaml"
    text = "apiVersion: bundlectl/v1\nkind: Bindings\nmodels: {own: {base_url: http://127.0.0.1:9/v1}}\n"
    file.write_text(text)
    promote(work.context(), f"{APP}@{second}", environment="dev", reason="second", bindings_file=file)
    done = rollback(work.context(), DEV, reason="bad answers")
    assert done.released.bundle == first
    assert live(work).bindings.models == {}, "the first bundle has no such model; a resolver would refuse it"
    assert done.released.warnings[-1] == "bindings: own is left out: the bundle does not have it"
    again = rollback(work.context(), DEV, reason="forth again")
    assert again.released.bundle == second
    assert live(work).bindings.models["own"].base_url == "http://127.0.0.1:9/v1", "it cannot be served without"
    assert again.released.warnings[-1] == "bindings: own is bound as it was then"
    verified(work)


def test_which_bindings_return(work: Workspace) -> None:
    work.edit("bundle.yaml", "  # own: {", "  own: {")
    work.edit("bundle.yaml", "  # complex: {model: own", "  complex: {model: own")
    parts = build(work.context(), work.folder)
    from bundlectl.actions.opening import load_bundle

    components = load_bundle(work.context(), f"{APP}@{parts.bundle}")[1].components
    then = Bindings.model_validate({"disabled_models": ["own"]})
    assert returning(Bindings(), then, components) == (then, ["own stays disabled, as it was then"])
    assert misfits(returning(Bindings(), then, components)[0], components) == []
    now = Bindings.model_validate({"models": {"own": {"base_url": "http://x"}}, "disabled_models": ["quotes"]})
    assert returning(now, then, components) == (now, []), "what is live has the last word on what it names"
    assert misfits(now, components) == []
    assert [why for why in misfits(Bindings(), components) if "own" in why]


def test_a_bundle_whose_evaluation_is_old_comes_back_with_a_warning(work: Workspace) -> None:
    second = work.next_version()
    work.release("staging", reason="second")
    ctx = work.context()
    evaluate(ctx, str(work.folder))
    done = rollback(ctx, f"{APP}:staging", reason="bad answers")
    assert done.released.bundle != second
    assert all(check.warning or check.verdict == "pass" for check in done.checks)


def test_bindings_are_judged_by_every_providers_rules() -> None:
    model = Model(provider="sagemaker", model="own-llm")
    wrong = ModelBinding(credential="env:KEY", async_input="s3://bucket/in", target_variant="blue")
    credential, part = provider_misfits("own", model, wrong, {})
    assert "takes none" in credential and "target_variant" in part
    assert provider_misfits("own", model, ModelBinding(region="eu-west-1"), {}) == []
    bedrock = Model(provider="bedrock", model="amazon.nova-lite-v1:0")
    assert provider_misfits("own", bedrock, ModelBinding(), {}) == [], "the region may be the router's own"
    assert "guards.bedrock" in provider_misfits("own", bedrock, ModelBinding(), {"bedrock": {"id": ""}})[0]
    model = Model(provider="openai", model="x")
    assert "base_url" in provider_misfits("own", model, ModelBinding(), {})[0]
    (told,) = provider_misfits("own", model, ModelBinding(base_url="https://me:sesame@vllm.internal/v1"), {})
    assert "user" in told and "sesame" not in told, "it would be in every release, and fail beside a credential"
    assert not provider_misfits("own", model, ModelBinding(base_url="https://vllm.internal/v1/@me"), {})
