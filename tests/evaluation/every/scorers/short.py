"""A scorer of one's own: 1 for an answer of few words, less for each one more."""


def score(sample, settings):
    """Count the words."""
    text = (sample.answer.output or {}).get("answer", "")
    return min(1.0, settings["words"] / max(1, len(text.split())))
