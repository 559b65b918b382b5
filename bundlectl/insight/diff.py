"""What differs between two bundles, in the words of their components.

Settings are listed as ``path: old -> new``; prompts, policies and other texts as unified diffs; documents by
section; bindings and evaluation scores beside them when they are at hand.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bundlectl.model.attestation import EvaluationResult
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import parse_json
from bundlectl.model.components import COMPONENTS
from bundlectl.model.types import Strict

Kind = Literal["added", "removed", "changed"]

_SAID_AS_TEXT = {"content", "digest"}


class ComponentChange(Strict):
    """One component's digest on both sides."""

    component: str
    a: str | None
    b: str | None
    changed: bool


class Setting(Strict):
    """One value that differs. ``path`` is dotted, starting with the component."""

    path: str
    kind: Kind
    a: Any = None
    b: Any = None


class TextChange(Strict):
    """A text that differs, as the lines of a unified diff."""

    name: str
    lines: list[str]


class DocumentChange(Strict):
    """A section of a document that was added, removed, changed or renamed."""

    document: str
    section: list[str]
    kind: Literal["added", "removed", "changed", "renamed"]
    was: list[str] | None = None


class ScoreChange(Strict):
    """One scorer's mean on both sides; ``None`` where it was not measured."""

    suite: str
    scorer: str
    tag: str | None
    a: float | None
    b: float | None


class BundleDiff(Strict):
    """Everything that differs between A and B."""

    a: str
    b: str
    same: bool
    components: list[ComponentChange]
    settings: list[Setting]
    texts: list[TextChange]
    documents: list[DocumentChange]
    bindings: list[Setting]
    scores: list[ScoreChange]
    notes: list[str] = []


def diff_bundles(
    a: Bundle,
    b: Bundle,
    *,
    bindings: tuple[Bindings, Bindings] | None = None,
    documents: Sequence[DocumentChange] = (),
    scores: Sequence[ScoreChange] = (),
    notes: Sequence[str] = (),
) -> BundleDiff:
    """Compare two bundles.

    Args:
        a: the earlier bundle.
        b: the later bundle.
        bindings: those of the two releases, when two releases are compared.
        documents: section changes between the pinned snapshots, when those are at hand.
        scores: changes in evaluation scores, see :func:`diff_scores`.
        notes: what could not be compared, and why.
    """
    ours, theirs = a.component_digests(), b.component_digests()
    components = [
        ComponentChange(component=n, a=ours.get(n), b=theirs.get(n), changed=ours.get(n) != theirs.get(n))
        for n in COMPONENTS
    ]
    settings: list[Setting] = []
    texts: list[TextChange] = []
    for change in components:
        if change.changed:
            found, said = _component(change.component, _parsed(a, change.a), _parsed(b, change.b), a, b)
            settings += found
            texts += said
    bound = diff_settings("bindings", bindings[0].form(), bindings[1].form()) if bindings else []
    return BundleDiff(
        a=a.digest,
        b=b.digest,
        same=a.digest == b.digest and not bound,
        components=components,
        settings=settings,
        texts=texts,
        documents=list(documents),
        bindings=bound,
        scores=list(scores),
        notes=list(notes),
    )


def diff_scores(a: Sequence[EvaluationResult], b: Sequence[EvaluationResult]) -> list[ScoreChange]:
    """Hold the scores of the newest evaluation of each suite against each other."""
    first, second = _newest(a), _newest(b)
    changes: list[ScoreChange] = []
    for suite in sorted(first.keys() | second.keys()):
        ours = {(s.scorer, s.tag): s.mean for s in first[suite].scores} if suite in first else {}
        theirs = {(s.scorer, s.tag): s.mean for s in second[suite].scores} if suite in second else {}
        for scorer, tag in sorted(ours.keys() | theirs.keys(), key=lambda k: (k[0], k[1] or "")):
            key = (scorer, tag)
            changes.append(ScoreChange(suite=suite, scorer=scorer, tag=tag, a=ours.get(key), b=theirs.get(key)))
    return changes


def _newest(results: Sequence[EvaluationResult]) -> dict[str, EvaluationResult]:
    newest: dict[str, EvaluationResult] = {}
    for result in sorted(results, key=lambda r: r.finished):
        newest[result.suite] = result
    return newest


def _parsed(bundle: Bundle, digest: str | None) -> Any:
    return parse_json(bundle.blobs[digest], what=f"component {digest}") if digest else None


def _component(name: str, old: Any, new: Any, a: Bundle, b: Bundle) -> tuple[list[Setting], list[TextChange]]:
    texts: list[TextChange] = []
    if name == "prompts":
        texts = _prompt_texts(old or {}, new or {})
    if name == "access":
        texts = _file_texts(_files(old), _files(new), a, b)
    said = {text.name for text in texts}
    settings = [
        setting
        for setting in diff_settings(name, old, new)
        # A message or file whose text is shown as a diff is not listed a second time as a value.
        if not (said and setting.path.rpartition(".")[2] in _SAID_AS_TEXT)
    ]
    return settings, texts


def _prompt_texts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[TextChange]:
    texts = []
    for name in sorted(old.keys() | new.keys()):
        first, second = _prompt_text(old.get(name)), _prompt_text(new.get(name))
        if first != second:
            texts.append(TextChange(name=f"prompts.{name}", lines=_unified(first, second)))
    return texts


def _prompt_text(prompt: Mapping[str, Any] | None) -> str:
    if prompt is None:
        return ""
    return "".join(f"[{message['role']}]\n{message['content'].rstrip()}\n" for message in prompt["messages"])


def _files(access: Mapping[str, Any] | None) -> dict[str, str]:
    if access is None:
        return {}
    return {ref["path"]: ref["digest"] for ref in [*access["policies"], access["schema"]]}


def _file_texts(old: Mapping[str, str], new: Mapping[str, str], a: Bundle, b: Bundle) -> list[TextChange]:
    texts = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            first = a.blobs[old[path]].decode("utf-8", "replace") if path in old else ""
            second = b.blobs[new[path]].decode("utf-8", "replace") if path in new else ""
            texts.append(TextChange(name=path, lines=_unified(first, second)))
    return texts


def _unified(old: str, new: str) -> list[str]:
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2))
    return lines[2:]  # without the two file name lines: the change is named by its TextChange


def diff_settings(path: str, old: Any, new: Any) -> list[Setting]:
    """List what differs between two JSON values, as dotted paths."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[Setting] = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}"
            if key not in old:
                found.append(Setting(path=inner, kind="added", b=new[key]))
            elif key not in new:
                found.append(Setting(path=inner, kind="removed", a=old[key]))
            else:
                found += diff_settings(inner, old[key], new[key])
        return found
    if isinstance(old, list) and isinstance(new, list):
        return _list_settings(path, old, new)
    if old is None:
        return [Setting(path=path, kind="added", b=new)]
    if new is None:
        return [Setting(path=path, kind="removed", a=old)]
    return [Setting(path=path, kind="changed", a=old, b=new)]


def _list_settings(path: str, old: list[Any], new: list[Any]) -> list[Setting]:
    """Align two lists, so that one inserted rule is one addition and not a change of every later one."""
    found: list[Setting] = []
    keys_old, keys_new = [_key(v) for v in old], [_key(v) for v in new]
    for op, i1, i2, j1, j2 in difflib.SequenceMatcher(a=keys_old, b=keys_new, autojunk=False).get_opcodes():
        if op == "equal":
            continue
        both = min(i2 - i1, j2 - j1) if op == "replace" else 0
        for offset in range(both):
            found += diff_settings(f"{path}[{j1 + offset}]", old[i1 + offset], new[j1 + offset])
        found += [Setting(path=f"{path}[{i}]", kind="removed", a=old[i]) for i in range(i1 + both, i2)]
        found += [Setting(path=f"{path}[{j}]", kind="added", b=new[j]) for j in range(j1 + both, j2)]
    return found


def _key(value: Any) -> str:
    return repr(sorted(value.items(), key=lambda item: item[0])) if isinstance(value, dict) else repr(value)
