"""Commands that answer: ask, serve, dev."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bundlectl.cli.answers import answered
from bundlectl.cli.batching import QueueOption, StoreOption
from bundlectl.cli.verb import verb

RedisOption = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="REF",
        help="Where limits and kept answers are shared with other servers: redis://HOST:PORT, or env:, file:, aws-sm:, "
        "ssm: for where such an address is [env: BUNDLECTL_REDIS; default: in memory]",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(
        app,
        "ask",
        examples='bundlectl ask support:prod --tenant northwind --role support_agent "How long are receipts kept?"\n'
        'bundlectl ask support:prod --rollback-target --tenant northwind --role support_agent "…"\n'
        'bundlectl ask bundles/support --tenant northwind --role support_agent "…"    # a source, unsigned',
    )
    def ask(
        session: Session,
        reference: Annotated[
            str,
            typer.Argument(metavar="APP:ENV", help="What is to answer: an environment, a bundle or a source path."),
        ],
        question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")],
        tenant: Annotated[str, typer.Option("--tenant", metavar="ID", help="On whose behalf.")],
        role: Annotated[str, typer.Option("--role", metavar="ROLE", help="The user's role.")],
        task: Annotated[
            str | None, typer.Option("--task", metavar="T", help="Which task, if the bundle has several.")
        ] = None,
        scope: Annotated[
            list[str] | None,
            typer.Option("--scope", metavar="S", help="A scope to draw on; may be repeated. [default: the task's]"),
        ] = None,
        profile: Annotated[
            str | None, typer.Option("--profile", metavar="P", help="Policy profile, if the task has several.")
        ] = None,
        rollback_target: Annotated[
            bool,
            typer.Option("--rollback-target", help="Ask what a rollback would return to, as it would answer then."),
        ] = False,
    ) -> None:
        """Ask one question through the whole request path, verified as a resolver would.

        The answer goes to stdout, how it came to stderr. Its receipt is kept, and `explain` reads it.
        """
        from bundlectl.actions.ask import ask as act

        result = act(
            session.context(),
            reference,
            question,
            task=task,
            tenant=tenant,
            role=role,
            scopes=scope or [],
            profile=profile,
            rollback_target=rollback_target,
        )
        session.show(result, lambda out: answered(out, session.err, result))
        refused = result.answer.refused
        if refused is not None and refused.code == "access_denied" and not scope and session.output == "text":
            asked = ", ".join(result.receipt.scopes)
            session.err.print(
                f"asked for every scope of the task ({asked}); --scope names fewer, and --role another role",
                style="dim",
                markup=False,
            )

    @verb(
        app,
        "serve",
        examples="bundlectl serve support:prod --port 8080\n"
        "bundlectl serve support:prod billing:prod --host 0.0.0.0 --port 8080    # with identities bound\n"
        "bundlectl serve support:prod --redis aws-sm:redis-address    # limits shared with other servers",
    )
    def serve(
        session: Session,
        environments: Annotated[list[str], typer.Argument(metavar="APP:ENV...", help="What to serve.")],
        host: Annotated[str, typer.Option(metavar="H", help="Where to listen.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0: any free port.")] = 8080,
        poll: Annotated[
            float, typer.Option(metavar="SECONDS", min=0.1, help="How often to look at the registry.")
        ] = 5.0,
        at_once: Annotated[
            int, typer.Option(metavar="N", min=1, help="Requests answered at once; more of them wait.")
        ] = 1024,
        waiting: Annotated[
            int, typer.Option(metavar="N", min=0, help="Requests that may wait; more are told to come back.")
        ] = 1024,
        access_log: Annotated[
            Path | None,
            typer.Option("--access-log", metavar="FILE", help="Add a JSON line for each response; -: to stdout."),
        ] = None,
        concurrency: Annotated[
            int,
            typer.Option(
                "--batch-concurrency",
                metavar="N",
                min=0,
                max=1000,
                help="Rows of batches at once; 0 leaves them to workers.",
            ),
        ] = 4,
        queue: QueueOption = None,
        store: StoreOption = None,
        redis: RedisOption = None,
        flush_receipts: Annotated[
            bool,
            typer.Option(
                "--flush-receipts",
                envvar="BUNDLECTL_FLUSH",
                help="For a process that is frozen between requests, as on AWS Lambda: receipts are on the disk before "
                "an answer ends, and missed polls are made up for before the next one.",
                show_envvar=True,
            ),
        ] = False,
    ) -> None:
        """Follow environments and answer over HTTP until told to stop.

        POST /v1/requests (JSON, or SSE with Accept: text/event-stream), /v1/batches, /v1/chat/completions (OpenAI's
        format), GET /v1/releases, /healthz, /readyz, /metrics, /openapi.json. What was verified last is kept: with the
        registry away, a restart answers from it.
        Callers send an API key or an OIDC token (JWT), as the bindings' identities say; without configured identities
        the server listens on loopback only.
        """
        from bundlectl.actions.batching import BatchPlace
        from bundlectl.actions.serve import Crowd
        from bundlectl.actions.serve import serve as act

        act(
            session.context(),
            environments,
            host=host,
            port=port,
            poll=poll,
            crowd=Crowd(at_once, waiting),
            access_log=access_log,
            batches=BatchPlace(queue, store, concurrency),
            redis=redis,
            flush_receipts=flush_receipts,
        )

    @verb(
        app,
        "dev",
        examples="bundlectl dev bundles/support\n"
        'bundlectl dev . --question "How long are receipts kept?" --tenant northwind --role support_agent --once',
    )
    def dev(
        session: Session,
        path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder that holds bundle.yaml.")],
        question: Annotated[
            list[str] | None,
            typer.Option("--question", metavar="TEXT", help="Ask this at every save; may be repeated."),
        ] = None,
        tenant: Annotated[str, typer.Option("--tenant", metavar="ID", help="On whose behalf.")] = "dev",
        role: Annotated[str, typer.Option("--role", metavar="ROLE", help="The user's role.")] = "developer",
        suite: Annotated[
            Path | None, typer.Option("--suite", metavar="FILE", help="Measure by this suite at every save.")
        ] = None,
        environment: Annotated[
            str, typer.Option("--env", metavar="ENV", help="Whose bindings to use, from environments/ENV.yaml.")
        ] = "dev",
        port: Annotated[
            int | None, typer.Option("--port", metavar="N", help="Also answer over HTTP on loopback; 0: any free port.")
        ] = None,
        once: Annotated[bool, typer.Option("--once", help="Do it once and leave.")] = False,
    ) -> None:
        """Edit, save, see the answer and the scores: the loop of a prompt engineer.

        Nothing is signed, stored or released. On a terminal, type a question to ask it of the newest save. A save that
        does not validate is told with file and line, and the one before goes on answering.
        """
        from bundlectl.actions.dev import Settings
        from bundlectl.actions.dev import dev as act
        from bundlectl.cli.development import Screen

        settings = Settings(
            questions=question or [],
            tenant=tenant,
            role=role,
            suite=suite,
            environment=environment,
            once=once,
            port=port,
        )
        act(session.context(), path, settings, Screen(session))
