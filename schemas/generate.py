"""Write the JSON Schemas of every file and wire format, generated from the models; or check that they are in step.

    python schemas/generate.py            write them, and delete those that nothing stands for any more
    python schemas/generate.py --check    exit 1 and name each file that differs, is missing or is stale

``schemas/<format>.schema.json`` says what bundlectl accepts; ``schemas/output/<verb>.schema.json`` what the verb
prints with ``-o json``: there every field is required that is always there, and what is absent is never null.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from bundlectl.actions.applying import Applied, KeyringExported
from bundlectl.actions.ask import Asked
from bundlectl.actions.attest import Attestation
from bundlectl.actions.batch import Batches
from bundlectl.actions.bind import Bound
from bundlectl.actions.build import Built
from bundlectl.actions.calibrate import Calibrated
from bundlectl.actions.copying import Copied
from bundlectl.actions.creating import CreatedRegistry
from bundlectl.actions.demo import Played
from bundlectl.actions.doctor import Examined
from bundlectl.actions.drift import Drifted
from bundlectl.actions.evaluate import Evaluated
from bundlectl.actions.gc import Collected
from bundlectl.actions.index import IndexBuilt, IndexDiff, IndexShown
from bundlectl.actions.init import Scaffolded
from bundlectl.actions.keyring import GeneratedKey, Initialised, ShownKeyring
from bundlectl.actions.locating import LocatedRegistry
from bundlectl.actions.override import Overridden
from bundlectl.actions.policy import PolicyChanged, PolicyDiff, PolicyExported
from bundlectl.actions.promote import Plan, Promoted
from bundlectl.actions.receipt_cases import Exported, ReceiptInput
from bundlectl.actions.receipts import Receipts
from bundlectl.actions.releasing import Released
from bundlectl.actions.repair import Repaired
from bundlectl.actions.rollback import RolledBack
from bundlectl.actions.show import Shown
from bundlectl.actions.signing import ShownRequest, SignedRequest
from bundlectl.actions.status import History, Status
from bundlectl.actions.succession import KeyringChanged
from bundlectl.actions.transfer import Transferred
from bundlectl.actions.validate import Validated
from bundlectl.actions.verify import Verified
from bundlectl.bundling.source_models import AccessCases, SourceBundle, SourceOutput, SourceRoutes
from bundlectl.evaluation.cache import Held
from bundlectl.evaluation.calibration import Calibration
from bundlectl.evaluation.labels import Label
from bundlectl.evaluation.report import Report
from bundlectl.insight.diff import BundleDiff
from bundlectl.insight.explain import Explanation
from bundlectl.insight.kept import KeptAnswer
from bundlectl.model import components, types
from bundlectl.model.attestation import Approval, Envelope, EvaluationResult, Override, Statement
from bundlectl.model.batch import Batch, BatchHeader, BatchRequest, BatchResult
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Manifest
from bundlectl.model.collecting import GcMark, GcState
from bundlectl.model.contract import Answer, Request
from bundlectl.model.documents import IndexPointer, IndexSource, Snapshot, TableFiles
from bundlectl.model.keyring import Keyring, KeyringEntry, Policy, PolicySource
from bundlectl.model.receipt import Receipt
from bundlectl.model.release import Head, Release
from bundlectl.model.signing import SigningRequest
from bundlectl.model.suite import Case, Suite
from bundlectl.registry.witness import Locator, Witness

FOLDER: Final = Path(__file__).resolve().parent
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Format:
    """What a schema is of. ``about`` stands in for a docstring that says too little, or is missing."""

    title: str
    type: Any
    about: str = ""


FORMATS: Final = {
    # files that people write
    "bundle": Format("bundle.yaml", SourceBundle, "The source of a bundle: everything that can change an answer."),
    "prompt": Format("Prompt file", components.Prompt),
    "bindings": Format("Bindings file", Bindings, "environments/<name>.yaml: what one environment must differ in."),
    "access-cases": Format("Access cases file", AccessCases),
    "suite": Format("Suite file", Suite),
    "case": Format("Dataset line", Case, "One line of a dataset (JSON Lines): an input, who asks, what is expected."),
    "receipt-input": Format("Line of the inputs of receipts export", ReceiptInput),
    "label": Format(
        "Labels line", Label, "One line of a file of labels (JSON Lines): what a person said of an answer."
    ),
    "judge-calibration": Format("Record of a judge's calibration", Calibration),
    "index-source": Format("Index source file", IndexSource),
    "policy-source": Format("Policy file", PolicySource),
    # what a product sends, and gets
    "request": Format("Request", Request),
    "answer": Format("Answer", Answer),
    "batch-request": Format("Line of a batch", BatchRequest),
    "batch-result": Format("Line of a batch's results", BatchResult),
    "batch": Format("Batch", Batch),
    "batch-header": Format("Batch as it was accepted", BatchHeader),
    # what is stored, and signed
    "manifest": Format("Bundle manifest", Manifest),
    "envelope": Format("Envelope", Envelope),
    "statement": Format("Statement", Statement),
    "evaluation-result": Format("Evaluation result", EvaluationResult),
    "approval": Format("Approval", Approval),
    "override": Format("Override", Override),
    "report": Format("Evaluation report", Report),
    "keyring": Format("Keyring", Keyring),
    "policy": Format("Policy", Policy),
    "signing-request": Format("Signing request", SigningRequest),
    "release": Format("Release", Release),
    "head": Format("Head", Head),
    "snapshot": Format("Snapshot", Snapshot),
    "index-pointer": Format("Index pointer", IndexPointer),
    "receipt": Format("Receipt", Receipt),
    "locator": Format("Locator of a registry, in Parameter Store", Locator),
    "witness": Format("Witness of an environment, in Parameter Store", Witness),
    "table-files": Format("List of an index's table files", TableFiles),
    "gc-state": Format("What gc has marked", GcState),
    "gc-mark": Format("Mark of gc", GcMark),
    "plan": Format("Plan", Plan),
}

OUTPUTS: Final = {
    "approve": Format("bundlectl approve", Attestation),
    "ask": Format("bundlectl ask", Asked),
    "attest": Format("bundlectl attest", Attestation),
    "batch-cancel": Format("bundlectl batch cancel", Batch),
    "batch-list": Format("bundlectl batch list", Batches),
    "batch-results": Format("bundlectl batch results", BatchResult, "One line of the output: a row's result."),
    "batch-status": Format("bundlectl batch status", Batch),
    "batch-submit": Format("bundlectl batch submit", Batch),
    "bind": Format("bundlectl bind", Bound),
    "build": Format("bundlectl build", Built),
    "copy": Format("bundlectl copy", Copied),
    "cache-clear": Format("bundlectl cache clear", Held),
    "cache-show": Format("bundlectl cache show", Held),
    "demo": Format("bundlectl demo", Played),
    "diff": Format("bundlectl diff", BundleDiff),
    "drift": Format("bundlectl drift", Drifted),
    "eval": Format("bundlectl eval", list[Evaluated], "One result for each suite."),
    "explain": Format(
        "bundlectl explain",
        Explanation | KeptAnswer | Receipt,
        "Two receipts explained; or the one, as it is, with that of the request it was kept from.",
    ),
    "export": Format("bundlectl export", Transferred),
    "history": Format("bundlectl history", History),
    "import": Format("bundlectl import", Transferred),
    "index-build": Format("bundlectl index build", IndexBuilt),
    "index-diff": Format("bundlectl index diff", IndexDiff),
    "index-show": Format("bundlectl index show", IndexShown),
    "init": Format("bundlectl init", Scaffolded),
    "judge-calibrate": Format("bundlectl judge calibrate", list[Calibrated], "One result for each scorer."),
    "keyring-add": Format("bundlectl keyring add", KeyringChanged),
    "keyring-app": Format("bundlectl keyring app", KeyringChanged),
    "keyring-apply": Format("bundlectl keyring apply", Applied),
    "keyring-block": Format("bundlectl keyring block", KeyringChanged),
    "keyring-compromise": Format("bundlectl keyring compromise", KeyringChanged),
    "keyring-epoch": Format("bundlectl keyring epoch", KeyringChanged),
    "keyring-export": Format("bundlectl keyring export", KeyringExported),
    "keyring-retire": Format("bundlectl keyring retire", KeyringChanged),
    "keyring-rotate-root": Format("bundlectl keyring rotate-root", KeyringChanged),
    "keyring-sign-request": Format(
        "bundlectl keyring sign-request",
        ShownRequest | SignedRequest,
        "With --show: what would change; else the signature.",
    ),
    "keyring-generate": Format("bundlectl keyring generate", GeneratedKey),
    "keyring-init": Format("bundlectl keyring init", Initialised),
    "keyring-show": Format("bundlectl keyring show", ShownKeyring),
    "keyring-trust-root": Format("bundlectl keyring trust-root", KeyringChanged),
    "override": Format("bundlectl override", Overridden),
    "policy-diff": Format("bundlectl policy diff", PolicyDiff),
    "policy-export": Format("bundlectl policy export", PolicyExported),
    "policy-set": Format("bundlectl policy set", PolicyChanged),
    "policy-show": Format("bundlectl policy show", Policy),
    "promote": Format("bundlectl promote", Promoted),
    "registry-doctor": Format("bundlectl registry doctor", Examined),
    "registry-create": Format("bundlectl registry create", CreatedRegistry),
    "registry-gc": Format("bundlectl registry gc", Collected),
    "registry-locate": Format("bundlectl registry locate", LocatedRegistry),
    "registry-repair": Format("bundlectl registry repair", Repaired),
    "receipts-export": Format("bundlectl receipts export", Exported),
    "receipts-list": Format("bundlectl receipts list", Receipts),
    "receipts-show": Format("bundlectl receipts show", Receipt),
    "renew": Format("bundlectl renew", Released),
    "rollback": Format("bundlectl rollback", RolledBack),
    "show": Format("bundlectl show", Shown),
    "sign": Format("bundlectl sign", Attestation),
    "status": Format("bundlectl status", Status),
    "validate": Format("bundlectl validate", Validated),
    "verify": Format("bundlectl verify", Verified),
}
"""Every verb that prints a result, by its words joined with ``-``."""

WRITTEN: Final = ("answer", "batch", "batch-result")
"""Formats that are only ever written by bundlectl: their schemas are as those of outputs."""

_PATTERNS: Final = {
    types._check_duration: {"pattern": "^([1-9][0-9]{0,8}|0)(ms|s|m|h|d)$"},
    types.check_relative_path: {"pattern": r"^(?!(.*/)?\.{0,2}(/|$))[^\\\u0000]+$"},
}
_TIME: Final = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"

_TEXT: Final = {"type": "string"}
_SCHEMA_FOR_JSON: Final = {
    "if": {"properties": {"format": {"const": "structured_json"}}, "required": ["format"]},
    "then": {"properties": {"schema": {"not": {"type": "null"}}}, "required": ["schema"]},
    "else": {"properties": {"schema": {"type": "null"}}},
}
_RULES: Final[dict[type, dict[str, Any]]] = {
    components.Model: {
        "if": {"properties": {"provider": {"const": "extractive"}}, "required": ["provider"]},
        "else": {"properties": {"model": {"type": "string", "minLength": 1}}, "required": ["model"]},
    },
    components.Detector: {
        "oneOf": [
            {"properties": {"entity": _TEXT}, "required": ["entity"]},
            {"properties": {"pattern": _TEXT, "name": _TEXT}, "required": ["pattern", "name"]},
        ]
    },
    components.Output: _SCHEMA_FOR_JSON,
    SourceOutput: _SCHEMA_FOR_JSON,
    SourceRoutes: {"propertyNames": {"pattern": f"^{types.NAME.pattern}$"}},
    KeyringEntry: {
        "oneOf": [
            {"properties": {"key": {"type": "object"}}, "required": ["key"]},
            {"properties": {"oidc": {"type": "object"}}, "required": ["oidc"]},
        ]
    },
}
"""What validators check across fields, as far as a schema can say it."""

ERROR: Final = {
    "$schema": DIALECT,
    "$id": "urn:bundlectl:schema:v1:output:error",
    "title": "Error",
    "description": "What any verb prints on stderr with -o json when it fails: what happened, why, what to do next.",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "error": {"type": "string", "description": "A stable code, e.g. gate_not_passed.", "pattern": "^[a-z_]+$"},
        "message": {"type": "string", "description": "What happened."},
        "why": {"type": "string", "description": "The cause, when it is known and not already said."},
        "fix": {"type": "string", "description": "What to do next."},
        "exit_code": {"type": "integer", "description": "The exit code of the process.", "minimum": 1, "maximum": 7},
        "details": {
            "type": "object",
            "description": "Facts for machines; which ones depends on the error.",
            "properties": {
                "problems": {
                    "type": "array",
                    "description": "Findings in source files; line and column count from 1, 0 is the whole file.",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "file": {"type": "string"},
                            "line": {"type": "integer", "minimum": 0},
                            "column": {"type": "integer", "minimum": 0},
                            "message": {"type": "string"},
                            "right": {"type": "string", "description": "What would be right."},
                        },
                        "required": ["file", "line", "column", "message", "right"],
                    },
                }
            },
        },
    },
    "required": ["error", "message", "exit_code"],
}


class Generator(GenerateJsonSchema):
    """Pydantic's generator, with the form that is on the wire: see ``Strict.form``."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Set none: a title that repeats the field's name says nothing."""
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        """Add what validators check across fields; say the docstring in running text."""
        made = super().model_schema(schema)
        if "description" in made:
            made["description"] = _running(made["description"])
        return made | _RULES.get(schema["cls"], {})

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """Refuse keys that do not have the pattern of names; pydantic leaves them open."""
        made = super().dict_schema(schema)
        if "patternProperties" in made:
            made["additionalProperties"] = False
        return made

    def function_after_schema(self, schema: Any) -> dict[str, Any]:
        """Say the patterns of paths and durations, which code checks."""
        return super().function_after_schema(schema) | _PATTERNS.get(schema["function"]["function"], {})

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """Leave out defaults of null: absent is absent."""
        made = super().default_schema(schema)
        if made.get("default", 0) is None:
            del made["default"]
        return made

    def model_field_schema(self, schema: Any) -> dict[str, Any]:
        """Where it is written, None is left out: such a field has its inner form."""
        return self.generate_inner(_without_null(schema["schema"]) if self._writes else schema["schema"])

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Where it is written, all is there but None."""
        if self._writes and field["type"] == "model-field":
            return _core(field["schema"])["type"] not in ("nullable", "any")
        return super().field_is_required(field, total)

    @property
    def _writes(self) -> bool:
        return self.mode == "serialization"


def _core(schema: Any) -> Any:
    while schema["type"] == "default" or schema["type"].startswith("function-"):
        schema = schema["schema"]
    return schema


def _without_null(schema: Any) -> Any:
    core = _core(schema)
    return core["schema"] if core["type"] == "nullable" else schema


def _running(text: str) -> str:
    """Give a docstring as people read it: paragraphs in one line, no markup."""
    text = re.sub(r":\w+:`([^`]*)`", r"`\1`", text.replace("``", "`"))
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text).strip()


def _timed(value: Any) -> Any:
    """Give the schema with the one form in which times are written."""
    if isinstance(value, list):
        return [_timed(child) for child in value]
    if not isinstance(value, dict):
        return value
    made = {key: _timed(child) for key, child in value.items()}
    return made | {"pattern": _TIME} if made.get("format") == "date-time" else made


def schema_of(urn: str, format_: Format, mode: JsonSchemaMode) -> dict[str, Any]:
    """Generate one schema."""
    made = TypeAdapter(format_.type).json_schema(by_alias=True, schema_generator=Generator, mode=mode)
    about = format_.about or made.get("description") or _running(inspect.getdoc(format_.type) or "")
    header = {"$schema": DIALECT, "$id": urn, "title": format_.title, "description": about}
    body = {key: value for key, value in _timed(made).items() if key not in header}
    definitions = body.pop("$defs", None)
    return header | body | ({"$defs": definitions} if definitions else {})


def schemas() -> dict[str, dict[str, Any]]:
    """Generate every schema, by its path below ``schemas/``."""
    made: dict[str, dict[str, Any]] = {}
    for name, format_ in FORMATS.items():
        mode: JsonSchemaMode = "serialization" if name in WRITTEN else "validation"
        made[f"{name}.schema.json"] = schema_of(f"urn:bundlectl:schema:v1:{name}", format_, mode)
    for name, format_ in OUTPUTS.items():
        urn = f"urn:bundlectl:schema:v1:output:{name}"
        made[f"output/{name}.schema.json"] = schema_of(urn, format_, "serialization")
    made["output/error.schema.json"] = ERROR
    return made


def texts() -> dict[str, str]:
    """Give every file as it is to be written, by its path below ``schemas/``."""
    return {path: json.dumps(schema, ensure_ascii=False, indent=2) + "\n" for path, schema in schemas().items()}


def differences(folder: Path = FOLDER) -> list[str]:
    """Say what of the files is not as the models have it; one line each."""
    wanted = texts()
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.schema.json")}
    found = [f"{path}: missing" for path in wanted if path not in there]
    found += [f"{path}: stale, nothing stands for it" for path in there if path not in wanted]
    for path, text in wanted.items():
        if path in there and there[path].read_text(encoding="utf-8") != text:
            found.append(f"{path}: differs from the models")
    return sorted(found)


def write(folder: Path = FOLDER) -> list[str]:
    """Write what differs and delete what is stale; give the paths that were touched."""
    touched = [line.partition(":")[0] for line in differences(folder)]
    wanted = texts()
    for path in touched:
        file = folder / path
        if path in wanted:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(wanted[path], encoding="utf-8", newline="\n")
        else:
            file.unlink()
    return touched


def main(argv: list[str]) -> int:
    """Run the command."""
    if argv not in ([], ["--check"]):
        sys.stderr.write("usage: python schemas/generate.py [--check]\n")
        return 2
    if argv == ["--check"]:
        found = differences()
        for line in found:
            sys.stderr.write(f"schemas/{line}\n")
        if found:
            sys.stderr.write("fix: python schemas/generate.py\n")
        return 1 if found else 0
    for path in write():
        sys.stdout.write(f"schemas/{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
