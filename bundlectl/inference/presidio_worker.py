"""The process that Presidio's analyzer lives in: one JSON object a line in, one out; it ends when its input does.

Run as ``python -m bundlectl.inference.presidio_worker LANGUAGE [MODEL]``. It opens no connection: Presidio's URL
recogniser is taken out, the list of public suffixes is the one in its package, and no model is downloaded. Nothing
it inspects is written anywhere but to its answer.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO


def main(language: str, model: str | None) -> None:
    """Say that it is ready, with the entities it knows; then answer until the input ends."""
    # What a library prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)
    try:
        analyzer = _analyzer(language, model)
    except (ImportError, OSError, ValueError) as error:
        _say(answers, {"failed": type(error).__name__, "why": str(error)[:500]})
        return
    _say(answers, {"ready": sorted(analyzer.get_supported_entities(language))})
    for line in sys.stdin:
        asked = json.loads(line)
        found = [
            [
                [span.start, span.end, span.entity_type, span.score]
                for span in analyzer.analyze(
                    text, language=language, entities=asked["entities"], score_threshold=asked["score"]
                )
            ]
            for text in asked["texts"]
        ]
        _say(answers, {"id": asked["id"], "found": found})


def _say(answers: TextIO, value: Any) -> None:
    answers.write(json.dumps(value) + "\n")


def _analyzer(language: str, model: str | None) -> Any:
    import spacy
    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    # Presidio calls the function of the module, which would look for a newer list in the network.
    setattr(tldextract, "extract", tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None))  # noqa: B010

    class Installed(SpacyNlpEngine):
        """spaCy as it is installed; Presidio's own engine downloads what is missing."""

        def load(self) -> None:
            pipeline = spacy.load(model) if model is not None else spacy.blank(language)
            self.nlp: Any = {language: pipeline}

    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language])
    registry.remove_recognizer("UrlRecognizer")
    if model is None:
        registry.remove_recognizer("SpacyRecognizer")
    engine = Installed(models=[{"lang_code": language, "model_name": model or ""}])
    engine.load()
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
