"""Guards: what each detector finds and leaves alone, what actions do, and the laws of redaction."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.components import ENTITIES, Detector, Guard
from bundlectl.stages.entities import BUILT_IN
from bundlectl.stages.errors import GuardError
from bundlectl.stages.guards import CompiledGuard


def guard(*detectors: Detector, max_chars: int = 16_000) -> CompiledGuard:
    return CompiledGuard.compile(Guard(max_chars=max_chars, detectors=list(detectors)))


def entity(name, action="redact") -> Detector:
    return Detector(entity=name, action=action)


def pattern(name, text, action="redact") -> Detector:
    return Detector(name=name, pattern=text, action=action)


EVERY = guard(*(entity(name) for name in ENTITIES))

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bq\nx0Y=\n-----END RSA PRIVATE KEY-----"

FOUND = [
    ("mail ann.o'hara+x@mail.example.co.uk.", "mail [EMAIL]."),
    ("<JÖRG@müller.example>", "<[EMAIL]>"),
    ("联系foo@example.com谢谢", "联系[EMAIL]谢谢"),
    ("call 541-714-1388, please", "call [PHONE], please"),
    ("(541) 714-1388 x12", "[PHONE]"),
    ("+1-903-140-4508x769", "[PHONE]"),
    ("+46 (0)8 928 571 38", "[PHONE]"),
    ("+447700900123 or 0044 20 7946 0018", "[PHONE] or [PHONE]"),
    ("541-714-1388 541-714-1399", "[PHONE] [PHONE]"),
    ("03.93.92.16.85 / 07700 063 966", "[PHONE] / [PHONE]"),
    ("reach me at 467 3395", "reach me at [PHONE]"),
    ("card 4111 1111 1111 1111!", "card [CREDIT_CARD]!"),
    ("4111111111111111", "[CREDIT_CARD]"),
    ("378282246310005 and 3782-822463-10005", "[CREDIT_CARD] and [CREDIT_CARD]"),
    ("12345 4111-1111-1111-1111 678", "12345 [CREDIT_CARD] 678"),
    ("card4111111111111111", "card[CREDIT_CARD]"),
    ("GB29 NWBK 6016 1331 9268 19 please", "[IBAN] please"),
    ("gb29nwbk60161331926819", "[IBAN]"),
    ("NO93-8601-1117-947", "[IBAN]"),
    ("SSN 536-90-4399", "SSN [US_SSN]"),
    ("my ssn is 536904399", "my ssn is [US_SSN]"),
    ("from 10.0.255.7:8080", "from [IP_ADDRESS]:8080"),
    ("at 2001:db8::8a2e:370:7334.", "at [IP_ADDRESS]."),
    ("::1 and fe80::1%eth0", "[IP_ADDRESS] and [IP_ADDRESS]%eth0"),
    ("key AKIAIOSFODNN7EXAMPLE", "key [AWS_ACCESS_KEY]"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "[AWS_ACCESS_KEY]"),
    (f"a\n{PEM}\nb", "a\n[PRIVATE_KEY]\nb"),
    (f'{{"key": "{PEM}"}}'.replace("\n", "\\n"), '{"key": "[PRIVATE_KEY]"}'),
    ("-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bq", "[PRIVATE_KEY]"),
    ("４１１１ １１１１ １１１１ １１１１", "[CREDIT_CARD]"),
    ("ann＠example．com", "[EMAIL]"),
    ("536‐90‐4399 und 541–714–1388", "[US_SSN] und [PHONE]"),
    ("4111\u200b1111\u200b1111\u200b1111 ﬁn", "[CREDIT_CARD] ﬁn"),
    ("tel +44 20 7946\n0112, card 4111 1111\n1111 1111", "tel [PHONE], card [CREDIT_CARD]"),
    ("to NL91 ABNA\n0417 1643 00", "to [IBAN]"),
    ("541-714-1388\n541-714-1399", "[PHONE]\n[PHONE]"),
    ("é ﬃ ann@example.com ﬃ é", "é ﬃ [EMAIL] ﬃ é"),
    ("٤١١١١١١١١١١١١١١١", "[CREDIT_CARD]"),
]

LEFT_ALONE = [
    "a@b, @handle, x@localhost, user@@example.com",
    "version 1.2.3.4 and v10.0.0.1 and 1.2.3.4.5 and 300.1.1.1",
    "digits[-1::-2] and Cell Biology 1471-2121",
    "at 12:30:45 call std::vector or dead::beef, :: too",
    "2024-01-15, 15.01.2024 and 2026-11-23 18:00:00",
    "4111 1111 1111 1112",
    "order 1234567890123456 of 9999999999999999",
    "GB29 NWBK 6016 1331 9268 18",
    "000-12-3456 666-12-3456 987-65-4321 123-00-4567 123-45-0000 078-05-1120",
    "536904399 pieces",
    "EUR 1,234,567.89 or 12345678.90 or $5417141388",
    "sha256:4111111111111111aaaabbbb0123456789",
    "AKIA and AKIAIOSFODNN7EXAMPL and akiaiosfodnn7example",
    "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
    "the pallet limit is 750 kg, 900 kg before; 20 of 4000 rows in 8 s",
    "ticket 467 3395 of 2024",
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_entities_are_found_and_only_they_are_replaced(text, expected):
    outcome = EVERY.apply(text)
    assert outcome.text == expected
    assert outcome.action == "redact"


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_like_an_entity_is_left_alone(text):
    outcome = EVERY.apply(text)
    assert (outcome.text, outcome.action, outcome.findings) == (text, "pass", {})


def test_every_entity_of_the_model_has_a_detector():
    assert set(BUILT_IN) == set(ENTITIES)


def test_findings_are_counted_by_name():
    outcome = EVERY.apply("a@example.com b@example.com from 10.0.0.7")
    assert outcome.findings == {"email": 2, "ip_address": 1}


def test_the_strongest_action_wins_and_a_blocked_text_is_gone():
    both = guard(entity("email"), pattern("hint", "internal", "flag"), pattern("secret", "s3cret", "block"))
    flagged = both.apply("internal")
    assert (flagged.text, flagged.action, flagged.findings) == ("internal", "flag", {"hint": 1})
    redacted = both.apply("internal a@example.com")
    assert (redacted.text, redacted.action) == ("internal [EMAIL]", "redact")
    assert redacted.findings == {"hint": 1, "email": 1}
    blocked = both.apply("internal s3cret a@example.com")
    assert (blocked.text, blocked.action) == ("", "block")
    assert blocked.findings == {"hint": 1, "secret": 1, "email": 1}


def test_a_flag_never_shields_what_must_be_redacted():
    outcome = guard(pattern("line", ".+", "flag"), entity("email")).apply("to a@example.com now")
    assert outcome.text == "to [EMAIL] now"


def test_overlapping_findings_become_one_named_after_the_longest_then_the_first():
    overlapping = guard(pattern("short", "bcd"), pattern("long", "cdefg"))
    assert overlapping.apply("abcdefgh").text == "a[LONG]h"
    assert overlapping.apply("abcdefgh").findings == {"long": 1}
    assert guard(pattern("one", "abc"), pattern("two", "abc")).apply("abc").text == "[ONE]"


def test_the_cap_is_in_characters():
    capped = guard(entity("email"), max_chars=5)
    assert capped.apply("é" * 5).action == "pass"
    over = capped.apply("é" * 6)
    assert (over.text, over.action, over.findings) == ("", "block", {"max_chars": 1})


def test_a_placeholder_that_its_own_pattern_matches_comes_to_rest():
    words = guard(pattern("words", r"\w+"))
    assert words.apply("two words").text == "[WORDS] [WORDS]"
    assert words.apply("[WORDS]").action == "pass"


def test_redaction_that_never_comes_to_rest_blocks():
    restless = guard(pattern("a", r"b\]?|x\["), pattern("bb", r"\]|a"))
    for text in ("b]", "a]", "x[", "ab]x[", "]]"):
        outcome = restless.apply(text)
        assert outcome.action in ("redact", "block")
        assert outcome.text == "" or restless.apply(outcome.text).action == "pass"


@pytest.mark.parametrize("text", ["(", "(?=a)", r"(a)\1", "a{1001}", "a*"])
def test_a_faulty_pattern_is_named_with_its_position(text):
    with pytest.raises(GuardError) as raised:
        guard(entity("email"), pattern("mine", text))
    assert raised.value.detectors == [1]
    assert "'mine'" in raised.value.problems[0].message


def test_all_faulty_patterns_come_together():
    with pytest.raises(GuardError) as raised:
        guard(pattern("one", "("), entity("email"), pattern("two", "["))
    assert raised.value.detectors == [0, 2]


def test_a_set_that_fails_blocks(monkeypatch):
    broken = guard(entity("email"))

    class Failing:
        def Match(self, text):
            return []

    monkeypatch.setattr(broken, "_set", Failing())
    outcome = broken.apply("anything")
    assert (outcome.text, outcome.action, outcome.findings) == ("", "block", {"guard_error": 1})


def test_many_large_patterns_still_find():
    detectors = [pattern(f"p{n}", rf"needle{n}[\p{{L}}\p{{N}}]{{1,3}}z") for n in range(60)]
    assert guard(*detectors).apply("a needle41abcz b").findings == {"p41": 1}


def test_patterns_that_are_too_large_together_are_refused(monkeypatch):
    monkeypatch.setattr("bundlectl.stages.guards._SET_MEMORY", 200_000)
    with pytest.raises(GuardError, match="too large") as raised:
        guard(*(pattern(f"p{n}", f"needle{n}[a-z]{{1,50}}z") for n in range(60)))
    assert raised.value.detectors == []


def test_lone_surrogates_hide_nothing_and_break_nothing():
    assert EVERY.apply("\ud800 a@example.com \udfff").text == "\ud800 [EMAIL] \udfff"


def test_json_is_walked():
    value = {"answer": "ask a@example.com", "list": ["10.0.0.7", 3, True, None, 1.5], "card": 4111111111111111}
    outcome = EVERY.apply_json(value)
    assert outcome.value == {
        "answer": "ask [EMAIL]",
        "list": ["[IP_ADDRESS]", 3, True, None, 1.5],
        "card": "[CREDIT_CARD]",
    }
    assert (outcome.action, outcome.findings) == ("redact", {"email": 1, "ip_address": 1, "credit_card": 1})
    assert value["answer"] == "ask a@example.com"


def test_json_with_a_finding_in_a_key_is_blocked():
    outcome = EVERY.apply_json({"a@example.com": 1})
    assert (outcome.value, outcome.action, outcome.findings) == (None, "block", {"email": 1})
    flagging = guard(entity("email", "flag")).apply_json({"a@example.com": 1})
    assert (flagging.value, flagging.action) == ({"a@example.com": 1}, "flag")


def test_json_over_the_cap_or_too_deep_is_blocked():
    assert guard(max_chars=5).apply_json(["abc", "def"]).findings == {"max_chars": 1}
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert EVERY.apply_json(deep).findings == {"guard_error": 1}


SEEDS = [text for text, _ in FOUND] + LEFT_ALONE + ["[EMAIL]", "[PHONE", "]", "[", "-", ".", "@", ":", "+"]
pieces = st.one_of(st.sampled_from(SEEDS), st.text(max_size=12), st.text("0123456789 -.:@+()[]ABEFILMN", max_size=24))
texts = st.lists(pieces, max_size=5).map("".join)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_redaction_leaves_nothing_to_find_and_twice_is_once(text):
    outcome = EVERY.apply(text)
    if outcome.action == "block":
        assert outcome.text == ""
        return
    again = EVERY.apply(outcome.text)
    assert (again.text, again.action, again.findings) == (outcome.text, "pass", {})


@settings(max_examples=300, deadline=None)
@given(texts)
def test_a_text_without_findings_is_returned_unchanged(text):
    outcome = EVERY.apply(text)
    assert (outcome.text == text) == (not outcome.findings)


USER = guard(pattern("ab", "a+b"), pattern("word", r"\w\]\w"), pattern("mark", r"\[[a-z]"), entity("email"))


@settings(max_examples=300, deadline=None)
@given(st.text("ab[]@ WORDMKc.", max_size=30))
def test_the_laws_hold_for_patterns_that_touch_placeholders(text):
    outcome = USER.apply(text)
    if outcome.action != "block":
        assert USER.apply(outcome.text).action == "pass"
