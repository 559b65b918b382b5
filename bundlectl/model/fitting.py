"""Which bindings go with an earlier bundle: a bundle holds logical names, and bindings speak of them."""

from __future__ import annotations

from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Components


def returning(live: Bindings, then: Bindings, parts: Components) -> tuple[Bindings, list[str]]:
    """Give the live bindings as far as they speak of what an earlier bundle has; what it needs besides is as it was.

    What was switched or moved since then stays so: a model disabled at night is not enabled by a rollback.

    Args:
        live: the bindings of the release that is left.
        then: those of the promotion that is returned to.
        parts: the components of the bundle that is returned to.

    Returns:
        The bindings, and a line for each that was left out or taken from then.
    """
    indexes = {retrieval.index for retrieval in parts.retrieval.values()}
    models = {name: bound for name, bound in live.models.items() if name in parts.models}
    places = {name: place for name, place in live.indexes.items() if name in indexes}
    disabled = [name for name in live.disabled_models if name in parts.models]
    limited = set(live.limits.named_tasks()) - set(parts.application.tasks)
    limited |= set(live.limits.named_routes()) - set(parts.routes.routes)
    gone = {*live.models, *live.disabled_models} - set(parts.models) | set(live.indexes) - indexes
    old_models = {n: b for n, b in then.models.items() if n in parts.models and n not in live.models}
    old_places = {n: p for n, p in then.indexes.items() if n in indexes and n not in live.indexes}
    guards = {side.bedrock.guard for p in parts.guardrails.values() for side in (p.input, p.output) if side.bedrock}
    old_guards = {n: g for n, g in then.guards.items() if n in guards and n not in live.guards}
    # Off when it was last live here, and nothing was bound to it since: it may have no address at all.
    old_off = [n for n in then.disabled_models if n in parts.models and n not in {*live.models, *disabled}]
    bindings = live.model_copy(
        update={
            "models": models | old_models,
            "indexes": places | old_places,
            "guards": live.guards | old_guards,
            "disabled_models": [*disabled, *old_off],
            "limits": live.limits.fitting(parts.application.tasks, parts.routes.routes),
        }
    )
    changes = [f"{name} is left out: the bundle does not have it" for name in sorted(gone)]
    changes += [f"the limit of {name} is left out: the bundle does not have it" for name in sorted(limited)]
    changes += [f"{name} is bound as it was then" for name in sorted({*old_models, *old_places, *old_guards})]
    changes += [f"{name} stays disabled, as it was then" for name in sorted(old_off)]
    return bindings, changes
