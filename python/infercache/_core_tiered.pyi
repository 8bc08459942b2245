"""The part of `infercache._core` that `authority.rs` and `tiered.rs` register: a stub only."""

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

def tier_look(store: Store, key: Key, since: int | None, counted: bool = True) -> Entry | None:
    """The fresh entry in memory of a key that was missed before the authority was asked at `since`."""

def tier_promote(
    store: Store, key: Key, data: bytes, remaining: int | None, since: int | None, counted: bool = True
) -> tuple[str, Entry | None]:
    """Checks a value of the tier and puts it into memory with the stamp that it carries: `(outcome, entry)`."""

def tier_envelope(
    store: Store, entry: Entry, terms: Terms, compress_from: int = ...
) -> tuple[bytes, int | None] | None:
    """What the tier is given of an entry that was just stored on these terms: its envelope, and `PX`."""
