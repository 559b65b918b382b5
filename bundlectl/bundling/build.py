"""Build: a source becomes a bundle. A function of content alone: no clock, path, git state or order of keys."""

from __future__ import annotations

from bundlectl.bundling.source import Source
from bundlectl.model.bundle import MAX_LAYER, MAX_LAYERS, Bundle, component_document, make_bundle
from bundlectl.model.components import COMPONENTS
from bundlectl.model.errors import Problem, SourceError


def build(source: Source) -> Bundle:
    """Make the bundle of a source: every component as canonical JSON with its defaults written out, and the files.

    Raises:
        SourceError: a component or the number of files is beyond what a bundle may hold.
    """
    documents = {name: component_document(name, getattr(source.components, name)) for name in COMPONENTS}
    problems = [
        Problem(source.file, 0, f"the {name} component has {len(data):,} bytes", f"at most {MAX_LAYER:,}")
        for name, data in documents.items()
        if len(data) > MAX_LAYER
    ]
    if len(documents) + len(source.files) > MAX_LAYERS:
        allowed = MAX_LAYERS - len(documents)
        problems.append(Problem(source.file, 0, f"the bundle has {len(source.files)} files", f"at most {allowed}"))
    if problems:
        raise SourceError(problems)
    return make_bundle(documents, source.files)
