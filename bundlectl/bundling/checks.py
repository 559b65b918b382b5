"""Do the parts of a source fit together? Names that must exist, routes that end, rules that can be reached."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from bundlectl.bundling.documents import validated
from bundlectl.bundling.files import BadPath, Folder
from bundlectl.bundling.messages import suggest
from bundlectl.bundling.provider_settings import check_parameters
from bundlectl.bundling.source_models import SourceBundle
from bundlectl.bundling.yaml import Document, parse_yaml
from bundlectl.bundling.yaml import Path as At
from bundlectl.model.components import AccessCase, Between, When
from bundlectl.model.documents import IndexSource
from bundlectl.model.errors import Problem

RESTRICTED = "restricted"
"""The route for what must not reach another model; the rules that lead to it come first."""


def check_bundle(
    bundle: SourceBundle, document: Document, folder: Folder, cases: Sequence[AccessCase]
) -> list[Problem]:
    """Check bundle.yaml in itself, against the index sources beside it, and the access cases' names."""
    return [
        *_tasks(bundle, document),
        *check_parameters(bundle, document),
        *_routes(bundle, document),
        *_select(bundle, document),
        *_retrieval(bundle, document),
        *_scopes(bundle, document, folder),
        *_suites(bundle, document, folder.root),
        *_cases(bundle, folder, cases),
    ]


def unknown(
    document: Document,
    at: At,
    names: Iterable[str],
    known: Collection[str],
    what: str,
    *,
    keys: bool = False,
    where: str = "defined",
) -> list[Problem]:
    """Find names that are not known; ``names`` are the keys of the mapping at ``at``, or the items of its list."""
    return [
        document.problem(
            (*at, name if keys else position),
            f"{what} {name!r}, which is not {where}",
            suggest(name, known),
            key=keys,
        )
        for position, name in enumerate(names)
        if name not in known
    ]


def _twice(document: Document, at: At, names: Sequence[str]) -> list[Problem]:
    return [
        document.problem((*at, position), f"{name!r} is in the list a second time", "keep one")
        for position, name in enumerate(names)
        if name in names[:position]
    ]


def _tasks(bundle: SourceBundle, document: Document) -> list[Problem]:
    problems: list[Problem] = []
    for name, task in bundle.tasks.items():
        at: At = ("tasks", name)
        if task.retrieval is not None and task.retrieval not in bundle.retrieval:
            message = f"task {name} uses the retrieval {task.retrieval!r}, which is not defined"
            problems.append(document.problem((*at, "retrieval"), message, suggest(task.retrieval, bundle.retrieval)))
        problems += unknown(
            document, (*at, "profiles"), task.profiles, bundle.guardrails, f"task {name} uses the profile"
        )
        problems += _twice(document, (*at, "profiles"), task.profiles)
        problems += _twice(document, (*at, "scopes"), task.scopes)
    return problems + _twice(document, ("evaluation", "suites"), bundle.evaluation.suites)


def _routes(bundle: SourceBundle, document: Document) -> list[Problem]:
    routes = bundle.routes.routes
    if not routes:
        return [document.problem(("routes",), "there is no route", "e.g. fast: {model: plain}", key=True)]
    problems: list[Problem] = []
    for name, route in routes.items():
        at: At = ("routes", name)
        if route.model not in bundle.models:
            message = f"route {name} uses the model {route.model!r}, which is not defined"
            problems.append(document.problem((*at, "model"), message, suggest(route.model, bundle.models)))
        problems += unknown(document, (*at, "fallback"), route.fallback, routes, f"route {name} falls back to")
        problems += _twice(document, (*at, "fallback"), route.fallback)
        for position, target in enumerate(route.fallback):
            if (way := _way(target, name, {each: routes[each].fallback for each in routes})) is not None:
                circle = " -> ".join([name, *way])
                message = f"route {name} falls back in a circle: {circle}"
                right = "a chain of fallbacks must end; take one out"
                problems.append(document.problem((*at, "fallback", position), message, right))
    return problems + _restricted_fallback(bundle, document)


def _way(start: str, goal: str, edges: dict[str, list[str]]) -> list[str] | None:
    """Give the shortest way from start to goal, both included, or None."""
    ways = [[start]]
    seen = {start}
    for way in ways:
        if way[-1] == goal:
            return way
        for target in edges.get(way[-1], []):
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return None


def _restricted_fallback(bundle: SourceBundle, document: Document) -> list[Problem]:
    """Find fallbacks of the restricted route to another model; one that quotes passages in-process is allowed."""
    routes = bundle.routes.routes
    restricted = routes.get(RESTRICTED)
    problems: list[Problem] = []
    for position, target in enumerate(restricted.fallback if restricted is not None else []):
        model = bundle.models.get(routes[target].model) if target in routes else None
        if restricted is None or model is None or routes[target].model == restricted.model:
            continue
        if model.provider != "extractive":
            message = f"route {RESTRICTED} falls back to {target}, which is another model ({routes[target].model})"
            right = "fallback: [], or a route to the same or an extractive model"
            problems.append(document.problem(("routes", RESTRICTED, "fallback", position), message, right))
    return problems


def _select(bundle: SourceBundle, document: Document) -> list[Problem]:
    problems: list[Problem] = []
    rules = bundle.routes.select
    caught = None
    for position, rule in enumerate(rules):
        at: At = ("routes", "select", position)
        if rule.use not in bundle.routes.routes:
            message = f"rule {position + 1} uses the route {rule.use!r}, which is not defined"
            problems.append(document.problem((*at, "use"), message, suggest(rule.use, bundle.routes.routes)))
        if caught is not None:
            message = f"rule {position + 1} is never reached: rule {caught + 1} has no 'when' and takes every request"
            problems.append(document.problem(at, message, "put the rule without 'when' last"))
            continue
        if rule.when is None:
            caught = position
        else:
            problems += _when(rule.when, (*at, "when"), bundle, document)
            problems += _overtaken(position, bundle, document)
    if caught is None:
        last = len(rules) - 1
        message = "no rule takes the requests that none of these match"
        problems.append(document.problem(("routes", "select", last), message, "end with one without 'when': {use: …}"))
    return problems


def _when(when: When, at: At, bundle: SourceBundle, document: Document) -> list[Problem]:
    problems: list[Problem] = []
    if when == When():
        problems.append(document.problem(at, "'when' is empty", "leave it out: the rule then takes every request"))
    if when.task is not None and when.task not in bundle.tasks:
        message = f"the rule asks for the task {when.task!r}, which is not defined"
        problems.append(document.problem((*at, "task"), message, suggest(when.task, bundle.tasks)))
    if when.profile is not None and when.profile not in bundle.guardrails:
        message = f"the rule asks for the profile {when.profile!r}, which is not defined"
        problems.append(document.problem((*at, "profile"), message, suggest(when.profile, bundle.guardrails)))
    if when.unhealthy is not None and when.unhealthy not in bundle.models:
        message = f"the rule asks for the health of the model {when.unhealthy!r}, which is not defined"
        problems.append(document.problem((*at, "unhealthy"), message, suggest(when.unhealthy, bundle.models)))
    if (tokens := when.prompt_tokens) is not None:
        if tokens == Between():
            problems.append(document.problem((*at, "prompt_tokens"), "no bound is given", "{over: 4000}"))
        elif tokens.over is not None and tokens.under is not None and tokens.under - tokens.over < 2:
            message = f"no number is over {tokens.over} and under {tokens.under}"
            problems.append(document.problem((*at, "prompt_tokens"), message, "both bounds are exclusive"))
    return problems


def _overtaken(position: int, bundle: SourceBundle, document: Document) -> list[Problem]:
    """Find rules before one to the restricted route that would take some of its requests elsewhere."""
    rules = bundle.routes.select
    rule = rules[position]
    if rule.use != RESTRICTED or rule.when is None:
        return []
    for earlier in rules[:position]:
        if earlier.use != RESTRICTED and earlier.when is not None and _overlap(earlier.when, rule.when):
            message = (
                f"rule {rules.index(earlier) + 1} would take some requests of this rule to {earlier.use} "
                f"before they reach {RESTRICTED}"
            )
            return [document.problem(("routes", "select", position), message, "move this rule up")]
    return []


def _overlap(one: When, other: When) -> bool:
    """Say whether one request can match both."""
    for name in ("task", "profile", "latency_class", "response_format", "tenant", "role"):
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours is not None and theirs is not None and ours != theirs:
            return False
    first, second = one.prompt_tokens or Between(), other.prompt_tokens or Between()
    over = max((bound for bound in (first.over, second.over) if bound is not None), default=None)
    under = min((bound for bound in (first.under, second.under) if bound is not None), default=None)
    return over is None or under is None or under - over >= 2


def _retrieval(bundle: SourceBundle, document: Document) -> list[Problem]:
    problems: list[Problem] = []
    for name, use in bundle.retrieval.items():
        needs = "mode" if use.mode != "lexical" else "rerank" if use.rerank == "vector" else ""
        if needs and bundle.embedding is None:
            message = f"retrieval {name} compares vectors ({needs}: {getattr(use, needs)}), but there is no embedding"
            right = "add embedding: {provider: wordllama, model: l2_supercat, dimensions: 256}"
            problems.append(document.problem(("retrieval", name, needs), message, right))
        if use.top > use.candidates:
            message = f"top {use.top} is more than candidates {use.candidates}"
            problems.append(document.problem(("retrieval", name, "top"), message, "search for at least as many"))
    return problems


def _scopes(bundle: SourceBundle, document: Document, folder: Folder) -> list[Problem]:
    """Check scopes against the index source, and its embedding against the bundle's, where it lies beside."""
    problems: list[Problem] = []
    try:
        beside = set(folder.names("indexes", ".yaml"))
    except BadPath as error:
        return [document.problem(("retrieval",), error.message, error.right, key=True)]
    indexes: dict[str, IndexSource | None] = {}
    for index in sorted({use.index for use in bundle.retrieval.values()}):
        relative = f"indexes/{index}.yaml"
        if relative in beside:
            try:
                parsed = parse_yaml(folder.read(relative), folder.display(relative))
            except BadPath as error:
                problems.append(Problem(folder.display(relative), 0, error.message, error.right))
                continue
            indexes[index], found = validated(parsed, IndexSource)
            problems += found
    for name, task in bundle.tasks.items():
        use = bundle.retrieval.get(task.retrieval) if task.retrieval is not None else None
        source = indexes.get(use.index) if use is not None else None
        if source is not None and use is not None:
            known = {entry.scope for entry in source.sources}
            what = f"task {name} may see the scope"
            where = f"a scope of indexes/{use.index}.yaml"
            problems += unknown(document, ("tasks", name, "scopes"), task.scopes, known, what, where=where)
    for index, source in indexes.items():
        if source is not None and bundle.embedding is not None and source.embedding != bundle.embedding:
            message = f"the embedding is not the one of indexes/{index}.yaml ({_embedding(source)})"
            problems.append(document.problem(("embedding",), message, "question and documents need one embedding"))
    return problems


def _embedding(source: IndexSource) -> str:
    return f"{source.embedding.provider} {source.embedding.model}, {source.embedding.dimensions} dimensions"


def find_suites(root: Path) -> Path | None:
    """Give the ``evals`` folder of a bundle: in its folder, beside the bundles, or beside their folder."""
    absolute = root.absolute()
    for place in (absolute, absolute.parent, absolute.parent.parent):
        if (place / "evals").is_dir():
            return place / "evals"
    return None


def _suites(bundle: SourceBundle, document: Document, root: Path) -> list[Problem]:
    folder = find_suites(root)
    if folder is None:
        return []
    known = {path.stem for path in folder.glob("*.yaml")}
    return [
        document.problem(
            ("evaluation", "suites", position), f"there is no suite {name!r}: evals/{name}.yaml", suggest(name, known)
        )
        for position, name in enumerate(bundle.evaluation.suites)
        if name not in known
    ]


def _cases(bundle: SourceBundle, folder: Folder, cases: Sequence[AccessCase]) -> list[Problem]:
    """Check the names in cases that expect allow; a deny case may well ask for what does not exist."""
    relative = bundle.access.cases
    problems: list[Problem] = []
    if not cases:
        return problems
    document = parse_yaml(folder.read(relative), folder.display(relative))
    for position, case in enumerate(cases):
        at: At = ("cases", position)
        if any(case.name == other.name for other in cases[:position]):
            problems.append(document.problem((*at, "name"), f"a second case is called {case.name!r}", "rename one"))
        if case.expect == "deny":
            continue
        if (task := bundle.tasks.get(case.task)) is None:
            message = f"the case allows the task {case.task!r}, which is not defined"
            problems.append(document.problem((*at, "task"), message, suggest(case.task, bundle.tasks)))
            continue
        if case.profile not in task.profiles:
            message = f"the case allows the profile {case.profile!r}, which task {case.task} does not list"
            problems.append(document.problem((*at, "profile"), message, suggest(case.profile, task.profiles)))
        for number, scope in enumerate(case.scopes):
            if scope not in task.scopes:
                message = f"the case allows the scope {scope!r}, which task {case.task} does not list"
                problems.append(document.problem((*at, "scopes", number), message, suggest(scope, task.scopes)))
    return problems
