"""The part of `infercache._core` that `authority.rs` and `tiered.rs` register: a stub only."""

from collections.abc import Sequence
from typing import Any, final

from infercache._core import Entry, Key, Store, Terms

# ---- authority.rs: the authority of a deployment, as the follower feeds it

@final
class Question:
    """What goes with a question to the authority; made before it is sent, which dates it."""

    @property
    def epoch(self) -> bytes:
        """The epoch that is known here; empty: none."""

    @property
    def applied(self) -> int:
        """What is applied of it."""

    @property
    def asked(self) -> int:
        """When it was made, in nanoseconds of the clock that also counts while the machine sleeps."""

    @property
    def pending(self) -> list[bytes]:
        """Purges that have to be sent along, as members of the authority's set."""

@final
class Authority:
    """This process's replica of a deployment's authority."""

    def __new__(cls, prefix: str, secret: bytes | None, server: str) -> Authority: ...
    def ask(self) -> Question:
        """Begins a question, now."""

    def apply(self, question: Question, answer: list[Any]) -> bool:
        """Applies the answer to a question: `[epoch, C, up to which LSN the changes reach, H, changes]`. False: it was
        discarded, since the epoch has changed since the question.
        """

    def hide(self, members: list[bytes]) -> None:
        """Hides what these members name, or marks it stale, until the authority has acknowledged their purge."""

    def set_out(self) -> None:
        """Takes note that the authority is out of reach, until its next answer."""

    @property
    def is_out(self) -> bool:
        """Is it, as far as is known?"""

    @property
    def pending(self) -> int:
        """Purges that the authority has not acknowledged."""

    @property
    def proof_age(self) -> float | None:
        """Seconds since the question was sent that was last answered in full; None: none ever was."""

    @property
    def applied(self) -> int:
        """What is applied now, as a stamp's word."""

# ---- tiered.rs: between the cache and its shared tier

@final
class Places:
    """Where the values of keys that memory missed are to stand: pairs of a place and the number of its key."""

    def __new__(cls, pairs: list[tuple[int, int]]) -> Places: ...

@final
class Names:
    """The names under which values stand in a tier: a prefix and each key's 64 hexadecimal digits."""

    def __new__(cls, prefix: str, keys: Sequence[Key]) -> Names: ...
    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> bytes: ...
    def packed(self, chunk: int) -> list[bytes]:
        """As the protocol has them: chunk by chunk of so many names the lives (`PTTL`), then the values (`MGET`)."""

@final
class Finds:
    """What one look into the tier finds: of each of its keys an entry and "l1", "l2" or "stale", or None.

    "stale": its life is over, or it is softly purged, but its window is not. `window`: for how many milliseconds after
    its life one is served stale; None: none is, and one of the tier is promoted for those who may. What is found is
    counted, in place of the miss before it, if `counted`.
    """

    def __new__(cls, keys: Sequence[Key], *, window: int | None = None, counted: bool = True) -> Finds: ...
    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> tuple[Entry, str] | None: ...

def tier_take(
    store: Store,
    finds: Finds,
    first: int,
    upto: int,
    values: Sequence[Any] | None,
    lefts: Sequence[Any] | None,
    elapsed: int,
    since: int | None,
    *,
    look: bool = False,
) -> dict[str, int]:
    """Checks what the tier had for the keys with these numbers, puts it into memory, and writes it down in `finds`.

    Memory gets it with the stamps that it carries. Why there is none is counted by reason.
    """

def tier_fill(
    store: Store,
    values: list[Any],
    places: Places,
    finds: Finds,
) -> int:
    """Puts what `tier_take` found into its places among the values, which `_get_many_near` gave.

    What does not decode here leaves the default. How many of the tier's do not decode.
    """

def tier_recount(store: Store, entry: Entry, source: str) -> None:
    """Counts what was found in "l1", in "l2" or "stale" as the miss that it comes to: its value cannot be built."""

def tier_envelope(
    store: Store, entry: Entry, terms: Terms, compress_from: int = ...
) -> tuple[bytes, int | None] | None:
    """What the tier is given of an entry that was just stored on these terms: its envelope, and `PX`."""
