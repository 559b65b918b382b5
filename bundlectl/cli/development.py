"""What `dev` shows at every save."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bundlectl.cli.session import Session
    from bundlectl.model.attestation import EvaluationResult
    from bundlectl.model.contract import Answer
    from bundlectl.model.errors import BundlectlError
    from bundlectl.model.receipt import Receipt


class Screen:
    """Prints each event of the loop; with ``-o json`` one JSON object a line."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def saved(self, bundle: str, app: str) -> None:
        """Print the digest of the save."""
        if not self._line({"event": "saved", "bundle": bundle, "app": app}):
            self._session.out.rule(f"{app} {bundle[:19]}", style="dim")

    def wrong(self, error: BundlectlError) -> None:
        """Print what is wrong; the last good save goes on."""
        if not self._line({"event": "wrong", **error.to_dict()}):
            self._session.show_error(error)

    def answered(self, question: str, answer: Answer, receipt: Receipt) -> None:
        """Print a question and its answer."""
        if self._line({"event": "answered", "question": question, "answer": answer.form()}):
            return
        from bundlectl.actions.ask import Asked
        from bundlectl.cli.answers import answered

        self._session.out.print(f"> {question}", markup=False, style="bold")
        answered(self._session.out, self._session.err, Asked(question=question, answer=answer, receipt=receipt))

    def scored(self, result: EvaluationResult, before: EvaluationResult | None) -> None:
        """Print the scores, and how each moved since the save before."""
        if self._line({"event": "scored", "result": result.form()}):
            return
        old = {(s.scorer, s.tag): s.mean for s in before.scores} if before else {}
        for score in result.scores:
            was = old.get((score.scorer, score.tag))
            moved = f" ({score.mean - was:+.3f})" if score.mean is not None and was is not None else ""
            mean = "not measured" if score.mean is None else f"{score.mean:.3f}"
            tag = f" [{score.tag}]" if score.tag else ""
            self._session.out.print(f"  {score.scorer}{tag}: {mean}{moved}", markup=False)
        self._session.out.print(f"  {result.suite}: {result.verdict}", markup=False)

    def listening(self, url: str) -> None:
        """Print where the newest save answers."""
        if not self._line({"event": "listening", "url": url}):
            self._session.err.print(f"listening on {url}", markup=False)

    def _line(self, event: dict[str, object]) -> bool:
        import json
        import sys

        if self._session.output != "json":
            return False
        sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return True
