"""What a key was made of, for a person who wonders why two questions do or do not share one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infercache import _core

__all__ = ["Explanation", "explain", "explain_json"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The parts of a key. `str()` of it is a page for a person.

    Attributes:
        key: the text form of the key.
        namespace: tenant or application.
        model: the model's name.
        version: the model's version.
        operation: what the model is asked to do; may be empty.
        document: the canonical document, as text.
        scope: the scope's 32 bytes as hexadecimal digits; `None` where a secret went into it, which makes it a secret.
        keyed: whether a secret went into the key.
    """

    key: str
    namespace: str
    model: str
    version: str
    operation: str
    document: str
    scope: str | None
    keyed: bool

    def __str__(self) -> str:
        scope = self.scope if self.scope is not None else "(made with a secret: not shown)"
        rows = [
            ("key", self.key),
            ("namespace", repr(self.namespace)),
            ("model", repr(self.model)),
            ("version", repr(self.version)),
            ("operation", repr(self.operation)),
            ("scope", scope),
            ("document", self.document),
        ]
        return "\n".join(f"{name:<10} {value}" for name, value in rows)


def explain(
    value: Any,
    /,
    *,
    model: str,
    version: str,
    namespace: str = "default",
    operation: str = "",
    secret: bytes | None = None,
) -> Explanation:
    """The key of a value and everything that went into it, but for a secret.

    Args:
        value: the question, as for `infercache.key`.
        model: the model's name.
        version: the model's version.
        namespace: tenant or application.
        operation: what the model is asked to do.
        secret: the deployment's 32 bytes, if it has any.

    Raises:
        UnsupportedInput: the value, or something in it, cannot enter a key; the text names the path.
    """
    key = _core.key(value, model=model, version=version, namespace=namespace, operation=operation, secret=secret)
    return _explanation(key, _core.canonical_json(value), model, version, namespace, operation, secret is not None)


def explain_json(
    text: bytes | str,
    /,
    *,
    model: str,
    version: str,
    namespace: str = "default",
    operation: str = "",
    secret: bytes | None = None,
) -> Explanation:
    """As `explain`, of raw JSON text.

    Raises:
        InvalidJSON: the text is not acceptable; the message gives the byte.
    """
    key = _core.key_from_json(
        text, model=model, version=version, namespace=namespace, operation=operation, secret=secret
    )
    document = _core.canonical_json_from_json(text)
    return _explanation(key, document, model, version, namespace, operation, secret is not None)


def _explanation(
    key: _core.Key, document: bytes, model: str, version: str, namespace: str, operation: str, keyed: bool
) -> Explanation:
    return Explanation(
        key=str(key),
        namespace=namespace,
        model=model,
        version=version,
        operation=operation,
        document=document.decode("utf-8"),
        scope=None if keyed else _core._scope_hex(model, version, namespace, operation),
        keyed=keyed,
    )
