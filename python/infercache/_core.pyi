"""The native part of infercache; import `infercache` instead."""

from collections.abc import Callable, Sequence
from inspect import Signature
from typing import Any, TypeVar, final

_T = TypeVar("_T")

# ---- key.rs ----------------------------------------------------------------------------------------------------------

@final
class Key:
    """The key of a question to a model: 32 bytes. Its text form is `ic1:` and 64 hexadecimal digits.

    Made by `infercache.key`, or from a text form or 32 bytes. Keys are equal, sorted and hashed by their bytes.

    Raises:
        InvalidArgument: not the text form of a key, or not 32 bytes.
    """

    def __new__(cls, text: str | bytes | Key, /) -> Key: ...
    def __bytes__(self) -> bytes: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __lt__(self, other: Key, /) -> bool: ...
    def __le__(self, other: Key, /) -> bool: ...
    def __gt__(self, other: Key, /) -> bool: ...
    def __ge__(self, other: Key, /) -> bool: ...
    def __reduce__(self) -> tuple[type[Key], tuple[str]]: ...
    def __copy__(self) -> Key: ...
    def __deepcopy__(self, _memo: object, /) -> Key: ...

def key(
    value: object,
    /,
    *,
    model: str,
    version: str,
    namespace: str = "default",
    operation: str = "",
    secret: bytes | None = None,
) -> Key:
    """The key of a value for a model: equal in every process and on every machine.

    Args:
        value: the question: JSON-like values, arrays, images, dates, dataclasses, Pydantic models, and types with a
            registered form; docs/key-specification.md has the table.
        model: the model's name. It has no default: two models must never share an answer.
        version: the model's version. It has no default: a new version must never serve the answers of the old one.
        namespace: tenant or application.
        operation: what the model is asked to do.
        secret: 32 bytes, for keys that nobody without them can compute.

    Raises:
        TypeError: `model` or `version` is missing, or a field is not text.
        UnsupportedInput: the value, or something in it, cannot enter a key; the text names the path.
        InvalidArgument: an empty or malformed scope field, or a secret of another length.
    """

def key_from_json(
    text: bytes | bytearray | memoryview | str,
    /,
    *,
    model: str,
    version: str,
    namespace: str = "default",
    operation: str = "",
    secret: bytes | None = None,
) -> Key:
    """The key of raw JSON text: that of the value it parses to, without making the value.

    Raises:
        InvalidJSON: the text is not acceptable; the message gives the byte and the fault.
    """

def _scope_hex(model: str, version: str, namespace: str, operation: str) -> str:
    """The 32 bytes of the scope of these fields as hexadecimal digits; there is none of a scope with a secret."""

# ---- document.rs -----------------------------------------------------------------------------------------------------

def canonical_json(value: object, /) -> bytes:
    """The canonical document of a value: the UTF-8 of RFC 8785 JSON with the key specification's `$` forms.

    Raises:
        UnsupportedInput: the value, or something in it, cannot enter a key; the text names the path.
    """

def canonical_json_from_json(text: bytes | bytearray | memoryview | str, /) -> bytes:
    """The canonical document of raw JSON text.

    Raises:
        InvalidJSON: the text is not acceptable; the message gives the byte and the fault.
    """

def register_form(type: type[_T], name: str, function: Callable[[_T], object]) -> None:
    """Says how instances of exactly `type` enter a key: as the form `name` of what `function(instance)` returns.

    Subclasses are not meant; they need forms of their own. Registering a type again replaces its form. Processes that
    share keys must register the same forms.

    Args:
        type: the class.
        name: stands in the document, so that types of different names never share a key.
        function: called with the instance; returns something that can enter a key.

    Raises:
        InvalidArgument: an empty name.
    """

# ---- arguments.rs ----------------------------------------------------------------------------------------------------

@final
class Arguments:
    """The parameters of a function, compiled from its signature: writes the document of a call's arguments.

    Args:
        signature: the function's signature.
        name: the function's name, for error texts.
        ignore: names of parameters that do not count.

    Raises:
        ValueError: `ignore` names what the function cannot take.
    """

    def __new__(cls, signature: Signature, name: str, ignore: list[str] | tuple[str, ...] = ...) -> Arguments: ...
    @property
    def names(self) -> list[str]:
        """The names of the parameters, in the signature's order."""
    def document(self, *args: Any, **kwargs: Any) -> bytes:
        """The canonical document of a call with these arguments."""
    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Name to value of a call with these arguments, defaults applied, ignored ones included."""

# ---- value.rs: results to stored bytes and back

@final
class Schema:
    """The classes that a return annotation names, compiled once when decorating, by ``infercache.values.schema_of``.

    ``classes`` lists ``(class, form, field names, fingerprint)``; ``resolve`` is asked once more for such a list, when
    a class is met that is not in it (an annotation may name what is defined further down).
    """

    def __new__(
        cls,
        classes: Sequence[tuple[type, str, tuple[str, ...], int]],
        resolve: Callable[[], Sequence[tuple[type, str, tuple[str, ...], int]] | None] | None = None,
    ) -> Schema: ...
    @property
    def classes(self) -> tuple[type, ...]:
        """The classes, in the order of their places."""

@final
class SharedBuffer:
    """Owns the buffer that read-only arrays of a hit lie in; their ``base``. It offers no buffer of its own, so nothing
    can make those arrays writable.
    """

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer, all arrays of the value together."""

@final
class _Stored:
    """An entry by itself, for tests and benchmarks: what a look-up holds between finding and decoding."""

    def __new__(cls, value: object, schema: Schema | None = None) -> _Stored: ...
    def value(self, copy: bool = False) -> Any:
        """The value, as a hit gives it."""

    @property
    def kind(self) -> int:
        """How the payload is read."""

    @staticmethod
    def rows(result: object, n: int, schema: Schema | None = None) -> list[_Stored | str]:
        """The items of a batch function's result: one entry each, or the reason (text) why one cannot be stored."""

    @staticmethod
    def assemble(items: list[Any], schema: Schema | None = None, copy: bool = False) -> Any:
        """A batch function's result of these items: entries or, where one could not be stored, the object itself."""

def register_value(type: type[_T], name: str, encode: Callable[[_T], Any], decode: Callable[[Any], _T]) -> None:  # noqa: A002
    """Says how results of a type are stored: ``encode(value)`` returns what can be stored (built from the types that
    can), ``decode(stored)`` makes an instance of exactly that type of it again. ``name`` stands for the type in stored
    bytes.
    """

def _encode_value(value: object, schema: Schema | None = None) -> tuple[int, bool, bytes]:
    """Stored bytes of a value: ``(kind, aligned, payload)``. TypeError with the reason for what cannot be stored."""

def _decode_value(kind: int, aligned: bool, payload: bytes, schema: Schema | None = None, copy: bool = False) -> Any:
    """The value of stored bytes, as a hit gives it."""
