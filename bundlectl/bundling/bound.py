"""Do an environment's bindings fit a bundle? Told with file and line, before anything is signed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bundlectl.bundling.checks import unknown
from bundlectl.bundling.documents import in_order, read_document
from bundlectl.bundling.messages import suggest
from bundlectl.bundling.provider_settings import check_guards
from bundlectl.bundling.source_models import SourceBundle
from bundlectl.bundling.yaml import Document
from bundlectl.bundling.yaml import Path as At
from bundlectl.inference.fitting import misfits
from bundlectl.model.bindings import DEFAULT, Bindings
from bundlectl.model.bundle import Components
from bundlectl.model.components import Profile
from bundlectl.model.errors import Problem, SourceError

ANY: Final = "*"
BEDROCK: Final = "bedrock"
"""The guardrail that every model on Bedrock is called with; profiles apply it, or others, by name."""
_CLAIM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Names:
    """What bindings may speak of: the logical names of one bundle."""

    models: Collection[str]
    indexes: Collection[str]
    tasks: Collection[str]
    routes: Collection[str]
    guards: Collection[str]

    @classmethod
    def of_source(cls, bundle: SourceBundle) -> Names:
        """Give those of a source."""
        indexes = {use.index for use in bundle.retrieval.values()}
        return cls(bundle.models, indexes, bundle.tasks, bundle.routes.routes, _guards(bundle.guardrails))

    @classmethod
    def of_bundle(cls, parts: Components) -> Names:
        """Give those of a bundle that was built."""
        indexes = {use.index for use in parts.retrieval.values()}
        tasks, routes = parts.application.tasks, parts.routes.routes
        return cls(parts.models, indexes, tasks, routes, _guards(parts.guardrails))


def load_bindings(file: Path, environment: str, parts: Components, *, off: Collection[str] = ()) -> Bindings:
    """Read the bindings of an environment for a bundle that was built.

    Args:
        file: the bindings.
        environment: whose they are.
        parts: the bundle's components.
        off: models that are switched off besides, and so need no address.

    Raises:
        SourceError: it cannot be read, or does not fit the bundle.
    """
    bound, document = read_document(file, Bindings)
    problems = check_bindings(environment, bound, document, Names.of_bundle(parts))
    if not problems:
        without = bound.model_copy(
            update={"disabled_models": [*bound.disabled_models, *(set(off) & set(parts.models))]}
        )
        problems = [document.problem(_about_models(document), said, key=True) for said in misfits(without, parts)]
    if problems:
        raise SourceError(in_order(problems))
    return bound


def check_bindings(environment: str, bound: Bindings, at: Document, names: Names) -> list[Problem]:
    """Check that an environment binds only what the bundle has, and what can work."""
    what = f"environment {environment} binds"
    limits = bound.limits
    routes = [name for name in limits.routes or {} if name != DEFAULT]
    return [
        *unknown(at, ("models",), bound.models, names.models, f"{what} the model", keys=True),
        *unknown(at, ("indexes",), bound.indexes, names.indexes, f"{what} the index", keys=True),
        *unknown(at, ("guards",), bound.guards, names.guards, f"{what} the guard", keys=True),
        *unknown(at, ("limits", "tasks"), limits.named_tasks(), names.tasks, f"{what} a limit to the task", keys=True),
        *unknown(at, ("limits", "routes"), routes, names.routes, f"{what} a limit to the route", keys=True),
        *check_guards(bound, at),
        *_addresses(bound, at),
        *_soft_route(environment, bound, at, names),
        *_disabled(environment, bound, at, names),
        *_callers(bound, at),
        *_tenants(bound, at),
    ]


def _about_models(document: Document) -> At:
    """Give the place of what is bound to models, if anything is: most of what cannot be opened is about them."""
    return ("models",) if ("models",) in document.values else ()


def _guards(profiles: Mapping[str, Profile]) -> set[str]:
    sides = [side for profile in profiles.values() for side in (profile.input, profile.output)]
    return {BEDROCK} | {side.bedrock.guard for side in sides if side.bedrock is not None}


def _addresses(bound: Bindings, at: Document) -> Iterator[Problem]:
    for name, model in bound.models.items():
        if model.base_url is not None and not _is_address(model.base_url):
            message = f"{model.base_url!r} is no address of a model server"
            yield at.problem(("models", name, "base_url"), message, "e.g. https://vllm.internal/v1")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", url)
        )
    except ValueError:
        return False


def _soft_route(environment: str, bound: Bindings, at: Document, names: Names) -> Iterator[Problem]:
    soft = bound.limits.soft_route
    if soft is not None and soft not in names.routes:
        message = f"environment {environment} answers beyond soft limits by the route {soft!r}, which is not defined"
        yield at.problem(("limits", "soft_route"), message, suggest(soft, names.routes))


def _disabled(environment: str, bound: Bindings, at: Document, names: Names) -> Iterator[Problem]:
    for position, name in enumerate(bound.disabled_models):
        if name not in names.models:
            message = f"environment {environment} disables the model {name!r}, which the bundle lacks"
            yield at.problem(("disabled_models", position), message, suggest(name, names.models))


def _callers(bound: Bindings, at: Document) -> Iterator[Problem]:
    """Find callers that would be taken for others, and claims that would never hold."""
    keys, issuers = bound.identities.api_keys, bound.identities.oidc or []
    for position, key in enumerate(keys):
        place: At = ("identities", "api_keys", position)
        for other in keys[:position]:
            if key.id == other.id:
                message = f"the API key {key.id!r} is here a second time"
                yield at.problem(place, message, "a key that takes another's place has an id of its own")
            if key.hash == other.hash:
                message = f"the API keys {other.id!r} and {key.id!r} have the same hash"
                yield at.problem((*place, "hash"), message, "one key is one caller; keep one of them")
        yield from _claims(at, (*place, "tenants"), key.tenants, "tenant")
        yield from _claims(at, (*place, "roles"), key.roles, "role")
    for position, issuer in enumerate(issuers):
        place = ("identities", "oidc", position)
        if any(issuer.id == other.id for other in issuers[:position]):
            message = f"the token issuer {issuer.id!r} is here a second time"
            yield at.problem(place, message, "receipts name callers by it")
        for number, caller in enumerate(issuer.callers):
            yield from _claims(at, (*place, "callers", number, "tenants"), caller.tenants or [], "tenant")
            yield from _claims(at, (*place, "callers", number, "roles"), caller.roles or [], "role")


def _claims(at: Document, place: At, values: list[str], what: str) -> Iterator[Problem]:
    for position, value in enumerate(values):
        if value != ANY and not _CLAIM.fullmatch(value):
            message = f"no request can name the {what} {value!r}"
            yield at.problem((*place, position), message, f"letters, digits and . _ -; or {ANY} alone for any {what}")


def _tenants(bound: Bindings, at: Document) -> Iterator[Problem]:
    for name in bound.limits.tenants:
        if not _CLAIM.fullmatch(name):
            message = f"no request can name the tenant {name!r}"
            right = f"letters, digits and . _ -; {DEFAULT} is for whoever has no entry"
            yield at.problem(("limits", "tenants", name), message, right, key=True)
