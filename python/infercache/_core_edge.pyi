"""The part of `infercache._core` that `edge.rs` registers: a stub only."""

from collections.abc import Sequence
from typing import final

from infercache._core import Entry, Key, Store

def json_depth(text: bytes) -> int:
    """How deep the brackets of JSON text nest, whether the text is JSON or not."""

# ---- edge/embeddings.rs: OpenAI's embeddings, a hit per item

@final
class Known:
    """What memory has of a request's items."""

    @property
    def body(self) -> bytes | None:
        """The answer's text, if every item was found."""

    @property
    def usage(self) -> str:
        """Where the answer's token counts come from: "exact", "apportioned" or "unknown"."""

    @property
    def entries(self) -> list[Entry | None] | None:
        """What was found of each item; None in place of the list if every item was."""

    @property
    def hits(self) -> int:
        """How many items were found."""

    @property
    def stale(self) -> list[int]:
        """Places of items that are stale."""

    @property
    def age(self) -> float:
        """Seconds since the oldest item found was made."""

    @property
    def left(self) -> float | None:
        """Seconds that all items found stay fresh; None: until evicted."""

    @property
    def saved(self) -> float:
        """Seconds of computing that the items found took."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of what is stored of them."""

@final
class EmbeddingsQuery:
    """A request for embeddings."""

    @staticmethod
    def parse(body: bytes) -> EmbeddingsQuery | None:
        """Reads a request's body. None: it is JSON, but no request whose items have answers of their own.

        Raises:
            InvalidJSON: it is none.
        """

    @property
    def model(self) -> str:
        """The model that the request names."""

    @property
    def base64(self) -> bool:
        """Whether the answer is wanted in base64."""

    def __len__(self) -> int:
        """How many items it asks for."""

    def keys(self, namespace: str, version: str, operation: str, secret: bytes | None = None) -> list[Key]:
        """The keys of the items, in their order, in the scope of these fields."""

    def look(
        self, store: Store, keys: Sequence[Key], stale: float | None = None, max_age: float | None = None
    ) -> Known:
        """What memory has of these keys' items: fresh, stale for at most `stale` seconds, no older than `max_age`."""

    def item(self, place: int) -> bytes:
        """An item as canonical JSON: a text, or a list of tokens.

        Raises:
            IndexError: there are fewer.
        """

    def ask(self, places: Sequence[int]) -> bytes:
        """The request for the items at these places alone, for the model server.

        Raises:
            IndexError: there are fewer.
        """

    def records(
        self, answer: bytes, places: Sequence[int], age: int = 0, counts: Sequence[int] | None = None
    ) -> tuple[list[bytes], bool] | None:
        """The records of the model server's answer to the items at these places, in their order.

        And whether it counted as many tokens as `counts` says that these items have: only then are they kept as exact,
        and else apportioned. `age`: how many seconds old the answer came. None: it is no complete answer to the items.

        Raises:
            IndexError: there are fewer.
        """

    @staticmethod
    def age(record: bytes) -> int | None:
        """Seconds that the answer of a record was old when it came; None: these bytes are none."""

    def render(self, entries: Sequence[Entry]) -> tuple[bytes, str] | None:
        """The answer's text to these entries, one for each item, and where its token counts come from.

        None: one of them holds no record.
        """

# ---- edge/infer.rs: Open Inference Protocol v2

@final
class InferQuery:
    """A request for inference."""

    @staticmethod
    def parse(body: bytes, head: int | None = None) -> InferQuery | None:
        """Reads a request's body, of which the first `head` bytes are a JSON object (None: all).

        None: it is JSON, but no request whose answer depends on it alone.

        Raises:
            InvalidJSON: it is none.
        """

    def key(self, namespace: str, model: str, version: str, operation: str, secret: bytes | None = None) -> Key:
        """The key in the scope of these fields."""

    @staticmethod
    def record(body: bytes, head: int | None = None, age: int = 0) -> bytes | None:
        """The record of the model server's answer; `age`: how many seconds old it came. None: it is no complete one."""

    def render(self, record: bytes) -> tuple[bytes, int | None] | None:
        """The answer that this request wants, made of a record, and the length of its JSON object if bytes follow it.

        None: an output has no form of the kind that is asked for, or these bytes are no record.
        """

    @staticmethod
    def age(record: bytes) -> int | None:
        """Seconds that the answer of a record was old when it came."""
