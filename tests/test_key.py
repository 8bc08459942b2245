"""Scope, key and text form: docs/key-specification.md, section 1; and the surface that makes keys."""

from __future__ import annotations

import array
import copy
import datetime
import enum
import json
import pickle
import subprocess
import sys
import threading
import types
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import infercache
import reference
from infercache import InvalidArgument, InvalidJSON, Key, UnsupportedInput, canonical_json, key

OWN = Path(__file__).parent / "vectors" / "keys.json"
NAMESPACE = {
    "np": np,
    "datetime": datetime,
    "types": types,
    "array": array.array,
    "Enum": enum.Enum,
    "Decimal": Decimal,
    "UUID": uuid.UUID,
}


def value_of(expression: str) -> Any:
    """The value of a vector's Python expression; the names it may use are fixed."""
    return eval(expression, dict(NAMESPACE))  # noqa: S307 (vectors are files of ours)


def check_vectors(path: Path) -> None:
    """Every vector of a file: documents, keys, and what is to be refused."""
    vectors = json.loads(path.read_text(encoding="utf-8"))
    for vector in vectors["json"] + vectors["raw_json"] + vectors["python"]:
        scope = {name: vector[name] for name in ("model", "version", "namespace", "operation")}
        if "secret" in vector:
            scope["secret"] = bytes.fromhex(vector["secret"])
        if "text" in vector:
            document = infercache.canonical_json_from_json(vector["text"].encode())
            found = infercache.key_from_json(vector["text"].encode(), **scope)
            assert reference.json_document(vector["text"].encode()) == document, vector["name"]
        else:
            value = vector["input"] if "input" in vector else value_of(vector["python"])
            document, found = canonical_json(value), key(value, **scope)
        assert document.decode() == vector["document"], vector["name"]
        assert str(found) == vector["key"], vector["name"]
        assert reference.key(document, **scope) == vector["key"], vector["name"]
    for text in vectors["refused_raw_json"]:
        with pytest.raises(InvalidJSON):
            infercache.canonical_json_from_json(text.encode())
    for expression in vectors["refused_python"]:
        value = value_of(expression)
        with pytest.raises(UnsupportedInput):
            canonical_json(value)


def test_our_vectors_hold() -> None:
    check_vectors(OWN)


def test_the_specifications_vectors_hold(shared: Path) -> None:
    check_vectors(shared / "keyspec" / "vectors.json")


FIELD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@given(
    FIELD, FIELD, FIELD, st.one_of(st.just(""), FIELD), st.none() | st.binary(min_size=32, max_size=32), st.integers()
)
def test_keys_agree_with_the_reference(
    namespace: str, model: str, version: str, operation: str, secret: bytes | None, value: int
) -> None:
    scope: dict[str, Any] = {
        "namespace": namespace,
        "model": model,
        "version": version,
        "operation": operation,
        "secret": secret,
    }
    expected = reference.key(reference.document(value), **scope)
    assert str(key(value, **scope)) == expected
    assert str(key(value, **scope)) == expected  # from the remembered scope
    assert str(infercache.key_from_json(str(value), **scope)) == expected


@given(st.lists(st.text("abc", min_size=2, max_size=4), min_size=4, max_size=4), st.integers(0, 2))
def test_moving_a_field_boundary_changes_the_key(fields: list[str], cut: int) -> None:
    def key_of(parts: list[str]) -> Key:
        return key(1, namespace=parts[0], model=parts[1], version=parts[2], operation=parts[3])

    moved = list(fields)
    moved[cut], moved[cut + 1] = fields[cut][:1], fields[cut][1:] + fields[cut + 1]
    assert key_of(moved) != key_of(fields)


def test_the_same_fields_in_other_places_are_other_scopes() -> None:
    keys = {
        key(1, model="a", version="b"),
        key(1, model="b", version="a"),
        key(1, model="a", version="b", operation="c"),
        key(1, model="a", version="b", namespace="c"),
        key(1, model="ab", version="c"),
        key(1, model="a", version="bc"),
        key(1, model="a", version="b", secret=bytes(32)),
    }
    assert len(keys) == 7


def test_scopes_are_remembered_by_content_and_never_mixed_up() -> None:
    for n in range(3000):  # more than are remembered
        model = "".join(("mod", "el", str(n % 1500)))  # an object of its own each time
        assert str(key(n, model=model, version="1")) == reference.key(str(n).encode(), model, "1")
    secret = bytearray(32)
    first = key(1, model="m", version="1", secret=secret)  # type: ignore[arg-type]
    secret[0] = 1
    assert key(1, model="m", version="1", secret=secret) != first  # type: ignore[arg-type]


def test_leaving_out_model_or_version_is_a_type_error_that_says_why() -> None:
    with pytest.raises(TypeError, match="model is missing and has no default: two models must never share an answer"):
        key(1, version="1")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="version is missing and has no default: a new version"):
        key(1, model="m")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="model"):
        infercache.explain(1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("scope", "error", "text"),
    [
        ({"model": ""}, InvalidArgument, "model must not be empty"),
        ({"version": ""}, InvalidArgument, "version must not be empty"),
        ({"namespace": ""}, InvalidArgument, "namespace must not be empty"),
        ({"model": 1}, TypeError, "model must be text"),
        ({"model": None}, TypeError, "model must be text"),
        ({"namespace": None}, TypeError, "namespace must be text"),
        ({"operation": b"x"}, TypeError, "operation must be text"),
        ({"version": "\ud800"}, InvalidArgument, "version contains a lone surrogate"),
        ({"secret": b"short"}, InvalidArgument, "32 bytes, not 5"),
        ({"secret": "x" * 32}, TypeError, "secret must be 32 bytes"),
    ],
)
def test_a_scope_field_that_is_not_acceptable_is_told(scope: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        key(1, **({"model": "m", "version": "1"} | scope))


def test_a_key_is_its_bytes() -> None:
    made = key({"a": 1}, model="m", version="1")
    assert len(bytes(made)) == 32
    assert str(made) == "ic1:" + bytes(made).hex()
    assert repr(made) == f"Key('{made}')"
    for again in (Key(str(made)), Key(bytes(made)), Key(made), pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert again == made
        assert hash(again) == hash(made)
    assert made != str(made)
    assert made != key({"a": 2}, model="m", version="1")
    assert {made: 1}[Key(str(made))] == 1
    others = [key(n, model="m", version="1") for n in range(20)]
    assert [bytes(k) for k in sorted(others)] == sorted(bytes(k) for k in others)
    with pytest.raises(TypeError):
        made < 1  # type: ignore[operator]  # noqa: B015
    with pytest.raises(AttributeError):
        made.bytes = b""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    ["", "ic1:", "ic2:" + "0" * 64, "ic1:" + "0" * 63, "ic1:" + "A" * 64, "0" * 64, "ic1:" + "é" * 32, "\ud800", b"x"],
)
def test_a_text_form_has_one_spelling(text: Any) -> None:
    with pytest.raises(InvalidArgument):
        Key(text)
    with pytest.raises(TypeError):
        Key(1)  # type: ignore[arg-type]


def test_explain_shows_document_and_scope_and_never_a_secrets_scope() -> None:
    shown = infercache.explain({"b": 1, "a": 2}, model="m", version="1", operation="o")
    assert shown.document == '{"a":2,"b":1}'
    assert shown.key == str(key({"a": 2, "b": 1}, model="m", version="1", operation="o"))
    assert shown.scope is not None
    assert (
        shown.key
        == "ic1:" + reference.blake3.blake3(shown.document.encode(), key=bytes.fromhex(shown.scope)).hexdigest()
    )
    for part in ("m", "1", "o", "default", shown.document, shown.key, shown.scope):
        assert part in str(shown)
    secret = bytes(range(32))
    hidden = infercache.explain_json(b'{"a":2}', model="m", version="1", secret=secret)
    scope = reference.blake3.blake3(
        bytes.fromhex(infercache.explain(0, model="m", version="1").scope or ""), key=secret
    ).hexdigest()
    assert hidden.scope is None
    for text in (str(hidden), repr(hidden)):
        assert scope not in text
        assert secret.hex() not in text


def test_a_registered_form_stands_in_the_document_and_decides_first() -> None:
    class Angle:
        def __init__(self, degrees: float) -> None:
            self.degrees = degrees

    class Steep(Angle):
        pass

    infercache.register_form(Angle, "test.angle", lambda angle: {"degrees": angle.degrees})
    assert canonical_json([Angle(1.5)]) == b'[{"$form":{"name":"test.angle","value":{"degrees":1.5}}}]'
    assert canonical_json({Angle(1): 2}) == b'{"$map":[[{"$form":{"name":"test.angle","value":{"degrees":1}}},2]]}'
    with pytest.raises(UnsupportedInput):
        canonical_json(Steep(1))  # exactly the type, no subclass
    infercache.register_form(Angle, "test.angle2", lambda angle: angle.degrees)
    assert canonical_json(Angle(2)) == b'{"$form":{"name":"test.angle2","value":2}}'

    class Text(str):
        __slots__ = ()

    infercache.register_form(Text, "test.text", lambda text: [str(text)])
    assert (
        canonical_json({Text("a"): 1, "b": 2}) == b'{"$map":[["b",2],[{"$form":{"name":"test.text","value":["a"]}},1]]}'
    )


def test_a_form_that_never_ends_or_raises_is_an_error() -> None:
    class Endless:
        pass

    infercache.register_form(Endless, "test.endless", lambda _: Endless())
    with pytest.raises(UnsupportedInput, match="lead to one another"):
        canonical_json(Endless())

    class Raising:
        pass

    infercache.register_form(Raising, "test.raising", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError) as caught:
        canonical_json({"a": Raising()})
    assert caught.value.__notes__ == ["while forming the key of input.a<form test.raising>"]


def test_a_form_may_ask_for_a_key_itself() -> None:
    class Asking:
        pass

    infercache.register_form(Asking, "test.asking", lambda _: str(key({"inner": [1, 2]}, model="m", version="1")))
    inner = key({"inner": [1, 2]}, model="m", version="1")
    expected = f'{{"a":{{"$form":{{"name":"test.asking","value":"{inner}"}}}},"z":1}}'
    assert canonical_json({"z": 1, "a": Asking()}).decode() == expected


@pytest.mark.parametrize(
    ("kind", "name", "function", "error"),
    [
        (1, "n", repr, TypeError),
        (int, "", repr, InvalidArgument),
        (int, 1, repr, TypeError),
        (int, "n", 1, TypeError),
        (int, "\ud800", repr, InvalidArgument),
    ],
)
def test_a_form_that_cannot_be_registered_is_told(kind: Any, name: Any, function: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        infercache.register_form(kind, name, function)


def test_a_builtin_type_may_have_a_form() -> None:
    code = (
        "import infercache; infercache.register_form(str, 'upper', lambda s: [len(s)])\n"
        "print(infercache.canonical_json({'a': 'xyz', 1: ['q']}).decode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    form = '{{"$form":{{"name":"upper","value":[{}]}}}}'
    one, three = form.format(1), form.format(3)
    assert done.stdout.strip() == f'{{"$map":[[1,[{one}]],[{one},{three}]]}}'


def test_keys_are_made_by_many_threads_at_once() -> None:
    expected = [str(key([n, {"a": "x" * n}], model="m", version="1")) for n in range(200)]
    wrong: list[int] = []

    def make() -> None:
        for _ in range(20):
            made = [str(key([n, {"a": "x" * n}], model="m", version="1")) for n in range(200)]
            wrong.extend(n for n in range(200) if made[n] != expected[n])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_library_is_imported_to_form_a_key() -> None:
    code = (
        "import sys, infercache; before = set(sys.modules)\n"
        "class A: pass\n"
        "infercache.key({'a': [1, {2}, b'x', bytearray(b'y')], 'b': memoryview(b'z')}, model='m', version='1')\n"
        "try: infercache.key(A(), model='m', version='1')\n"
        "except TypeError: pass\n"
        "loaded = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(loaded & {'PIL', 'pydantic', 'torch', 'ml_dtypes', 'jax', 'cupy', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
