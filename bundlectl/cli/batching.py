"""Commands of batches: batch, worker."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.batch import Batches
    from bundlectl.model.batch import Batch

QueueOption = Annotated[
    str | None,
    typer.Option(
        "--batch-queue",
        metavar="sqs:URL",
        help="The SQS queue that names rows to workers [env: BUNDLECTL_BATCH_QUEUE; default: a journal on this "
        "machine]",
        show_default=False,
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--batch-store",
        metavar="URI",
        help="With a queue: where rows and results are, e.g. s3://bucket/batches [env: BUNDLECTL_BATCH_STORE]",
        show_default=False,
    ),
]
BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="The id that submitting it gave.")]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    batch = typer.Typer(
        help="Many requests at once, answered when there is room.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(batch, name="batch")

    @verb(
        batch,
        "submit",
        examples="bundlectl batch submit support:prod questions.jsonl\n"
        "bundlectl batch submit support:prod questions.jsonl --idempotency-key nightly-2026-11-23",
    )
    def submit(
        session: Session,
        environment: Annotated[str, typer.Argument(metavar="APP:ENV", help="What is to answer.")],
        file: Annotated[
            str, typer.Argument(metavar="FILE", help="JSON Lines: requests, each with an id. '-' is stdin.")
        ],
        key: Annotated[
            str | None,
            typer.Option(
                "--idempotency-key", metavar="KEY", help="The same key and the same bytes give the same batch."
            ),
        ] = None,
        queue: QueueOption = None,
        store: StoreOption = None,
    ) -> None:
        """Hand in a file of requests; all of it is stored when this returns, and wrong lines are named.

        `bundlectl serve` and `bundlectl worker` answer the rows, each by the release that is live when it begins.
        """
        from bundlectl.actions.batch import batch_submit as act
        from bundlectl.actions.batching import BatchPlace

        result = act(session.context(), environment, file, BatchPlace(queue, store), key=key)
        session.show(result, lambda out: _shown(out, result))

    @verb(
        batch,
        "status",
        examples="bundlectl batch status batch-0123456789abcdef0123456789abcdef\n"
        "bundlectl batch status batch-0123456789abcdef0123456789abcdef --watch",
    )
    def status(
        session: Session,
        batch: BatchArgument,
        watch: Annotated[bool, typer.Option("--watch", help="Wait until it has ended, with a progress bar.")] = False,
        queue: QueueOption = None,
        store: StoreOption = None,
    ) -> None:
        """Say how far a batch is: rows by state, what they cost, how fast it goes and how long it will take."""
        from bundlectl.actions.batch import batch_status as act
        from bundlectl.actions.batching import BatchPlace

        result = act(session.context(), batch, BatchPlace(queue, store), watch=watch)
        session.show(result, lambda out: _shown(out, result))

    @verb(batch, "list", examples="bundlectl batch list\nbundlectl batch list -n 5 -o json")
    def list_(
        session: Session,
        count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="How many.")] = 20,
        queue: QueueOption = None,
        store: StoreOption = None,
    ) -> None:
        """List the batches that were accepted last, the newest first."""
        from bundlectl.actions.batch import batch_list as act
        from bundlectl.actions.batching import BatchPlace

        result = act(session.context(), BatchPlace(queue, store), limit=count)
        session.show(result, lambda out: _listed(out, result))

    @verb(
        batch,
        "results",
        examples="bundlectl batch results batch-0123456789abcdef0123456789abcdef > answers.jsonl\n"
        "bundlectl batch results batch-0123456789abcdef0123456789abcdef --partial",
    )
    def results(
        session: Session,
        batch: BatchArgument,
        partial: Annotated[
            bool, typer.Option("--partial", help="Those that are there, of a batch that has not ended.")
        ] = False,
        queue: QueueOption = None,
        store: StoreOption = None,
    ) -> None:
        """Print the results as JSON Lines, in the order of the input; also with `-o json`."""
        from bundlectl.actions.batch import batch_results as act
        from bundlectl.actions.batching import BatchPlace

        def write(lines: bytes) -> None:
            sys.stdout.write(lines.decode())

        act(session.context(), batch, BatchPlace(queue, store), write, partly=partial)

    @verb(batch, "cancel", examples="bundlectl batch cancel batch-0123456789abcdef0123456789abcdef")
    def cancel(session: Session, batch: BatchArgument, queue: QueueOption = None, store: StoreOption = None) -> None:
        """Let no row of a batch begin any more. What is under way may end, and keeps its result."""
        from bundlectl.actions.batch import batch_cancel as act
        from bundlectl.actions.batching import BatchPlace

        result = act(session.context(), batch, BatchPlace(queue, store))
        session.show(result, lambda out: _shown(out, result))

    @verb(
        app,
        "worker",
        examples="bundlectl worker support:prod --concurrency 16\n"
        "bundlectl worker support:prod --until-empty\n"
        "bundlectl worker support:prod --batch-queue sqs:https://sqs.eu-central-1.amazonaws.com/123456789012/rows "
        "--batch-store s3://bucket/batches",
    )
    def worker(
        session: Session,
        environments: Annotated[list[str], typer.Argument(metavar="APP:ENV...", help="Whose rows to answer.")],
        concurrency: Annotated[
            int, typer.Option("--concurrency", metavar="N", min=1, max=1000, help="Rows at once.")
        ] = 4,
        until_empty: Annotated[bool, typer.Option("--until-empty", help="Leave once every row has a result.")] = False,
        poll: Annotated[
            float, typer.Option(metavar="SECONDS", min=0.1, help="How often to look at the registry.")
        ] = 5.0,
        queue: QueueOption = None,
        store: StoreOption = None,
    ) -> None:
        """Follow environments and answer the rows of their batches until told to stop.

        Any number of workers may share a journal or a queue. One that is killed loses nothing: its rows begin again
        elsewhere, and each keeps the first result that is stored. Told to stop, it lets rows end or gives them back.
        """
        from bundlectl.actions.batching import BatchPlace
        from bundlectl.actions.worker import worker as act

        place = BatchPlace(queue, store, concurrency)
        act(session.context(), environments, place, poll=poll, until_empty=until_empty)


def _shown(out: Console, batch: Batch) -> None:
    counts = ", ".join(f"{number} {state}" for state, number in batch.counts.form().items() if number)
    out.print(f"{batch.id}  {batch.app}:{batch.environment}  {batch.state}", markup=False)
    out.print(f"  {batch.rows} rows: {counts}", markup=False)
    spent = "unknown, as a price is not known" if batch.usd is None else f"${batch.usd:.6f}"
    out.print(f"  spent {spent}", markup=False)
    if batch.rate is not None and batch.eta_seconds is not None:
        out.print(f"  {batch.rate:g} rows/s, about {batch.eta_seconds:.0f} s left", markup=False)
    if batch.paused_until is not None:
        out.print(f"  waits until {batch.paused_until:%H:%M:%SZ}: a limit, or a model is throttled", markup=False)
    if batch.queue is not None:
        dead = "no dead-letter queue" if batch.queue.dead_letters is None else f"{batch.queue.dead_letters} dead"
        out.print(
            f"  the queue holds {batch.queue.visible} waiting and {batch.queue.in_flight} under way; {dead}",
            markup=False,
        )


def _listed(out: Console, batches: Batches) -> None:
    for batch in batches.batches:
        out.print(
            f"{batch.id}  {batch.app}:{batch.environment}  {batch.created:%Y-%m-%d %H:%M:%SZ}  "
            f"{batch.done}/{batch.rows}  {batch.state}",
            markup=False,
        )
    if not batches.batches:
        out.print("no batches")
