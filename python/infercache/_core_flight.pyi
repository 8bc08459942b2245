"""The part of `infercache._core` that `flight.rs` registers, who computes and who waits: a stub only."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, final

from infercache._core import Finds, Key, Schema, Store

#: What `Flights.join` brings.
FOUND: int
LEAD: int
FOLLOW: int
#: What `Waiting.take` brings.
VALUE: int
AGAIN: int
UNSHARED: int
FAILED: int

#: Carries the computation that code is part of.
current_computation: ContextVar[Computation | None]

@final
class Terms:
    """How results are stored and served: times in milliseconds, the schema of the return annotation, copies or not.

    It remembers which widths of text a batch function is known to choose.
    """

    def __new__(cls, life: int | None, stale: int, schema: Schema | None, copy: bool) -> Terms: ...

@final
class Encoded:
    """A result in the form in which it is stored."""

@final
class Entry:
    """An entry as a look-up, a flight or a run gave it."""

    def value(self, terms: Terms) -> Any:
        """The value, handed to whoever runs here."""

@final
class Computation:
    """A run of a model, carried by a context variable."""

    def end(self) -> None:
        """The model has returned: nothing that still carries this computation is part of it. Idempotent."""

    @property
    def seconds(self) -> float:
        """Seconds that the run took."""

@final
class Run:
    """The right, and the duty, to compute one key: a leader's, or that of a caller who could not wait."""

    def land(
        self, encoded: Encoded, terms: Terms, tags: list[str], computation: Computation, items: int, share: bool
    ) -> Entry:
        """Stores a result, hands it to the waiters, and returns it as an entry."""

    def adopt(self, entry: Entry) -> None:
        """The tier had the answer: it is handed to the waiters, who check its stamp for themselves."""

    def uncacheable(self) -> None:
        """The result cannot be stored: every waiter computes for itself."""

    def fail(self, error: BaseException) -> None:
        """The model raised: every waiter gets the error."""

    def abandon(self) -> None:
        """Whoever computes goes away: one of the waiters leads. Without effect where the run has ended otherwise."""

@final
class Waiting:
    """Another one's flight, to be waited for."""

    def begin(self, within: Computation | None, thread: int, event_loop: int) -> bool:
        """Begins the wait; False if it would never end. `thread` and `event_loop` (0: none) are what it blocks."""

    def on_landing(self, call: Callable[[], object]) -> None:
        """Has `call` called once, when the flight lands: on the thread that ends it, or now if it has."""

    def take(self, fresh: bool) -> tuple[int, Any]:
        """How the flight ended: VALUE and an entry, AGAIN, UNSHARED, or FAILED and an error."""

    @property
    def event_loop(self) -> int:
        """The event loop whose task leads; 0: a thread does."""

    def abandon(self) -> None:
        """Nobody carries the flight on: it ends as if its leader had gone away, and all that wait for it wake."""

    def close(self) -> None:
        """Stops waiting. Without effect where the wait has ended."""

@final
class Arrived:
    """When a request came."""

@final
class Flights:
    """The flights of one cache."""

    def __new__(cls, store: Store) -> Flights: ...
    def arrive(self) -> Arrived:
        """A request came: its number, to be kept while it joins again."""

    def join(
        self, key: Key, arrived: Arrived, within: Computation | None, thread: int, event_loop: int, fresh: bool
    ) -> tuple[int, Any]:
        """Leads a key or follows who does: FOUND and an entry, LEAD and a run, FOLLOW and a waiting."""

    def join_all(
        self,
        keys: Sequence[Key],
        arrived: Arrived,
        within: Computation | None,
        thread: int,
        event_loop: int,
        fresh: bool,
    ) -> tuple[list[tuple[Key, Run]], list[tuple[Key, Waiting]], list[tuple[Key, Entry]]]:
        """`join` of many keys: the runs to lead, the waits for who leads, and the entries that have come meanwhile."""

    def alone(self, key: Key, within: Computation | None) -> Run:
        """A run that nobody follows."""

    def take_off(
        self, runs: list[Run], tags: list[list[str]], led: list[Run], within: Computation | None
    ) -> Computation:
        """The model is about to run for these: reads the stamp. `led`: all runs that the caller has not landed yet."""

    def stale(self, key: Key, most: int) -> Entry | None:
        """What may stand in for an error: expired for less than `most` ms, or softly purged."""

    def __len__(self) -> int:
        """Flights that newcomers can reach now."""

def adopt_all(
    led: list[tuple[Key, Run]],
    found: Finds,
    answers: dict[Any, Any],
    sources: dict[Key, str],
) -> tuple[list[int], list[int]]:
    """Hands what was found of led keys to those who wait for it, and writes it down among the answers and the sources.

    What is "stale" is handed to nobody: who waits for it asks for itself. The places of the keys that nothing was found
    of, and of the stale ones.
    """

def encode(result: object, terms: Terms) -> Encoded | str:
    """The stored form of a result, or text that says why it has none."""

def _forget_waits() -> None:
    """The child of a fork waits for nobody."""
