"""LangChain's generations as plain values, and the way back: of classes, only those named here are built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, ChatMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from pydantic import BaseModel

__all__ = ["NotExact", "packed", "unpacked"]


def _named(*classes: type[Any]) -> dict[str, type[Any]]:
    return {each.__name__: each for each in classes}


_GENERATIONS = _named(Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk)
_MESSAGES = _named(AIMessage, AIMessageChunk, ChatMessage, ChatMessageChunk)


class NotExact(ValueError):
    """What was to be stored would not come back the same; the text says what."""


def packed(answer: Sequence[Generation]) -> list[Any]:
    """An answer as plain values.

    Raises:
        NotExact: it would not come back the same.
    """
    kept = [_with_plain_parsed(generation) for generation in answer]
    plain = [_plain(generation) for generation in kept]
    if unpacked(plain) != kept:
        raise NotExact("LangChain does not build the same objects from their fields again")
    return plain


def unpacked(plain: Any) -> list[Generation] | None:
    """The answer that plain values hold; None if they are none, such as those of another version of LangChain."""
    try:
        return [_generation(*parts) for parts in plain]
    except (TypeError, ValueError, KeyError):  # Pydantic's ValidationError is a ValueError
        return None


def _plain(generation: Generation) -> list[Any]:
    name = _name(generation, _GENERATIONS)
    fields = _fields(generation)
    message = fields.pop("message", None)
    if message is None:
        return [name, fields]
    fields.pop("text", None)  # a class of its own, which is made of the message again
    return [name, fields, _name(message, _MESSAGES), _fields(message)]


def _generation(name: str, fields: dict[str, Any], kind: str | None = None, said: Any = None) -> Generation:
    if kind is not None:
        fields = {**fields, "message": _MESSAGES[kind](**said)}
    made: Generation = _GENERATIONS[name](**fields)
    return made


def _name(instance: object, known: dict[str, type[Any]]) -> str:
    """The name of an instance's class, which must be one of these, and not one derived from it."""
    kind = type(instance)
    if known.get(kind.__name__) is not kind:
        names: Iterable[str] = known
        raise NotExact(f"it holds a {kind.__module__}.{kind.__qualname__}; these can be stored: {', '.join(names)}")
    return kind.__name__


def _fields(model: BaseModel) -> dict[str, Any]:
    """What a model holds, the fields that no class declares included."""
    return {**model.__dict__, **(model.__pydantic_extra__ or {})}


def _with_plain_parsed(generation: Generation) -> Generation:
    """A generation whose structured answer is a dict, as `langchain_core.load.dumps` makes it, and parsers take it."""
    message = getattr(generation, "message", None)
    if not isinstance(message, AIMessage):
        return generation
    parsed = message.additional_kwargs.get("parsed")
    if not isinstance(parsed, BaseModel):
        return generation
    said = message.model_copy(
        update={"additional_kwargs": {**message.additional_kwargs, "parsed": parsed.model_dump()}}
    )
    return generation.model_copy(update={"message": said})
