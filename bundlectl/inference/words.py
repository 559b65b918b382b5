"""Words as lexical search and extractive answers compare them: lower case, no accents, stemmed, no stop words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_WORD = re.compile(r"[^\W_]{1,64}")

# fmt: off
STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
))
# fmt: on
"""The 33 words that Lucene leaves out. Longer lists (question words, pronouns) measured no better."""


def terms(text: str) -> list[str]:
    """Give a text's terms in order, with repeats: what stands in the index and what questions ask for.

    Words are runs of letters and digits, so ``context_tokens`` is two and ``pre-built`` is two.
    """
    return [stem(word) for word in words(text) if word not in STOP_WORDS]


def words(text: str) -> list[str]:
    """Give a text's words in order, lower case and without accents, neither stemmed nor sifted."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _WORD.findall(text.lower())


def unique(items: Iterable[str]) -> list[str]:
    """Give each item once, in the order of its first appearance."""
    return list(dict.fromkeys(items))


# ---------------------------------------------------------------- Porter's stemmer (Program 14, 1980)


_STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "logi": "log",
}
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
# fmt: off
_STEP_4 = (  # longest first where one ends another
    "ement", "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
)
# fmt: on
_LONGEST_2 = sorted(_STEP_2, key=len, reverse=True)
_LONGEST_3 = sorted(_STEP_3, key=len, reverse=True)


def _shape(word: str) -> str:
    """Write each letter as v (vowel) or c (consonant); y is a vowel after a consonant."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape[-1:] == "c")
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    """Count the vowel-consonant sequences: Porter's m."""
    return _shape(word).count("vc")


def _ends_cvc(word: str) -> bool:
    return _shape(word)[-3:] == "cvc" and word[-1] not in "wxy"


def _doubled(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c"


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Bring a lower-case English word to its stem by Porter's algorithm (1980, with its author's two later rules).

    Words with letters beyond a to z, digits, and words of one or two letters stay as they are.
    """
    if len(word) < 3 or not (word.isascii() and word.isalpha()):
        return word
    word = _step_1(word)
    for endings, table in ((_LONGEST_2, _STEP_2), (_LONGEST_3, _STEP_3)):
        ending = next((e for e in endings if word.endswith(e)), None)
        if ending is not None and _measure(word.removesuffix(ending)) > 0:
            word = word.removesuffix(ending) + table[ending]
    return _step_5(_step_4(word))


def _step_1(word: str) -> str:
    """Plurals, -ed, -ing, and a final y."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        if _measure(word[:-3]) > 0:
            word = word[:-1]
    else:
        for ending in ("ed", "ing"):
            rest = word.removesuffix(ending)
            if rest != word and "v" in _shape(rest):
                word = _after_1b(rest)
                break
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    return word


def _after_1b(word: str) -> str:
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _doubled(word) and word[-1] not in "lsz":
        return word[:-1]
    if _measure(word) == 1 and _ends_cvc(word):
        return word + "e"
    return word


def _step_4(word: str) -> str:
    ending = next((e for e in _STEP_4 if word.endswith(e)), None)
    if ending is None:
        return word
    rest = word.removesuffix(ending)
    if _measure(rest) > 1 and (ending != "ion" or rest.endswith(("s", "t"))):
        return rest
    return word


def _step_5(word: str) -> str:
    if word.endswith("e"):
        rest = word[:-1]
        if _measure(rest) > 1 or (_measure(rest) == 1 and not _ends_cvc(rest)):
            word = rest
    if _measure(word) > 1 and _doubled(word) and word.endswith("l"):
        word = word[:-1]
    return word
