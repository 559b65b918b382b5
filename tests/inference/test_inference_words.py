"""Terms and stems: Porter's published examples, and what a search must not trip over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.inference.words import STOP_WORDS, stem, terms, words

PORTER = """
caresses caress  ponies poni  ties ti  caress caress  cats cat  feed feed  agreed agre  plastered plaster  bled bled
motoring motor  sing sing  conflated conflat  troubled troubl  sized size  hopping hop  tanned tan  falling fall
hissing hiss  fizzed fizz  failing fail  filing file  happy happi  sky sky  relational relat  conditional condit
rational ration  valenci valenc  hesitanci hesit  digitizer digit  conformabli conform  radicalli radic
differentli differ  vileli vile  analogousli analog  vietnamization vietnam  predication predic  operator oper
feudalism feudal  decisiveness decis  hopefulness hope  callousness callous  formaliti formal  sensitiviti sensit
sensibiliti sensibl  triplicate triplic  formative form  formalize formal  electriciti electr  electrical electr
hopeful hope  goodness good  revival reviv  allowance allow  inference infer  airliner airlin  gyroscopic gyroscop
adjustable adjust  defensible defens  irritant irrit  replacement replac  adjustment adjust  dependent depend
adoption adopt  homologou homolog  communism commun  activate activ  angulariti angular  homologous homolog
effective effect  bowdlerize bowdler  probate probat  rate rate  cease ceas  controll control  roll roll
"""


@pytest.mark.parametrize(("word", "expected"), list(zip(PORTER.split()[::2], PORTER.split()[1::2], strict=True)))
def test_porters_own_examples(word: str, expected: str) -> None:
    assert stem(word) == expected


@pytest.mark.parametrize("word", ["is", "a", "x2", "2026", "über", "漢字", "s3"])
def test_not_english_words_stay(word: str) -> None:
    assert stem(word) == word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The context_tokens of a bundle", ["context", "token", "bundl"]),
        ("pre-built ROLLBACKS", ["pre", "built", "rollback"]),
        ("Café naïve", ["cafe", "naiv"]),
        ("the of and", []),
        ("", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@given(st.text(max_size=60))
def test_terms_hold_no_space_and_no_stop_words(text: str) -> None:
    for term in terms(text):
        assert term
        assert not any(character.isspace() for character in term)
        assert len(term) <= 64
    assert len(terms(text)) == sum(word not in STOP_WORDS for word in words(text))


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20))
def test_stems_are_never_empty_nor_longer(word: str) -> None:
    assert 1 <= len(stem(word)) <= len(word) + 1
