"""demo: the whole story on the example app, in a folder of its own, against a real server on loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from bundlectl.actions.build import build
from bundlectl.actions.compare import diff, explain
from bundlectl.actions.context import Context
from bundlectl.actions.evaluate import evaluate
from bundlectl.actions.index import index_build
from bundlectl.actions.keyring import keyring_init
from bundlectl.actions.promote import promote
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import history
from bundlectl.insight.explain import Explanation
from bundlectl.model.contract import Answer
from bundlectl.model.errors import BackendUnavailable, NotFound, UsageError
from bundlectl.model.types import Strict
from bundlectl.registry.layout import head_key, history_key
from bundlectl.resources import data_root

MARKER = ".bundlectl-demo"
QUESTION = "How long are receipts kept?"
OTHERS = "What did Quayside report about their storage?"
WAIT = 20.0


class Told(Strict):
    """One of the three answers that the story ends with."""

    when: str
    serial: int
    bundle: str
    answer: str
    receipt: str


class Played(Strict):
    """What the demo leaves behind."""

    folder: str
    registry: str
    seconds: float
    answers: list[Told]
    why: str
    next: list[str]


class Narrator(Protocol):
    """Shows the story while it is played."""

    def scene(self, title: str, text: str) -> None:
        """Begin a scene: what happens now and why it matters."""

    def command(self, line: str) -> None:
        """Show the command that a reader would type for what comes next."""

    def result(self, result: object) -> None:
        """Show what the command gave, as the command itself would."""

    def note(self, text: str) -> None:
        """Say one line about what was just seen."""


def demo(ctx: Context, folder: Path, narrator: Narrator) -> Played:
    """Play the story.

    Args:
        ctx: the context; its registry is ``folder/.bundlectl/registry``.
        folder: a folder that does not exist, is empty, or holds an earlier demo, which is replaced.
        narrator: where it is told.

    Raises:
        UsageError: the folder holds something else.
    """
    began = time.monotonic()
    _set_up(folder)
    story = _Story(ctx, folder, narrator)
    answers, why = story.play()
    return Played(
        folder=str(folder),
        registry=ctx.registry_url,
        seconds=round(time.monotonic() - began, 1),
        answers=answers,
        why=why,
        next=[
            f"cd {folder}",
            "bundlectl status",
            "bundlectl history support:prod --verify",
            f'bundlectl ask support:prod --tenant northwind --role support_agent "{QUESTION}"',
            "bundlectl diff support:prod@1 support:prod@2",
            f"bundlectl explain {answers[0].receipt[:10]} {answers[1].receipt[:10]}",
            "bundlectl serve support:prod",
            'bundlectl dev bundles/support --tenant northwind --role support_agent --question "What is a bundle?"',
        ],
    )


def _set_up(folder: Path) -> None:
    """Copy the example content into the folder."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise UsageError(f"{folder} holds something that is no demo.", fix="Name another: bundlectl demo DIR")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("made by `bundlectl demo`; the next one replaces it\n", encoding="utf-8")
    root = data_root()
    for name in ("bundles/support", "bundles/support-change", "evals", "docs"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("decisions"))
    shutil.copyfile(root / "README.md", folder / "README.md")


class _Story:
    def __init__(self, ctx: Context, folder: Path, narrator: Narrator) -> None:
        self._ctx = ctx
        self._folder = folder
        self._source = folder / "bundles" / "support"
        self._suite = folder / "evals" / "support.yaml"
        self._tell = narrator

    def play(self) -> tuple[list[Told], str]:
        """Play every scene and give the three answers and why they differ."""
        self._begin()
        first = self._release("the first version", environments=("staging", "prod"))
        with _serving(self._ctx) as url:
            before = self._ask(url, "before", first)
            self._forbidden(url)
            self._change()
            second = self._release("receipts are kept longer", environments=("staging", "prod"))
            after = self._ask(url, "after", second)
            why = self._explain(before, after)
            third = self._roll_back()
            again = self._ask(url, "after rollback", third)
            self._tamper(url)
        self._tell.command("bundlectl history support:prod --verify")
        self._tell.result(history(self._ctx, "support:prod", verify=True))
        return [before, after, again], why

    def _begin(self) -> None:
        tell = self._tell
        tell.scene(
            "A registry in a folder",
            "Keys for each role, a keyring that says who may do what, and a policy with a gate for each environment. "
            "In production these keys lie with different people; here all of them are yours.",
        )
        tell.command("bundlectl keyring init --app support")
        tell.result(keyring_init(self._ctx, "support", owner="you", suites=["support"]))

    def _release(self, reason: str, *, environments: tuple[str, ...]) -> int:
        """Index, build, evaluate and promote what the source holds now; give prod's serial."""
        tell, ctx = self._tell, self._ctx
        tell.scene(
            "Documents, then the bundle",
            "The documents become a snapshot with a digest, and the bundle pins it. The bundle holds everything that "
            "can change an answer; the same source gives the same digest on every machine.",
        )
        tell.command("bundlectl index build bundles/support/indexes/support_docs.yaml --pin bundles/support")
        tell.result(index_build(ctx, self._source / "indexes" / "support_docs.yaml", pin=self._source))
        tell.command("bundlectl build bundles/support")
        built = build(ctx, self._source)
        tell.result(built)
        tell.scene(
            "The exam",
            "Every case runs through the real router: access rules, guards, search, answer, validation. The result "
            "is signed and attached to the bundle's digest.",
        )
        short = built.reference[:24]
        tell.command(f"bundlectl eval {short} --suite evals/support.yaml")
        tell.result(evaluate(ctx, built.reference, suite=self._suite))
        tell.scene(
            "Through the gates",
            "promote prints every check of the environment's gate and why. Only pass passes. Then one swap of one "
            "object makes the release live.",
        )
        serial = 0
        for environment in environments:
            confirm = " --confirm prod" if environment == "prod" else ""
            tell.command(f'bundlectl promote {short} --to {environment} --reason "{reason}"{confirm}')
            done = promote(
                ctx,
                built.reference,
                environment=environment,
                reason=reason,
                bindings_file=self._source / "environments" / f"{environment}.yaml",
                confirmed=environment,
            )
            tell.result(done)
            serial = done.released.serial if done.released else 0
        return serial

    def _ask(self, url: str, when: str, serial: int) -> Told:
        """Ask over HTTP, once the server has seen the release."""
        tell = self._tell
        tell.scene(
            f"A question over HTTP, {when}",
            "The server follows the registry, verifies every release again, and swaps it in without a pause.",
        )
        seconds = _wait_for(url, serial)
        if when != "before":
            tell.note(f"the server serves release {serial}, {seconds:.1f} s after it was committed")
        body = _contract(QUESTION)
        tell.command(f"curl -s {url}/v1/requests -d '{json.dumps(body)}'")
        answer = Answer.model_validate(_post(url, body))
        tell.result(answer)
        if answer.release.serial != serial:
            raise BackendUnavailable(f"Release {answer.release.serial} answered instead of {serial}.")
        return Told(
            when=when,
            serial=serial,
            bundle=answer.release.bundle,
            answer=_text(answer),
            receipt=answer.receipt,
        )

    def _forbidden(self, url: str) -> None:
        self._tell.scene(
            "What one customer must not see",
            "Tickets of three customers lie in one index. The filter is the server's, not the caller's: Northwind "
            "asks for Quayside's ticket and its documents are not even candidates.",
        )
        body = _contract(OTHERS)
        self._tell.command(f"curl -s {url}/v1/requests -d '{json.dumps(body)}'")
        answer = Answer.model_validate(_post(url, body))
        self._tell.result(answer)
        seen = [c.document for c in answer.citations if "/quayside/" in c.document]
        if seen:
            raise BackendUnavailable(f"Another tenant's documents were shown: {seen}")
        self._tell.note("no document of Quayside was used")

    def _change(self) -> None:
        """Put version two of the source over the first."""
        change = self._folder / "bundles" / "support-change"
        changed = sorted(file.relative_to(change) for file in change.rglob("*") if file.is_file())
        for file in changed:
            (self._folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(change / file, self._folder / file)
        self._tell.scene(
            "A change",
            "Someone rewrites the prompt, changes one document and adds another: "
            + ", ".join(str(file) for file in changed)
            + ".",
        )

    def _explain(self, before: Told, after: Told) -> str:
        tell = self._tell
        tell.scene("What changed", "A customer says: the answer changed. First: what differs between the two releases.")
        tell.command("bundlectl diff support:prod@1 support:prod@2")
        tell.result(diff(self._ctx, "support:prod@1", "support:prod@2"))
        tell.scene("Why the answer changed", "Then: which of it reached this answer. The two receipts know.")
        tell.command(f"bundlectl explain {before.receipt[:10]} {after.receipt[:10]}")
        _wait_for_receipts(self._ctx, before.receipt, after.receipt)
        found = explain(self._ctx, before.receipt, after.receipt)
        tell.result(found)
        return found.summary if isinstance(found, Explanation) else ""

    def _roll_back(self) -> int:
        tell = self._tell
        tell.scene(
            "Taking it back",
            "One command. A rollback is a new release that carries the promotion it returns to, with its evidence; "
            "ages, soak and freezes do not hold it up.",
        )
        tell.command('bundlectl rollback support:prod --reason "legal wants 30 days back"')
        done = rollback(self._ctx, "support:prod", reason="legal wants 30 days back", confirmed="prod")
        tell.result(done)
        return done.released.serial

    def _tamper(self, url: str) -> None:
        """Put an older head back, as an intruder with write access would, and see it refused."""
        tell, store = self._tell, self._ctx.registry.store
        tell.scene(
            "An intruder",
            "Someone who can write to the registry, and has no key, puts the changed release back in place of the "
            "live one. Its signatures are all valid; it is only old.",
        )
        key = head_key("support", "prod")
        live = store.get(key)
        old = store.get(history_key("support", "prod", 1, 2))
        tell.command("cp …/history/1-0000000000000002.json …/prod/head.json")
        tag = store.swap(key, old.data, live.tag)
        try:
            problem = _wait_for_refusal(url)
        finally:
            store.swap(key, live.data, tag)
        tell.note(f"refused: {problem}")
        answer = Answer.model_validate(_post(url, _contract(QUESTION)))
        tell.note(f"meanwhile release {answer.release.serial} went on answering; the head is put right again")
        _wait_for(url, answer.release.serial, settled=True)


def _contract(question: str) -> dict[str, Any]:
    return {
        "task": "customer_support_answer",
        "tenant_id": "northwind",
        "user_role": "support_agent",
        "data_scope": ["product_docs", "support_tickets"],
        "response_format": "structured_json",
        "policy_profile": "pii_safe_support",
        "input": {"question": question},
    }


def _text(answer: Answer) -> str:
    if answer.refused is not None:
        return f"refused: {answer.refused.reason}"
    return str(answer.output.get("answer")) if isinstance(answer.output, dict) else str(answer.output)


# ---------------------------------------------------------------- the server


@contextmanager
def _serving(ctx: Context) -> Iterator[str]:
    """Run ``bundlectl serve support:prod`` as a process of its own; give its address."""
    command = [sys.executable, "-m", "bundlectl", "serve", "support:prod", "--port", "0", "--poll", "0.3"]
    folder = ctx.registry_folder
    process = subprocess.Popen(
        [*command, "--registry", str(folder.absolute()) if folder is not None else ctx.registry_url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**ctx.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield _address(process)
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if "listening on " in line:
            return line.rpartition("listening on ")[2].strip()
    raise BackendUnavailable("The server did not start.", why="".join(said[-10:]).strip())


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(  # noqa: S310  # our own server on loopback
        f"{url}/v1/requests", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise BackendUnavailable(f"The server answered {error.code}.", why=error.read().decode("utf-8")) from error


def _release_state(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/releases", timeout=30) as response:  # noqa: S310
        found: dict[str, Any] = json.load(response)["releases"][0]
        return found


def _wait_for(url: str, serial: int, *, settled: bool = False) -> float:
    """Wait until the server serves a release; ``settled``: and its last look at the registry was in order."""
    began = time.monotonic()
    while time.monotonic() - began < WAIT:
        state = _release_state(url)
        if state.get("serial") == serial and not (settled and state.get("last_error")):
            return time.monotonic() - began
        time.sleep(0.05)
    raise BackendUnavailable(f"The server did not come to serve release {serial} within {WAIT:.0f} s.")


def _wait_for_refusal(url: str) -> str:
    began = time.monotonic()
    while time.monotonic() - began < WAIT:
        problem = _release_state(url).get("last_error")
        if problem:
            return str(problem)
        time.sleep(0.05)
    raise BackendUnavailable("The server did not notice that an older head was put back.")


def _wait_for_receipts(ctx: Context, *ids: str) -> None:
    """Wait until the server has written receipts to disk, which it does behind the answer's back."""
    from bundlectl.actions.receipts import find_receipt

    began = time.monotonic()
    quiet = replace(ctx)
    for receipt in ids:
        while True:
            try:
                find_receipt(quiet, receipt)
                break
            except NotFound:
                if time.monotonic() - began > WAIT:
                    raise
                time.sleep(0.05)
