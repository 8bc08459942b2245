"""The part of `infercache._core` that `envelope.rs` registers: a stub only, there is no such module at run time."""

from typing import Any

from infercache._core import Key

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
