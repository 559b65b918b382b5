"""What every verb shares: the global options, the session built from them, error lines and exit codes."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from bundlectl.cli.session import Session

RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="URI",
        help="The registry: a folder, s3://bucket/prefix or ssm:/bundlectl/NAME "
        "[env: BUNDLECTL_REGISTRY; default: .bundlectl/registry]",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Literal["text", "json"],
    typer.Option(
        "--output", "-o", metavar="text|json", help="How the result is written to stdout.", show_default=False
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.", show_default=False)]

MAX_TEXT = 1_000
"""What ``model.types.Text`` holds, in characters; written again so that ``--help`` loads no model."""

SignerOption = Annotated[
    str | None,
    typer.Option(
        "--signer",
        metavar="URI",
        help="What to sign with: file:PATH, awskms:NAME or sigstore: "
        "[env: BUNDLECTL_SIGNER; default: the workspace's development key]",
        show_default=False,
    ),
]


def _reason(text: str) -> str:
    """Refuse a reason that says nothing, or that no release can hold."""
    if not text.strip():
        raise typer.BadParameter("say why: it is what the person on call reads at night")
    if len(text) > MAX_TEXT:
        raise typer.BadParameter(f"{len(text)} characters; at most {MAX_TEXT:,} fit into a release")
    return text


ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason",
        metavar="TEXT",
        help="Why. It is part of the release for ever.",
        show_default=False,
        callback=_reason,
    ),
]
RenewalReasonOption = Annotated[
    str,
    typer.Option(
        "--reason",
        metavar="TEXT",
        help="Why. It is part of the release for ever. [default: scheduled renewal]",
        show_default=False,
        callback=_reason,
    ),
]
ConfirmOption = Annotated[
    str | None,
    typer.Option("--confirm", metavar="ENV", help="The environment's name again, where its gate asks for it."),
]
FirstUseOption = Annotated[
    bool,
    typer.Option("--trust-first-use", help="Pin keyring 1 of a folder registry that has no pin yet."),
]

_GLOBALS = {"registry": (RegistryOption, None), "output": (OutputOption, "text"), "debug": (DebugOption, False)}


def verb(app: typer.Typer, name: str, *, examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: its body takes a Session first; the global options are added here.

    Args:
        app: the typer application it belongs to.
        name: the word on the command line.
        examples: lines shown under ``Examples`` in ``--help``.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(body, globalns={**body.__globals__, "Session": object}, include_extras=True)

        @functools.wraps(body)
        def command(*, registry: str | None, output: Literal["text", "json"], debug: bool, **own: Any) -> None:
            run_guarded(lambda session: body(session, **own), registry=registry, output=output, debug=debug)

        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(body).parameters.values())[1:]
        ]
        added = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for key, (annotation, default) in _GLOBALS.items()
        ]
        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        signature = inspect.Signature([*keyword_only, *added])
        setattr(command, "__signature__", signature)  # noqa: B010  # functions have no such attribute for mypy
        command.__annotations__ = {p.name: p.annotation for p in [*keyword_only, *added]}
        del command.__wrapped__  # typer would read the body's own signature through it
        shown = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())
        app.command(name, epilog=shown)(command)
        return body

    return register


def run_guarded(
    body: Callable[[Session], None], *, registry: str | None, output: Literal["text", "json"], debug: bool
) -> None:
    """Run a verb's body and turn what it raises into lines on stderr and an exit code."""
    from bundlectl.cli.session import Session
    from bundlectl.model.errors import BundlectlError

    session = Session(registry_url=registry or os.environ.get("BUNDLECTL_REGISTRY") or "", output=output, debug=debug)
    left: typer.Exit | None = None
    try:
        try:
            body(session)
        except typer.Exit as exit_:  # a verdict told by the exit code, e.g. that of `diff --exit-code`
            left = exit_
        session.flush()
    except BundlectlError as error:
        session.show_error(error)
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`): that is how a pipe ends, not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise typer.Exit(130) from None
    except Exception as error:  # noqa: BLE001  # the one place where a defect of ours becomes exit 1
        session.show_defect(error)
        raise typer.Exit(1) from None
    if left is not None:
        raise left
