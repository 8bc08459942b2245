"""The native part of infercache; import ``infercache`` instead."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, final

_T = TypeVar("_T")

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
