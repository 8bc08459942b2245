"""The native part of infercache; import `infercache` instead."""

from collections.abc import Callable, Iterable, Sequence
from inspect import Signature
from typing import Any, Self, TypeVar, final

from numpy.typing import NDArray
from typing_extensions import Buffer, disjoint_base

from infercache._core_edge import EmbeddingsQuery as EmbeddingsQuery
from infercache._core_edge import InferQuery as InferQuery
from infercache._core_edge import Known as Known
from infercache._core_edge import json_depth as json_depth
from infercache._core_envelope import envelope_decode as envelope_decode
from infercache._core_envelope import envelope_encode as envelope_encode
from infercache._core_envelope import envelope_refusals as envelope_refusals
from infercache._core_fingerprint import _fingerprint_of as _fingerprint_of
from infercache._core_fingerprint import _hash_arrays as _hash_arrays
from infercache._core_fingerprint import _hash_regions as _hash_regions
from infercache._core_flight import AGAIN as AGAIN
from infercache._core_flight import FAILED as FAILED
from infercache._core_flight import FOLLOW as FOLLOW
from infercache._core_flight import FOUND as FOUND
from infercache._core_flight import LEAD as LEAD
from infercache._core_flight import UNSHARED as UNSHARED
from infercache._core_flight import VALUE as VALUE
from infercache._core_flight import Arrived as Arrived
from infercache._core_flight import Computation as Computation
from infercache._core_flight import Encoded as Encoded
from infercache._core_flight import Entry as Entry
from infercache._core_flight import Flights as Flights
from infercache._core_flight import Run as Run
from infercache._core_flight import Terms as Terms
from infercache._core_flight import Waiting as Waiting
from infercache._core_flight import _forget_waits as _forget_waits
from infercache._core_flight import adopt_all as adopt_all
from infercache._core_flight import current_computation as current_computation
from infercache._core_flight import encode as encode
from infercache._core_replay import _log_objects as _log_objects
from infercache._core_replay import _log_rows as _log_rows
from infercache._core_replay import _replay as _replay
from infercache._core_tiered import Authority as Authority
from infercache._core_tiered import Finds as Finds
from infercache._core_tiered import Names as Names
from infercache._core_tiered import Places as Places
from infercache._core_tiered import Question as Question
from infercache._core_tiered import tier_envelope as tier_envelope
from infercache._core_tiered import tier_fill as tier_fill
from infercache._core_tiered import tier_recount as tier_recount
from infercache._core_tiered import tier_take as tier_take
from infercache.gpu.digests import Digests
from infercache.gpu.tensors import DeviceTensor
from infercache.lookup import Token

_T = TypeVar("_T")

__version__: str  # of the workspace, in Cargo.toml
EVICTIONS: tuple[str, ...]  # what `Cache(eviction=)` may be; the default is the first
DETACHED_DROPS: str  # of references without the interpreter: "leak"; "abort" where tests look for them; "pool": by PyO3

# ---- key.rs ----------------------------------------------------------------------------------------------------------

@final
class Key:
    """The key of a question to a model: 32 bytes. Its text form is `ic1:` and 64 hexadecimal digits.

    Made by `infercache.key`, or from a text form or 32 bytes. Keys are equal, sorted and hashed by their bytes,
    which the key of a tensor on a device waits for when they are first asked for.

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
    def _digests(self) -> Digests | None:
        """What the key's bytes wait for; None if they are there."""

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

def _is_open(key: object, /) -> bool:
    """Whether this is a key whose bytes wait for a device."""

def _scope_hex(model: str, version: str, namespace: str, operation: str) -> str:
    """The 32 bytes of the scope of these fields as hexadecimal digits; there is none of a scope with a secret."""

# ---- dlpack.rs -------------------------------------------------------------------------------------------------------

@final
class DLPackTensor:
    """A tensor on the host that another library lends: `numpy.asarray` reads it, and it is given back once."""

    def __new__(cls, capsule: object, /) -> DLPackTensor: ...
    @property
    def dtype(self) -> str: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

# ---- document.rs -----------------------------------------------------------------------------------------------------

def _hash_threads(threads: int, /) -> int:
    """Has so many threads hash each large tensor, for measurements; 0: as is best. Gives the number before."""

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

def _open_document(value: object, /) -> tuple[bytearray, list[tuple[int, DeviceTensor | NDArray[Any]]]]:
    """A value's canonical document with zeros for digits in place of digests, and the place and tensor of each.

    The tensors are those on a CUDA device, and contiguous little-endian arrays on the host.
    """

def _blake3(content: bytes, /) -> bytes:
    """Plain BLAKE3 of some bytes: 32 bytes; without the interpreter where they are many."""

@final
class _Blake3:
    """Plain BLAKE3 of bytes that come one buffer after another, so that they need not all be in memory at once."""

    def __new__(cls) -> Self: ...
    def update(self, part: Buffer, /) -> None:
        """Adds a contiguous buffer's bytes; without the interpreter where they are many."""

    def digest(self) -> bytes:
        """The 32 bytes for all that was added so far."""

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

    ``classes`` lists ``(class, form, field names, fingerprint)``; ``resolve`` is asked again for such a list, when
    a class is met that is not in it (an annotation may name what is defined further down), and a longer one takes its
    place.
    """

    def __new__(
        cls,
        classes: Sequence[tuple[type, str, tuple[str, ...], int]],
        resolve: Callable[[], Sequence[tuple[type, str, tuple[str, ...], int]]] | None = None,
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

def register_value(type: type[_T], name: str, encode: Callable[[_T], Any], decode: Callable[[Any], _T]) -> None:
    """Says how results of a type are stored: ``encode(value)`` returns what can be stored (built from the types that
    can), ``decode(stored)`` makes an instance of exactly that type of it again. ``name`` stands for the type in stored
    bytes.
    """

def _encode_value(value: object, schema: Schema | None = None) -> tuple[int, bool, bytes]:
    """Stored bytes of a value: ``(kind, aligned, payload)``. TypeError with the reason for what cannot be stored."""

def _decode_value(kind: int, aligned: bool, payload: bytes, schema: Schema | None = None, copy: bool = False) -> Any:
    """The value of stored bytes, as a hit gives it."""

# ---- store.rs: the native part of Cache ------------------------------------------------------------------------------

@final
class ManualClock:
    """Milliseconds that only the caller moves: for tests and simulators."""

    def __new__(cls, seconds: float = 0.0) -> ManualClock: ...
    def advance(self, seconds: float) -> None:
        """Moves the clock on by `seconds`."""

@disjoint_base
class Store:
    """The native part of `infercache.Cache`."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def _open(
        self,
        capacity: int,
        ttl: float | None,
        namespace: str,
        secret: bytes | None = None,
        *,
        prefix: str = "ic",
        seed: int | None = None,
        clock: ManualClock | None = None,
        shards: int | None = None,
        follows: Authority | None = None,
        trust: tuple[float, float, float] | None = None,
        eviction: str = "s3-fifo",
    ) -> None:
        """Opens the cache: bytes, seconds of freshness, namespace, secret, deployment; seed and clock for tests and
        simulators; the name in `EVICTIONS` of what is given up for new entries. With a shared tier: the authority, and
        how many seconds old its proof may be: always, and for untagged and tagged entries while it is out of reach
        (inf: no limit).
        """

    def get(self, key: Key, default: Any = None, *, min_token: Token | None = None) -> Any:
        """The value under a key, or `default`. Of an entry that holds instances of a class which only a decorated
        function's annotation names, it cannot build the value: a miss, and a warning once.
        """

    def get_many(self, keys: Iterable[Key], default: Any = None, *, min_token: Token | None = None) -> list[Any]:
        """The values under many keys, in their order, `default` where there is none."""

    def _get_near(self, key: Key, default: Any) -> Any:
        """`get` from memory alone."""

    def _get_many_near(self, keys: Iterable[Key], default: Any, known: bool) -> tuple[list[Any], list[Key], Places]:
        """`get_many` from memory alone: values, keys that miss, each once, and their places."""

    def __contains__(self, key: Key, /) -> bool:
        """Is there a fresh entry under this key? Counts nothing, and does not look into the entry: `get` cannot build
        the value of one that holds records of a decorated function, which the function can.
        """

    def _find(
        self, key: Key, stale: float | None = None, counted: bool = True
    ) -> tuple[str, tuple[Any, float, float | None, float, bool, int, float] | None]:
        """`(state, details)` of a key: "fresh", "stale" or "miss", and "unreadable" unless `counted`.

        The details: the value, its age, the seconds it stays fresh and those since it is stale, whether it was purged
        softly, its stamp, the seconds of computing that it took.
        """

    def _store(
        self,
        key: Key,
        value: object,
        ttl: float | None,
        stale: float = 0.0,
        tags: Iterable[str] | None = None,
        stamp: int | None = None,
        cost: float = 0.0,
    ) -> tuple[str, str | None, Entry | None]:
        """Stores a value: `(outcome, reason, entry)`."""

    def _remove(self, key: Key) -> bool:
        """Takes the value under a key out of memory, hiding nothing; says whether one was there to be served."""

    def _empty(self) -> None:
        """Takes everything out of memory, hiding nothing."""

    def _invalidate(self, members: list[bytes]) -> int:
        """Numbers a purge of what `_members` names, where this process is the authority."""

    def _members(
        self,
        *,
        tags: Iterable[str] | None = None,
        keys: Iterable[Key] | None = None,
        models: list[str] | None = None,
        versions: list[tuple[str, str]] | None = None,
        namespace: bool = False,
        all: bool = False,
        soft: bool = False,
    ) -> list[bytes]:
        """What a purge names, as members of the authority's set."""

    def _position(self, stamp: int) -> tuple[bytes, int] | None:
        """A stamp's word as another process understands it: `(epoch, LSN)`. None: its epoch is over, or unknown."""

    def _stamp_at(self, epoch: bytes, lsn: int) -> int | None:
        """The reverse: the word of a position's stamp. None: it is of another epoch than the authority is in."""

    def _stamp(self) -> int:
        """The word of the stamp for a value whose computation starts now."""

    def _stamp_of_computation(self) -> int:
        """The word of the stamp that what runs here would be stored with now: the computation's, or the present one."""

    def _judge(self, stamp: int, key: Key, tags: Iterable[str]) -> str:
        """Would a value with this stamp, key and tags be served now? "valid", "soft" or "hidden"."""

    def _count(self, counter: str, amount: int) -> None:
        """Adds to "coalesced" or "uncacheable", which the layers above decide."""

    def _unserved(self, entries: Sequence[Entry | None], stale: Sequence[int]) -> None:
        """What was counted as hits is misses: these entries, some stale (their places), served nobody."""

    def _stats(self) -> dict[str, Any]:
        """Counters and gauges by name."""

    def _clear(self) -> int:
        """Hides every entry, those being computed included, and gives their bytes back."""

    def _after_fork(self) -> None:
        """Makes the child of a fork start cold."""

# ---- memoized.rs: a decorated function, its hits answered without a Python frame -------------------------------------

BINDS_INSTANCE: int
BINDS_CLASS: int
BINDS_NOTHING: int

class Memoized:
    """A decorated function. `infercache.memoize` makes them."""

    def __new__(cls, parts: dict[str, Any]) -> Self: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def key(self, *args: Any, **kwargs: Any) -> Key:
        """The key of a call with these arguments."""

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> tuple[Key | None, Any, bool | None]:
        """The look-up of a call by itself: key, value, stale; without a key the value is fresh.

        Waits for no device: where `stale` is None, the key is yet to be looked up.
        """

    def _look_at(self, key: Key) -> tuple[Key | None, Any, bool | None]:
        """The same for a key that was formed before."""

    def _peek(self, key: Key) -> Entry | None:
        """The entry that a call would be answered with, or None; counts nothing."""

    def _renamed(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key) -> bool:
        """Whether a call's model or version is not the key's any more."""

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """The arguments of a call by name, defaults applied."""

    def __get__(self, instance: Any, owner: Any = None, /) -> Any: ...

class MemoizedBatch:
    """A decorated batch function. `infercache.memoize_batch` makes them."""

    def __new__(cls, parts: dict[str, Any], over: str, position: int | None) -> Self: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def _next(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        items: tuple[Any, ...],
        keys: Sequence[Key] | None = None,
        wait: bool = True,
    ) -> tuple[Any, Callable[..., Any] | None, tuple[Any, ...] | None]:
        """What a call comes to once its items are a tuple: an answer, or a method to call and its arguments.

        Without `wait`, and where a device has yet to compute digests, no method and the keys, with which to go on.
        """

    def _keys(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, items: tuple[Any, ...]) -> list[Key]:
        """The keys of these items, the other arguments being as given."""

    def _peek(self, key: Key) -> Entry | None:
        """The entry that a call would be answered with for this key, or None; counts nothing."""

    def _renamed(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key) -> bool:
        """Whether a call's model or version is not the key's any more."""

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """The arguments of a call by name, defaults applied."""

    def __get__(self, instance: Any, owner: Any = None, /) -> Any: ...

def encode_rows(result: object, items: int, terms: Terms) -> list[Encoded | str] | int | str:
    """The items of a batch function's result in stored form, or how many there are instead, or why there are none."""

def assemble(items: list[Any], terms: Terms) -> Any | None:
    """A batch function's result from its items: an `Entry`, or the object itself in a tuple of one, for each.

    None: they are rows that do not fit together.
    """

# ---- released.rs -----------------------------------------------------------------------------------------------------

def _leave() -> None:
    """For `atexit`: from now on threads stay where they are; waits for those that are on their way back."""

def _alone() -> None:
    """For the child of a fork: none of its parent's threads is on its way back."""
