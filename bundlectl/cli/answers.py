"""How an answer is printed, for all commands that get one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.ask import Asked
    from bundlectl.model.contract import Answer


def answered(out: Console, err: Console, result: Asked) -> None:
    """Print an answer on ``out``, and how it came on ``err``."""
    from rich.text import Text

    answer = result.answer
    answer_lines(out, answer)
    if answer.degraded is not None:
        err.print(Text(f"degraded: {answer.degraded.reason}", style="yellow"))
    ref = answer.release
    served = f"{ref.app}:{ref.environment} release {ref.serial}" if ref.serial else f"{ref.app}, not released"
    if answer.pinned is not None and answer.pinned.to == "rollback_target":
        served += f", the rollback target of release {answer.pinned.serial}"
    cost = "cost unknown" if answer.cost.usd is None else f"${answer.cost.usd:.6f}"
    total = sum(result.receipt.stages.values()) * 1000
    err.print(
        f"{served}; route {answer.route or 'none'}; {total:.0f} ms; {cost}; receipt {answer.receipt}",
        style="dim",
        markup=False,
    )


def answer_lines(out: Console, answer: Answer) -> None:
    """Print what the caller gets: the answer or the refusal, and the citations."""
    import json

    from rich.text import Text

    if answer.refused is not None:
        out.print(Text(f"refused ({answer.refused.code}): ", style="bold red") + Text(answer.refused.reason))
    elif isinstance(answer.output, dict):
        text = answer.output.get("answer")
        shown = text if isinstance(text, str) else json.dumps(answer.output, ensure_ascii=False, indent=2)
        out.print(shown, markup=False)
    else:
        out.print(answer.output or "", markup=False)
    if answer.cut:
        out.print("(cut off: the model was stopped at its longest answer)", markup=False, style="dim")
    for citation in answer.citations:
        place = " > ".join(citation.section[1:] or citation.section)
        out.print(f"[{citation.n}] {citation.document} § {place}", markup=False, style="dim")
