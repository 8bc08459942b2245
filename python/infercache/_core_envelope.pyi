"""The part of `infercache._core` that `envelope.rs` registers: a stub only, there is no such module at run time."""

from typing import Any

from infercache._core import Entry, Key, Store

def envelope_encode(
    key: Key,
    payload: bytes,
    *,
    kind: int = 0,
    aligned: bool = False,
    epoch: bytes = ...,
    lsn: int = 0,
    life: int | None = None,
    stale: int = 0,
    age: int = 0,
    total: int | None = None,
    scope: tuple[int, int, int] = ...,
    tags: list[int] = ...,
    cost: float = 0.0,
    secret: bytes | None = None,
    compress_from: int = ...,
) -> bytes:
    """The bytes of an envelope, from its parts: for tests and tools (docs/envelope.md).

    Args:
        key: the key that it belongs to.
        payload: the value's bytes, `kind` and `aligned` as the core stores them.
        kind: how the payload is read, 0 to 31.
        aligned: whether the payload holds tensors.
        epoch: 16 bytes: the authority's epoch; zeros by default.
        lsn: the stamp's log sequence number, below 2**64.
        life: milliseconds of freshness from when it was computed; None: for ever.
        stale: milliseconds after that in which it may be served stale.
        age: milliseconds since it was computed.
        total: milliseconds of life that the server is given with it (`PX`), at least 1; None: none, if `life` is None.
        scope: hashes of the implicit tags: namespace (not 0; 1 by default), model, version (both 0 or
            neither).
        tags: hashes of the caller's tags, at most 4,096, none of them 0.
        cost: seconds that computing it took.
        secret: 32 bytes: the envelope carries a MAC under their sub-key; None: a checksum.
        compress_from: payloads of so many bytes, 512 by default, are compressed where that saves an eighth.

    Raises:
        InvalidArgument: what no reader would accept.
    """

def envelope_decode(data: bytes, key: Key, *, secret: bytes | None = None, cap: int = ...) -> dict[str, Any] | str:
    """What an envelope holds, named as the arguments of `envelope_encode`; or the name of the reason why it is refused.

    Args:
        data: any bytes.
        key: the key that was asked for.
        secret: 32 bytes: only envelopes with a MAC under their sub-key are accepted; None: only those without a MAC.
        cap: the longest payload that is accepted, in bytes; 2**40 by default.
    """

def envelope_refusals() -> list[str]:
    """The names of the reasons for which an envelope is refused: one counter each."""

def envelope_of(
    store: Store, entry: Entry, *, epoch: bytes, most: int | None = None, compress_from: int = ...
) -> tuple[bytes, int | None] | None:
    """An entry's envelope, and the milliseconds for which the server is to keep it (`PX`; None: for ever).

    Args:
        store: the cache that the entry stands in; its secret, if it has one, makes the MAC.
        entry: an entry that a look-up gave.
        epoch: 16 bytes: the epoch of the authority that numbered the entry's stamp.
        most: the longest that the server is to keep anything, in milliseconds.
        compress_from: as for `envelope_encode`.

    Returns:
        None if the entry is not in the cache any more, or its life is over.
    """

def envelope_promote(
    store: Store, data: bytes, key: Key, *, epoch: bytes, stamp: int, remaining: int | None
) -> tuple[str, Entry | None]:
    """Promotes an envelope into the cache, with the stamp, the life and the tags that it carries.

    Args:
        store: the cache; its secret says whether envelopes must carry a MAC.
        data: what the server holds under the key: any bytes.
        key: the key that was asked for.
        epoch: 16 bytes: the authority's epoch as this process knows it.
        stamp: the word of any stamp of that epoch in this process.
        remaining: milliseconds for which the server still keeps it, `PTTL` less the time since it was asked; None: for
            ever.

    Returns:
        The outcome, and the entry if it may be served: "kept"; "refused" (served, but larger than the cache); "fenced"
        (a purge after its stamp hides it); "over" (its life is); "epoch" (of another epoch); or a name of
        `envelope_refusals()`.
    """
