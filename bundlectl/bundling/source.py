"""Read a bundle's source folder: every file checked by itself, then against the others; or every problem at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bundlectl.bundling.bound import Names, check_bindings
from bundlectl.bundling.checks import check_bundle
from bundlectl.bundling.documents import in_order, load_document, read_document, validated
from bundlectl.bundling.files import BadPath, Folder, check_path
from bundlectl.bundling.jsonfile import parse_json_file
from bundlectl.bundling.proving import check_access, check_guards, check_output, check_prompt
from bundlectl.bundling.source_models import AccessCases, SourceAccess, SourceBundle
from bundlectl.bundling.yaml import Document, decode_text, parse_yaml
from bundlectl.bundling.yaml import Path as Place
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Components
from bundlectl.model.canonical import digest
from bundlectl.model.components import (
    Access,
    AccessCase,
    Application,
    FileRef,
    Output,
    Prompt,
    Routes,
    Task,
)
from bundlectl.model.errors import Problem, SourceError
from bundlectl.model.types import NAME, STORE_NAME

__all__ = ["Source", "load_document", "read_document", "read_source"]

BUNDLE_FILE = "bundle.yaml"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A source that is right: the components as they will be built, the files beside them, the bindings.

    ``root``: the folder; ``file``: bundle.yaml as named to people; ``files``: bytes by relative path;
    ``bindings``: by environment; ``top``: bundle.yaml, parsed; ``documents``: each parsed YAML file by relative path.
    """

    app: str
    root: Path
    file: str
    components: Components
    files: Mapping[str, bytes]
    bindings: Mapping[str, Bindings]
    top: Document
    documents: Mapping[str, Document]

    def where(self, place: str) -> str:
        """Give ``file:line`` of a dotted place in bundle.yaml, such as a lint finding's; the file if it has none."""
        parts = tuple(int(part) if part.isdigit() else part for part in place.split("."))
        found = _longest(parts, self.top)
        line = self.top.key_place(found).line if found else 0
        return f"{self.file}:{line}" if line else self.file


def _longest(parts: Place, document: Document) -> Place:
    for length in range(len(parts), 0, -1):
        if parts[:length] in document.values:
            return parts[:length]
    return ()


def read_source(path: Path) -> Source:
    """Read and check a bundle's source.

    Args:
        path: the folder, or its ``bundle.yaml``.

    Raises:
        SourceError: with every problem of every file, bundle.yaml first, in the order of lines.
    """
    root, name = (path, BUNDLE_FILE) if path.is_dir() else (path.parent, path.name)
    reader = _Reader(Folder(root))
    source = reader.source(name)
    if source is None or reader.problems:
        raise SourceError(in_order(reader.problems, first=reader.folder.display(name)))
    return source


@dataclass
class _Reader:
    """Reads one source; ``problems`` grows, and what could not be read is left out of what follows."""

    folder: Folder
    problems: list[Problem] = field(default_factory=list)
    documents: dict[str, Document] = field(default_factory=dict)

    def source(self, name: str) -> Source | None:
        file = self.folder.display(name)
        try:
            document = parse_yaml(self.folder.read(name), file)
        except BadPath as error:
            self.problems.append(Problem(file, 0, error.message, error.right))
            return None
        self.documents[name] = document
        bundle = self.checked(document, SourceBundle)
        bindings = self.bindings()
        if bundle is None:
            return None
        prompts = self.prompts(bundle, document)
        outputs = self.outputs(bundle, document)
        access, files = self.access(bundle, document)
        self.problems += check_bundle(bundle, document, self.folder, access.cases if access else [])
        self.problems += check_guards(bundle.guardrails, document)
        for environment, (bound, at) in bindings.items():
            self.problems += check_bindings(environment, bound, at, Names.of_source(bundle))
        if access is None or self.problems:
            return None
        self.problems += check_access(access, files, self.documents, self.folder, bundle.access.cases)
        return Source(
            app=bundle.app,
            root=self.folder.root,
            file=file,
            components=_components(bundle, prompts, outputs, access),
            files=files,
            bindings={environment: bound for environment, (bound, _) in bindings.items()},
            top=document,
            documents=self.documents,
        )

    def checked(self, document: Document, model: type[T]) -> T | None:
        value, problems = validated(document, model)
        self.problems += problems
        return value

    def read(self, relative: str, document: Document, at: Place) -> bytes | None:
        """Read a file that a document names; a problem stands where it is named."""
        try:
            return self.folder.read(relative)
        except BadPath as error:
            self.problems.append(document.problem(at, error.message, error.right))
            return None

    def read_yaml(self, relative: str, document: Document, at: Place, model: type[T]) -> tuple[T, Document] | None:
        data = self.read(relative, document, at)
        if data is None:
            return None
        parsed = self.documents[relative] = parse_yaml(data, self.folder.display(relative))
        value = self.checked(parsed, model)
        return None if value is None else (value, parsed)

    def prompts(self, bundle: SourceBundle, document: Document) -> dict[str, Prompt]:
        prompts: dict[str, Prompt] = {}
        paths: dict[str, str] = {}
        for name, task in sorted(bundle.tasks.items()):
            at: Place = ("tasks", name, "prompt")
            stem = _stem(task.prompt)
            if NAME.fullmatch(stem) is None:
                right = "lower-case letters, digits, - and _, e.g. prompts/answer.yaml"
                self.problems.append(document.problem(at, f"the file name {stem!r} is no prompt name", right))
            elif paths.setdefault(stem, task.prompt) != task.prompt:
                message = f"{task.prompt} and {paths[stem]} would both be the prompt {stem!r}"
                self.problems.append(document.problem(at, message, "rename one: a prompt is known by its file's name"))
            elif stem not in prompts and task.prompt not in self.documents:
                found = self.read_yaml(task.prompt, document, at, Prompt)
                if found is not None:
                    prompts[stem] = found[0]
                    self.problems += check_prompt(stem, *found)
        return prompts

    def outputs(self, bundle: SourceBundle, document: Document) -> dict[str, Output]:
        outputs: dict[str, Output] = {}
        for name, task in sorted(bundle.tasks.items()):
            schema: dict[str, Any] | None = None
            if task.output.schema_ is not None:
                relative = task.output.schema_
                data = self.read(relative, document, ("tasks", name, "output", "schema"))
                if data is None:
                    continue
                schema, problems = parse_json_file(data, self.folder.display(relative))
                self.problems += problems
                if schema is None:
                    continue
            output = Output.model_validate(
                {"format": task.output.format, "schema": schema, "repair": task.output.repair}
            )
            outputs[name] = output
            if task.output.schema_ is not None:
                file, data = self.folder.display(task.output.schema_), self.folder.read(task.output.schema_)
                self.problems += check_output(output, file, data)
        return outputs

    def access(self, bundle: SourceBundle, document: Document) -> tuple[Access | None, dict[str, bytes]]:
        """Read policies, schema and cases; None when one of them could not be read."""
        where: SourceAccess = bundle.access
        named = where.policies
        try:
            paths = sorted(set(named)) if named is not None else self.folder.names("access", ".cedar")
        except BadPath as error:
            self.problems.append(document.problem(("access",), error.message, error.right))
            return None, {}
        if not paths:
            message = "there is no access policy: access/*.cedar matches nothing"
            self.problems.append(document.problem((), message, "without a policy every request is denied"))
        files: dict[str, bytes] = {}
        for at, relative in [(("access", "policies"), p) for p in paths] + [(("access", "schema"), where.schema_)]:
            data = self.read(relative, document, at)
            text, problems = (None, []) if data is None else decode_text(data, self.folder.display(relative))
            self.problems += problems
            if data is not None and text is not None:
                files[relative] = data
        cases = self.read_yaml(where.cases, document, ("access", "cases"), AccessCases)
        if cases is None or not paths or any(path not in files for path in [*paths, where.schema_]):
            return None, files
        return _access(paths, where.schema_, files, cases[0].cases), files

    def bindings(self) -> dict[str, tuple[Bindings, Document]]:
        bindings: dict[str, tuple[Bindings, Document]] = {}
        try:
            paths = self.folder.names("environments", ".yaml")
        except BadPath as error:
            self.problems.append(Problem(self.folder.display("environments"), 0, error.message, error.right))
            return {}
        for relative in paths:
            file, environment = self.folder.display(relative), _stem(relative)
            if STORE_NAME.fullmatch(environment) is None:
                right = "lower-case letters, digits and -, at most 40, e.g. prod.yaml"
                self.problems.append(Problem(file, 0, f"{environment!r} is no environment's name", right))
                continue
            try:
                check_path(relative)
                document = self.documents[relative] = parse_yaml(self.folder.read(relative), file)
            except BadPath as error:
                self.problems.append(Problem(file, 0, error.message, error.right))
                continue
            bound = self.checked(document, Bindings)
            if bound is not None:
                bindings[environment] = (bound, document)
        return bindings


def _stem(relative: str) -> str:
    name = relative.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] if "." in name[1:] else name


def _access(policies: list[str], schema: str, files: Mapping[str, bytes], cases: list[AccessCase]) -> Access:
    def ref(path: str) -> FileRef:
        return FileRef(path=path, digest=digest(files[path]))

    return Access(policies=[ref(path) for path in policies], schema_=ref(schema), cases=cases)


def _components(
    bundle: SourceBundle, prompts: dict[str, Prompt], outputs: dict[str, Output], access: Access
) -> Components:
    tasks = {
        name: Task(prompt=_stem(task.prompt), retrieval=task.retrieval, scopes=task.scopes, profiles=task.profiles)
        for name, task in bundle.tasks.items()
    }
    version = bundle.application.version
    return Components(
        access=access,
        application=Application(app=bundle.app, version=version, tasks=tasks, rollback=bundle.rollback),
        embedding=bundle.embedding,
        evaluation=bundle.evaluation,
        guardrails=bundle.guardrails,
        models=bundle.models,
        output=outputs,
        prompts=prompts,
        retrieval=bundle.retrieval,
        routes=Routes(routes=bundle.routes.routes, select=bundle.routes.select),
    )
