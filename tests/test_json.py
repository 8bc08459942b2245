"""Raw JSON text: docs/key-specification.md, section 2, and the public suites where they are at hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from generated import Generator
from infercache import InvalidJSON, canonical_json, canonical_json_from_json

# What RFC 8259 leaves open is decided here: accepted with this document, or refused.
OPEN: dict[str, str | None] = {
    "i_number_double_huge_neg_exp": "[0]",  # underflow to zero is no error
    "i_number_huge_exp": None,  # beyond binary64
    "i_number_neg_int_huge_exp": None,
    "i_number_pos_double_huge_exp": None,
    "i_number_real_neg_overflow": None,
    "i_number_real_pos_overflow": None,
    "i_number_real_underflow": "[0]",
    "i_number_too_big_neg_int": '[{"$int":"-123123123123123123123123123123"}]',  # integer literals are exact
    "i_number_too_big_pos_int": "[100000000000000000000]",
    "i_number_very_big_negative_int": '[{"$int":"-237462374673276894279832749832423479823246327846"}]',
    "i_object_key_lone_2nd_surrogate": None,  # lone surrogates are no text
    "i_string_1st_surrogate_but_2nd_missing": None,
    "i_string_1st_valid_surrogate_2nd_invalid": None,
    "i_string_UTF-16LE_with_BOM": None,  # UTF-8 only
    "i_string_UTF-8_invalid_sequence": None,
    "i_string_UTF8_surrogate_U+D800": None,
    "i_string_incomplete_surrogate_and_escape_valid": None,
    "i_string_incomplete_surrogate_pair": None,
    "i_string_incomplete_surrogates_escape_valid": None,
    "i_string_invalid_lonely_surrogate": None,
    "i_string_invalid_surrogate": None,
    "i_string_invalid_utf-8": None,
    "i_string_inverted_surrogates_U+1D11E": None,
    "i_string_iso_latin_1": None,
    "i_string_lone_second_surrogate": None,
    "i_string_lone_utf8_continuation_byte": None,
    "i_string_not_in_unicode_range": None,
    "i_string_overlong_sequence_2_bytes": None,
    "i_string_overlong_sequence_6_bytes": None,
    "i_string_overlong_sequence_6_bytes_null": None,
    "i_string_truncated-utf-8": None,
    "i_string_utf16BE_no_BOM": None,
    "i_string_utf16LE_no_BOM": None,
    "i_structure_500_nested_arrays": None,  # 256 are enough
    "i_structure_UTF-8_BOM_empty_object": None,  # a byte order mark is refused
}
# Duplicate names are well-formed JSON and refused all the same: nobody can say which of the two was meant.
DUPLICATES = {"y_object_duplicated_key", "y_object_duplicated_key_and_value"}


def suite(shared: Path, kind: str) -> dict[str, bytes]:
    """The texts of one kind of JSONTestSuite."""
    folder = shared / "conformance" / "jsontestsuite" / "test_parsing"
    texts = {path.stem: path.read_bytes() for path in sorted(folder.glob(f"{kind}_*.json"))}
    assert texts, f"no texts in {folder}"
    return texts


def test_every_text_that_must_be_accepted_is_but_for_duplicate_names(shared: Path) -> None:
    texts = suite(shared, "y")
    for name, text in texts.items():
        if name in DUPLICATES:
            with pytest.raises(InvalidJSON, match="duplicate member name"):
                canonical_json_from_json(text)
        else:
            assert canonical_json_from_json(text) == reference.json_document(text), name
    assert set(texts) >= DUPLICATES


def test_every_text_that_must_be_rejected_is(shared: Path) -> None:
    for name, text in suite(shared, "n").items():
        try:
            document = canonical_json_from_json(text)
        except InvalidJSON:
            continue
        pytest.fail(f"{name} was accepted: {document!r}")


def test_every_open_text_is_decided_as_listed(shared: Path) -> None:
    texts = suite(shared, "i")
    assert set(texts) == set(OPEN)
    for name, text in texts.items():
        expected = OPEN[name]
        if expected is None:
            with pytest.raises(InvalidJSON):
                canonical_json_from_json(text)
        else:
            assert canonical_json_from_json(text).decode() == expected, name


def test_the_jcs_pairs_hold(shared: Path) -> None:
    folder = shared / "conformance" / "jcs" / "testdata"
    inputs = sorted((folder / "input").glob("*.json"))
    assert len(inputs) == 6
    for path in inputs:
        expected = (folder / "output" / path.name).read_bytes()
        assert canonical_json_from_json(path.read_bytes()) == expected, path.name
        assert canonical_json(json.loads(path.read_bytes())) == expected, path.name
        hexadecimal = (folder / "outhex" / path.name).with_suffix(".txt").read_text()
        assert bytes.fromhex(hexadecimal) == expected


def spelled(value: Any, pick: random.Random) -> str:
    """One of the many texts that parse to a value."""
    space = pick.choice(("", "", "", " ", "\n", "\t\r "))
    if isinstance(value, dict):
        members = [f"{spelled(name, pick)}:{spelled(member, pick)}" for name, member in value.items()]
        pick.shuffle(members)
        return space + "{" + ",".join(members) + space + "}" + space
    if isinstance(value, list | tuple):
        return space + "[" + ",".join(spelled(item, pick) for item in value) + space + "]" + space
    return space + json.dumps(value, ensure_ascii=pick.random() < 0.5) + space


def test_raw_json_has_the_document_of_the_value_that_it_parses_to() -> None:
    generator, pick = Generator(77), random.Random(78)
    compared = 0
    for _ in range(10_000):
        text = spelled(generator.value(), pick).encode()
        try:
            expected: bytes | None = reference.json_document(text)
        except reference.Refused:
            expected = None
        if expected is None:
            with pytest.raises(InvalidJSON):
                canonical_json_from_json(text)
        else:
            assert canonical_json_from_json(text) == expected, text
            compared += 1
    assert compared > 5_000


@given(st.text('[]{}",:0123456789.eE+-\\u/ntfalsr \n\x00é', max_size=40) | st.binary(max_size=30))
def test_any_bytes_give_the_references_answer(text: Any) -> None:
    text = text if isinstance(text, bytes) else text.encode()
    try:
        expected = reference.json_document(text)
    except reference.Refused:
        with pytest.raises(InvalidJSON):
            canonical_json_from_json(text)
    else:
        assert canonical_json_from_json(text) == expected


def test_an_error_gives_the_byte_and_the_fault() -> None:
    for text, expected in [
        ('{"a":1,"\\u0061":2}', 'invalid JSON at byte 7: duplicate member name "a"'),
        ("[1,]", "invalid JSON at byte 3: expected a value"),
        ("[1e400]", "invalid JSON at byte 1: a number beyond the range of a binary64"),
    ]:
        with pytest.raises(InvalidJSON) as caught:
            canonical_json_from_json(text)
        assert str(caught.value) == expected
        assert isinstance(caught.value, ValueError)


def test_text_may_be_bytes_or_str_or_a_buffer_of_bytes_and_nothing_else() -> None:
    for text in (b"[1]", "[1]", bytearray(b"[1]"), memoryview(b"[1]")):
        assert canonical_json_from_json(text) == b"[1]"
    wrong: Any
    for wrong in (1, None, [91, 49, 93], {"a": 1}, 1.5):
        with pytest.raises(TypeError, match="raw JSON text must be bytes or str"):
            canonical_json_from_json(wrong)
    with pytest.raises(InvalidJSON, match="surrogate"):
        canonical_json_from_json('"\ud800"')


def test_hostile_texts_give_an_answer_or_an_error_in_good_time() -> None:
    deep = 200
    unsorted = '{"b":' * deep + '"' + "x" * 1_000_000 + '"' + ',"a":1}' * deep
    assert canonical_json_from_json(unsorted).decode().startswith('{"a":1,"b":{"a":1,"b":')
    names = ",".join(f'"{n * 7919 % 100_003}":{n}' for n in range(100_003))
    assert canonical_json_from_json("{" + names + "}").startswith(b'{"0":0,')
    for text in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 257 + "]" * 257,
        '"' + "\\" * 99_999,
        "1" * 10_000_000,
        "-",
        "{",
        '{"',
    ):
        with pytest.raises(InvalidJSON):
            canonical_json_from_json(text)
    huge = canonical_json_from_json("0." + "1" * 1_000_000)
    assert huge == b"0.1111111111111111"
