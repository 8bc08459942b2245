"""The native part of infercache; import `infercache` instead."""

from collections.abc import Callable
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

def register_form(type: type[_T], name: str, function: Callable[[_T], object]) -> None:  # noqa: A002
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
