"""Commands that look: show, diff, explain, receipts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.differences import MARK, settings_lines, value
from bundlectl.cli.verb import verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.receipt_cases import Exported
    from bundlectl.actions.receipts import Receipts
    from bundlectl.actions.show import Shown
    from bundlectl.insight.diff import BundleDiff
    from bundlectl.insight.explain import Explanation
    from bundlectl.insight.kept import KeptAnswer
    from bundlectl.model.receipt import Receipt

Ref = Annotated[str, typer.Argument(metavar="REF", help="support@sha256:…, support:prod, support:prod@41 or a path.")]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(app, "show", examples="bundlectl show support:prod\nbundlectl show support@sha256:3f2a91c0 -o json")
    def show(session: Session, reference: Ref) -> None:
        """Show what a bundle holds and what is attested about it; for APP:ENV its release too."""
        from bundlectl.actions.show import show as act

        result = act(session.context(), reference)
        session.show(result, lambda out: _shown(out, result))

    @verb(
        app,
        "diff",
        examples="bundlectl diff support:prod support:staging\n"
        "bundlectl diff support:prod@40 support:prod\n"
        "bundlectl diff support:prod bundles/support --exit-code",
    )
    def diff(
        session: Session,
        a: Annotated[str, typer.Argument(metavar="A", help="The earlier.")],
        b: Annotated[str, typer.Argument(metavar="B", help="The later.")],
        exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 7 when they differ.")] = False,
    ) -> None:
        """Say what differs between two bundles, releases or sources, in the words of their components.

        Settings as old -> new, prompts and policies as text diffs, documents by section, bindings, and the change in
        scores.
        """
        from bundlectl.actions.compare import diff as act

        result = act(session.context(), a, b)
        session.show(result, lambda out: differences(out, result))
        if exit_code and not result.same:
            raise typer.Exit(7)

    @verb(
        app,
        "explain",
        examples="bundlectl explain 3f2a91c04d\nbundlectl explain 3f2a91c04d 77b0c2e915",
    )
    def explain(
        session: Session,
        a: Annotated[str, typer.Argument(metavar="RECEIPT", help="The earlier answer's receipt, or its first digits.")],
        b: Annotated[str | None, typer.Argument(metavar="[RECEIPT]", help="The later answer's receipt.")] = None,
    ) -> None:
        """Say why two answers differ, or how one came about.

        Each row is a question: did it change, did the change reach the answer, is it only a consequence of another row.
        What receipts cannot know is said.
        """
        from bundlectl.actions.compare import explain as act
        from bundlectl.insight.explain import Explanation
        from bundlectl.insight.kept import KeptAnswer

        result = act(session.context(), a, b)
        if isinstance(result, Explanation):
            session.show(result, lambda out: explanation(out, result))
        elif isinstance(result, KeptAnswer):
            session.show(result, lambda out: _kept(out, result))
        else:
            session.show(result, lambda out: receipt_lines(out, result))

    receipts = typer.Typer(help="Receipts of answered requests.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(receipts, name="receipts")

    @verb(receipts, "list", examples="bundlectl receipts list\nbundlectl receipts list --tenant northwind -n 5")
    def list_(
        session: Session,
        count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="How many.")] = 20,
        tenant: Annotated[str | None, typer.Option("--tenant", metavar="ID", help="Of this tenant only.")] = None,
        environment: Annotated[
            str | None, typer.Option("--env", metavar="ENV", help="Of this environment only.")
        ] = None,
    ) -> None:
        """List the newest receipts."""
        from bundlectl.actions.receipts import list_receipts

        result = list_receipts(session.context(), count=count, tenant=tenant, environment=environment)
        session.show(result, lambda out: _receipts(out, result))

    @verb(
        receipts,
        "export",
        examples="bundlectl receipts export support --as-cases evals/misses.jsonl --inputs requests.jsonl "
        "--refused no_answer --since 24h\n"
        "bundlectl receipts export support --as-cases evals/slow.jsonl --inputs requests.jsonl --degraded --error",
    )
    def export_receipts(
        session: Session,
        app: Annotated[str, typer.Argument(metavar="APP", help="Whose receipts.")],
        as_cases: Annotated[Path, typer.Option("--as-cases", metavar="FILE", help="The dataset to write.")],
        inputs: Annotated[
            Path,
            typer.Option(
                "--inputs", metavar="FILE", help='JSON Lines: {"receipt": ID, "input": {…}, "expected": {…}}.'
            ),
        ],
        since: Annotated[
            str | None, typer.Option("--since", metavar="TIME", help="From 2026-11-23, a time in UTC, or 24h ago.")
        ] = None,
        until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before that.")] = None,
        task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Of this task only.")] = None,
        tenant: Annotated[str | None, typer.Option("--tenant", metavar="ID", help="Of this tenant only.")] = None,
        environment: Annotated[
            str | None, typer.Option("--env", metavar="ENV", help="Of this environment only.")
        ] = None,
        refused: Annotated[
            str | None,
            typer.Option("--refused", metavar="CODE", help="Refused with this code, e.g. no_answer; or any."),
        ] = None,
        degraded: Annotated[bool, typer.Option("--degraded", help="Answered by a fallback.")] = False,
        error: Annotated[bool, typer.Option("--error", help="Not answered, because something failed.")] = False,
        force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    ) -> None:
        """Make cases of receipts, so that what failed in production is asked of every bundle to come.

        Receipts hold no text. The inputs come from your own log, by the receipt's id, and each one is checked against
        the keyed digest in its receipt. What cannot be joined is said. A request that was made often becomes one case.
        Write into 'expected' what a right answer shows; a case that expects nothing is hardly scored.
        """
        from bundlectl.actions.receipt_cases import Wanted, export_cases, moment

        ctx = session.context()
        now = ctx.clock()
        wanted = Wanted(
            since=moment(since, now) if since is not None else None,
            until=moment(until, now) if until is not None else None,
            task=task,
            tenant=tenant,
            environment=environment,
            refused=refused,
            degraded=degraded,
            error=error,
        )
        result = export_cases(ctx, app, as_cases, inputs, wanted, force=force)
        session.show(result, lambda out: _exported(out, result))

    @verb(receipts, "show", examples="bundlectl receipts show 3f2a91c04d -o json")
    def show_receipt(
        session: Session,
        receipt: Annotated[str, typer.Argument(metavar="RECEIPT", help="Its id, or the first 6 characters or more.")],
    ) -> None:
        """Show one receipt."""
        from bundlectl.actions.receipts import find_receipt

        result = find_receipt(session.context(), receipt)
        session.show(result, lambda out: receipt_lines(out, result))


def _shown(out: Console, result: Shown) -> None:
    out.print(f"{result.app}@{result.bundle}", markup=False)
    if result.release is not None:
        release = result.release
        out.print(
            f"release {release['serial']} of {release['environment']}: {release['action']} by {release['actor']}, "
            f"{release['time']}: {release['reason']}",
            markup=False,
        )
    for name, found in result.component_digests.items():
        out.print(f"\n{name}", style="bold")
        out.print(f"  {found}", style="dim", markup=False)
        for key, held in _top(result.components[name]):
            out.print(f"  {key}: {value(held)}", markup=False)
    out.print("\nattestations", style="bold")
    for item in result.attestations:
        signers = ", ".join(item.signers) if item.counts else f"does not count: {item.why}"
        verdict = f" {item.suite}: {item.verdict}" if item.verdict else ""
        out.print(f"  {item.kind}{verdict} ({signers}) {item.digest[:19]}", markup=False)
    if not result.attestations:
        out.print("  none")


def _top(component: object) -> list[tuple[str, object]]:
    return list(component.items()) if isinstance(component, dict) else []


def differences(out: Console, result: BundleDiff) -> None:
    """Print a diff."""
    from rich.text import Text

    if result.same:
        out.print("the same bundle")
    for change in result.components:
        if not change.changed:
            continue
        out.print(f"{change.component}", style="bold")
        settings_lines(out, [s for s in result.settings if s.path.split(".")[0].split("[")[0] == change.component])
        for text in result.texts:
            if text.name.split(".")[0] == change.component or (change.component == "access" and "/" in text.name):
                out.print(f"  {text.name}", markup=False)
                for line in text.lines:
                    style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "dim")
                    out.print(Text("    " + line, style=style))
    if result.documents:
        out.print("documents", style="bold")
        for section in result.documents:
            sign, style = MARK[section.kind]
            place = " > ".join(section.section)
            was = f" (was {' > '.join(section.was)})" if section.was else ""
            out.print(Text(f"  {sign} ", style=style) + Text(f"{section.document} § {place}{was}"))
    if result.bindings:
        out.print("bindings", style="bold")
        settings_lines(out, result.bindings)
    if result.scores:
        out.print("scores", style="bold")
        for score in result.scores:
            tag = f" [{score.tag}]" if score.tag else ""
            moved = f" ({score.b - score.a:+.3f})" if score.a is not None and score.b is not None else ""
            out.print(f"  {score.suite}/{score.scorer}{tag}: {_mean(score.a)} -> {_mean(score.b)}{moved}", markup=False)
    for note in result.notes:
        out.print(f"note: {note}", markup=False, style="dim")


def _mean(mean: float | None) -> str:
    return "not measured" if mean is None else f"{mean:.3f}"


_TERNARY = {"yes": "bold", "no": "dim", "unknown": "yellow"}


def explanation(out: Console, result: Explanation) -> None:
    """Print an explanation: what changed in three columns with its facts below, what did not, and the sentence."""
    from rich.text import Text

    for name, side in (("A", result.a), ("B", result.b)):
        ref = side.release
        said = f"refused: {side.refused}" if side.refused else "degraded" if side.degraded else "answered"
        said = "no answer: every route failed" if side.answer_digest is None and not side.refused else said
        out.print(
            f"{name}  {side.receipt}  {side.time}  {ref.app}:{ref.environment} release {ref.serial}  "
            f"{ref.bundle[:19]}  {said}",
            markup=False,
        )
        for note in side.notes:
            out.print(f"   {note}", markup=False)
    out.print(Text(f"\n{'':<20}{'changed':<10}{'reached the answer':<21}consequence of", style="bold"))
    for row in result.rows:
        if row.changed == "no":
            continue
        style = "bold" if row.question in result.causes else ""
        out.print(
            Text(f"{row.question:<20}", style=style)
            + Text(f"{row.changed:<10}", style=_TERNARY[row.changed])
            + Text(f"{row.reached:<21}", style=_TERNARY[row.reached])
            + Text(", ".join(row.consequence_of) or "-")
        )
        for fact in [*row.what.split("; "), *([row.why] if row.why else [])]:
            out.print(f"    {fact}", markup=False, style="dim")
    same = [row.question for row in result.rows if row.changed == "no"]
    out.print(f"not changed: {', '.join(same) or 'nothing'}", markup=False)
    out.print(f"\n{result.summary}", markup=False, style="bold")


def _kept(out: Console, result: KeptAnswer) -> None:
    """Print a kept answer's receipt, and below it the one of the request that it was made for."""
    receipt_lines(out, result.receipt)
    out.print(f"\n{result.note}", markup=False, style="bold")
    if result.made_by is not None:
        receipt_lines(out, result.made_by)


def receipt_lines(out: Console, receipt: Receipt) -> None:
    """Print one receipt, a fact a line."""
    ref = receipt.release
    facts: list[tuple[str, object]] = [
        ("receipt", receipt.id),
        ("time", receipt.form()["time"]),
        ("release", f"{ref.app}:{ref.environment} release {ref.serial}, bundle {ref.bundle}"),
        (
            "caller",
            f"{receipt.identity}: {receipt.tenant}/{receipt.role}, scopes {', '.join(receipt.scopes) or 'none'}",
        ),
        ("task", f"{receipt.task}, profile {receipt.profile}, {receipt.latency_class}, {receipt.response_format}"),
        ("access", receipt.access or "not decided"),
        ("route", f"{receipt.route or 'none'}: {receipt.route_why}"),
    ]
    if receipt.cached_from is not None:
        facts.append(("cache", f"the answer was kept from receipt {receipt.cached_from}"))
    if receipt.pinned is not None:
        what = "the live bundle" if receipt.pinned.to == "head" else "the rollback target"
        facts.append(("pinned", f"by its caller to {what}; live was release {receipt.pinned.serial}"))
    facts += [
        ("attempt", f"{x.route}: {x.model}/{x.provider} {x.outcome} in {x.seconds * 1000:.0f} ms {x.why}".rstrip())
        for x in receipt.attempts
    ]
    if receipt.retrieval is not None:
        found = receipt.retrieval
        facts.append(
            (
                "retrieval",
                f"{found.index} {found.mode}, {found.candidates} candidates, "
                f"{found.removed_by_permission} removed by permission, {found.context_tokens} tokens, "
                f"snapshot {found.snapshot[:19]}{' (following)' if found.following else ''}",
            )
        )
        facts += [
            ("passage", f"{chunk.rank}. {chunk.document} § {' > '.join(chunk.section[1:])} ({chunk.score:.3f})")
            for chunk in found.chunks
            if chunk.packed
        ]
    facts += [("guard", f"{g.side}: {g.action} {g.findings or ''}".rstrip()) for g in receipt.guards]
    if receipt.validation is not None:
        facts.append(("validation", receipt.validation.outcome))
    if receipt.refused is not None:
        facts.append(("refused", f"{receipt.refused.code}: {receipt.refused.reason}"))
    if receipt.degraded is not None:
        facts.append(("degraded", receipt.degraded.reason))
    usd = "unknown" if receipt.cost.usd is None else f"${receipt.cost.usd:.6f}"
    facts.append(("cost", f"{usd} by price book {receipt.cost.price_book}"))
    facts.append(("stages", ", ".join(f"{n} {s * 1000:.1f} ms" for n, s in receipt.stages.items())))
    for name, fact in facts:
        out.print(f"{name:<11}{fact}", markup=False)


def _exported(out: Console, result: Exported) -> None:
    out.print(f"{result.cases} cases of {result.receipts} receipts: {result.file}", markup=False)
    if result.repeated:
        out.print(f"{result.repeated} receipts asked what a later one asked as well", markup=False)
    if result.unjoined:
        out.print(f"{len(result.unjoined)} receipts could not be joined with an input", markup=False)
    if result.open:
        out.print(f"{result.open} cases expect nothing yet: say in 'expected' what a right answer shows", markup=False)


def _receipts(out: Console, result: Receipts) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("receipt", "time", "release", "tenant", "task", "route", "outcome"):
        table.add_column(column, no_wrap=True)
    for receipt in result.receipts:
        ref = receipt.release
        outcome = (
            receipt.refused.code
            if receipt.refused
            else "degraded"
            if receipt.degraded
            else "error"
            if receipt.error
            else "answered"
        )
        table.add_row(
            receipt.id,
            receipt.form()["time"],
            f"{ref.app}:{ref.environment}@{ref.serial}",
            receipt.tenant,
            receipt.task,
            receipt.route or "",
            outcome,
        )
    out.print(table)
