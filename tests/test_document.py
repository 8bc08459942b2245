"""The canonical document of Python objects: docs/key-specification.md, section 2."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections import Counter, OrderedDict, UserDict, defaultdict, namedtuple
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import infercache
import reference
from generated import Colour, Generator, Level, Point
from infercache import UnsupportedInput, canonical_json


def outcome(make: Any, value: Any) -> bytes | str:
    """The document, or that there is none."""
    try:
        return bytes(make(value))
    except (UnsupportedInput, reference.Refused):
        return "refused"


@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_thousand_generated_documents_agree_with_the_reference(seed: int) -> None:
    """25,000 for each of four seeds; every fifth may hold values of any row."""
    generator = Generator(seed)
    refused = 0
    for number in range(25_000):
        value = generator.value(rich=number % 5 == 0)
        ours, theirs = outcome(canonical_json, value), outcome(reference.document, value)
        assert ours == theirs, repr(value)
        refused += ours == "refused"
    assert refused < 5_000


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5) | st.tuples(inner, inner),
    max_leaves=30,
)
HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | TEXT
    | st.binary(max_size=3)
    | st.sampled_from(Colour),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=8,
)


@given(JSON | st.dictionaries(HASHABLE, JSON, max_size=4) | st.sets(HASHABLE, max_size=4))
def test_any_value_has_the_references_document(value: Any) -> None:
    assert outcome(canonical_json, value) == outcome(reference.document, value)


SMALL = st.recursive(
    st.sampled_from(
        [None, True, False, 0, 1, 1.0, -0.0, 2**53, 2.0**53, 2**53 + 1, "", "1", "a", "$", "$int", b"", b"1"]
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(st.sampled_from(["", "$int", "$$int", "$map", "a"]), inner, max_size=2)
        | st.dictionaries(st.sampled_from([0, None, b"", "a", ("a",)]), inner, max_size=2)
        | st.frozensets(st.sampled_from([0, "0", None, (0,)]), max_size=2)
    ),
    max_leaves=4,
)


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same question, said without documents."""
    truths = (type(None), bool)
    if isinstance(a, truths) or isinstance(b, truths):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b  # Python compares an int with a float exactly
    for kind in (str, bytes):
        if isinstance(a, kind) or isinstance(b, kind):
            return type(a) is type(b) and bool(a == b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(any(same(m, n) and same(a[m], b[n]) for n in b) for m in a)
    if isinstance(a, frozenset) and isinstance(b, frozenset):
        return len(a) == len(b) and all(any(same(m, n) for n in b) for m in a)
    return False


@given(SMALL, SMALL)
def test_documents_are_equal_exactly_where_values_are(a: Any, b: Any) -> None:
    assert (canonical_json(a) == canonical_json(b)) == same(a, b)


@given(st.dictionaries(TEXT, JSON, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_a_dict_never_shows(value: dict[str, Any], random: Any) -> None:
    names = list(value)
    random.shuffle(names)
    assert canonical_json({name: value[name] for name in names}) == canonical_json(value)


def test_subclasses_count_by_their_content_and_not_by_their_methods() -> None:
    def lie(*_: Any, **__: Any) -> Any:
        raise AssertionError("an overridden method was asked")

    def lying(base: type, *names: str) -> type:
        return type("Lying", (base,), dict.fromkeys(names, lie))

    every = (
        "__iter__",
        "__len__",
        "__getitem__",
        "__str__",
        "__repr__",
        "__eq__",
        "__hash__",
        "keys",
        "items",
        "values",
    )
    for value in ("text", [1, [2]], (1, 2), {"b": 1, "a": 2}, {1, 2}, frozenset({"x"}), b"bytes", bytearray(b"x")):
        methods = [name for name in every if hasattr(type(value), name)]
        assert canonical_json(lying(type(value), *methods)(value)) == canonical_json(value)
    assert canonical_json(lying(int, "__index__", "__int__", "__str__")(7)) == b"7"
    assert canonical_json(lying(int, "__index__", "__int__", "__str__")(10**30 + 1)) == canonical_json(10**30 + 1)
    assert canonical_json(lying(float, "__float__", "__str__", "__repr__")(0.5)) == b"0.5"


def test_the_dicts_of_the_standard_library_are_dicts() -> None:
    point = namedtuple("point", "x y")
    assert canonical_json(OrderedDict(b=1, a=2)) == b'{"a":2,"b":1}'
    assert canonical_json(defaultdict(int, a=1)) == b'{"a":1}'
    assert canonical_json(Counter("aab")) == b'{"a":2,"b":1}'
    assert canonical_json(point(1, 2)) == b"[1,2]"
    with pytest.raises(UnsupportedInput):
        canonical_json(UserDict(a=1))


def test_enum_members_are_their_values_where_they_stand_and_as_names() -> None:
    assert canonical_json([Colour.RED, Colour.PAIR, Level.LOW]) == b'["red",[1,"x"],1]'
    assert canonical_json({Colour.RED: 1, "a": 2}) == b'{"a":2,"red":1}'
    assert canonical_json({Level.LOW: 1}) == b'{"$map":[[1,1]]}'
    for twice in ({Colour.RED: 1, "red": 2}, {Level.LOW: 1, True: 2}):
        if len(twice) == 2:
            with pytest.raises(UnsupportedInput, match="keep one"):
                canonical_json(twice)


def test_an_error_leads_to_the_value() -> None:
    bad = object()
    cases: list[tuple[Any, str]] = [
        (bad, "input: object"),
        ({"filters": [1, 2, {"when": bad}]}, "input.filters[2].when: object"),
        ({"a b": bad}, 'input["a b"]: object'),
        ({1: bad}, "input[1]: object"),
        ({(bad,): 1}, "input<name>[0]: object"),
        ({bad}, "input<member>: object"),
        (Point(1, [bad]), "input.x[0]: object"),
        (["\ud800"], "input[0]: the text contains a lone surrogate"),
        ({"a": {"\ud800": 1}}, "input.a<name>: the text contains a lone surrogate"),
        ([10**4300], "input[0]: an integer of more than 4300 digits"),
    ]
    for value, start in cases:
        with pytest.raises(UnsupportedInput) as caught:
            canonical_json(value)
        assert str(caught.value).startswith(start)
    with pytest.raises(UnsupportedInput, match=r"infercache\.register_form"):
        canonical_json(bad)


def test_depth_is_bounded_and_a_cycle_is_told() -> None:
    def nested(depth: int, wrap: Any) -> Any:
        value: Any = 0
        for _ in range(depth):
            value = wrap(value)
        return value

    for wrap in (
        lambda v: [v],
        lambda v: (v,),
        lambda v: {"a": v},
        lambda v: {1: v},
        Point,
        lambda v: frozenset({v}),
    ):
        canonical_json(nested(256, wrap))
        with pytest.raises(UnsupportedInput, match="more than 256 deep"):
            canonical_json(nested(257, wrap))
    with pytest.raises(UnsupportedInput, match="more than 256 deep"):
        canonical_json(nested(10_000, lambda v: [v]))
    loop: list[Any] = []
    loop.append({"a": loop})
    with pytest.raises(UnsupportedInput, match="contains itself"):
        canonical_json(loop)
    shared = [1]
    assert canonical_json([shared, shared]) == b"[[1],[1]]"


class Unequal:
    """Hostile: no one may ask it anything."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("__eq__ was asked")


class Unhashable:
    """Hostile: hashable once, when the set was made."""

    quiet = True

    def __hash__(self) -> int:
        if Unhashable.quiet:
            return 2
        raise ZeroDivisionError("__hash__ was asked")


def test_objects_that_raise_when_compared_or_hashed_give_an_error() -> None:
    value: list[Any] = [{Unequal(): 1}, {Unequal()}, {Unhashable(): 1}, {Unhashable()}]
    Unhashable.quiet = False
    try:
        for hostile in value:
            with pytest.raises(UnsupportedInput):
                canonical_json(hostile)
    finally:
        Unhashable.quiet = True


def test_what_a_property_raises_arrives_with_the_path() -> None:
    class Raising:
        __dataclass_fields__ = Point.__dataclass_fields__  # type: ignore[attr-defined]

        @property
        def x(self) -> int:
            raise ZeroDivisionError("the property")

        y = x

    with pytest.raises(ZeroDivisionError, match="the property") as caught:
        canonical_json({"a": [Raising()]})
    assert caught.value.__notes__ == ["while forming the key of input.a[0].y"]


class Changing:
    """Its form changes the container that it stands in."""

    def __init__(self, change: Any) -> None:
        self.change = change


infercache.register_form(Changing, "test.changing", lambda changing: (changing.change(), gc.collect())[0])


def test_a_container_changed_while_it_is_read_gives_an_answer_or_an_error() -> None:
    for size in (3, 1000):
        values: dict[Any, Any] = {f"name {n}": f"text {n}" * 5 for n in range(size)}
        values["m"] = Changing(values.clear)
        assert canonical_json(values).startswith(b'{"m":{"$form":')  # the members as they were when reading began
        items: list[Any] = [f"text {n}" * 5 for n in range(size)]
        items.insert(1, Changing(items.clear))
        with pytest.raises(UnsupportedInput, match="changed while it was read"):
            canonical_json(items)
        growing: list[Any] = []
        growing += [Changing(partial(growing.append, 1)), 2]
        with pytest.raises(UnsupportedInput, match="changed while it was read"):
            canonical_json(growing)
        keyed: dict[Any, Any] = {n: [f"text {n}"] for n in range(size)}
        keyed[-1] = Changing(keyed.clear)
        assert canonical_json(keyed).startswith(b'{"$map":[')


def test_surrogates_deep_inside_set_off_the_collector_without_harm() -> None:
    """The exception for bad text may run the garbage collector, which may run anything."""
    holder: dict[str, Any] = {}

    class Clearing:
        def __del__(self) -> None:
            holder.clear()

    for _ in range(200):
        holder.update({f"name {n}": [f"text {n}" * 3] for n in range(50)})
        holder["z"] = ["\ud800"]
        trap: list[Any] = [Clearing()]
        trap.append(trap)
        del trap
        threshold = gc.get_threshold()
        gc.set_threshold(1)
        try:
            with contextlib.suppress(UnsupportedInput):  # unless it was cleared before
                canonical_json(holder)
        finally:
            gc.set_threshold(*threshold)


def test_a_dict_changed_by_another_thread_gives_an_answer_or_an_error() -> None:
    code = """
import threading, sys, time, infercache
sys.setswitchinterval(1e-6)
shared = {str(n): [n, {"a": b"x" * 100_000}] for n in range(50)}
stop = time.monotonic() + 1.5
def change():
    n = 0
    while time.monotonic() < stop:
        n += 1
        shared[str(n % 97)] = [n, {"a": b"y" * 70_000}, bytearray(b"z" * 90_000)]
        shared.pop(str((n * 7) % 97), None)
thread = threading.Thread(target=change)
thread.start()
made = 0
while time.monotonic() < stop:
    try:
        infercache.canonical_json(shared)
        made += 1
    except infercache.UnsupportedInput:
        pass
thread.join()
print("made", made > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "made True\n", done.stderr
    assert done.returncode == 0


def test_documents_are_equal_whatever_pythonhashseed_is() -> None:
    code = (
        "import infercache, hashlib; from generated import Generator; g = Generator(9); h = hashlib.sha256()\n"
        "for n in range(400):\n"
        "    try: h.update(infercache.canonical_json([g.value(), {'a', 'b', n}, {str(i) for i in range(n % 7)}]))\n"
        "    except infercache.UnsupportedInput: pass\n"
        "print(h.hexdigest(), infercache.key({'x': {'p', 'q'}}, model='m', version='1'))"
    )
    seen = set()
    for seed in ("0", "1", "4711"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        seen.add(done.stdout)
    assert len(seen) == 1


def test_numbers_are_independent_of_the_interpreters_digit_limit() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        document = canonical_json(10**4299 + 1)
    finally:
        sys.set_int_max_str_digits(before)
    assert document == b'{"$int":"1' + b"0" * 4298 + b'1"}'
    started = time.perf_counter()
    with pytest.raises(UnsupportedInput, match="4300 digits"):
        canonical_json(1 << 100_000_000)
    assert time.perf_counter() - started < 60  # refused by its bits, not by making its text


def test_a_document_longer_than_256_mib_is_an_error() -> None:
    half = "x" * (129 << 20)
    assert len(canonical_json(half)) == len(half) + 2
    with pytest.raises(UnsupportedInput, match="longer than 256 MiB"):
        canonical_json([half, half])
