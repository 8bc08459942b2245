"""Which requests get the same answer whenever they are asked: the only ones that are cached whole.

The rules are settings (`policy_…`), so that an operator can read and change them; docs/edge-protocols.md says why each
is what it is by default. The first rule that a request breaks names the reason why it passes, which `Cache-Status`
tells:

    sampled          no temperature of 0, and no seed                                  policy_sampling
    choices          more choices than one (`n`, `best_of`)                            policy_choices
    tools            a tool that the server runs itself, or one of an unknown type     policy_tools
    modalities       an answer that is not text alone                                  policy_modalities
    member-NAME      a member that asks for more than an answer                        policy_refuse
    remote-content   content by address, which the server fetches                      policy_remote_content
    not-understood   a member of these has no value that the protocol gives it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infercache.edge.settings import Settings

__all__ = ["CHAT", "COMPLETIONS", "DECLARED", "NOT_UNDERSTOOD", "RERANK", "Policy"]

#: Kinds of requests.
CHAT, COMPLETIONS, RERANK, DECLARED = "chat", "completions", "rerank", "declared"

NOT_UNDERSTOOD = "not-understood"
_ADDRESS = re.compile(r"\s*[a-zA-Z][a-zA-Z0-9+.-]*://")
#: Types of `tool_choice` that name no tool of that type, but a choice among the given ones.
_CHOICES = frozenset({"allowed_tools"})
#: What llama.cpp takes for "any seed"; negative ones are that to it and to vLLM.
_ANY_SEED = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules.

    Attributes:
        sampling: "greedy-or-seed", "greedy", or "any": sampled answers are kept, too.
        choices: the most.
        tools: types of tools that only describe what the caller may run.
        modalities: what an answer may consist of.
        refuse: members that must not be there, other than as null, false, or empty.
        ignore: members that do not change the answer, and so do not enter the key.
        remote_content: whether content by address is taken to be always the same.
    """

    sampling: str
    choices: int
    tools: frozenset[str]
    modalities: frozenset[str]
    refuse: tuple[str, ...]
    ignore: frozenset[str]
    remote_content: bool

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """Those of the settings."""
        return cls(
            settings.policy_sampling,
            settings.policy_choices,
            frozenset(settings.policy_tools),
            frozenset(settings.policy_modalities),
            settings.policy_refuse,
            frozenset(settings.policy_ignore),
            settings.policy_remote_content,
        )

    def refusal(self, kind: str, asked: Any) -> str:
        """Why a request passes uncached; "": its answer is kept.

        Args:
            kind: one of the kinds above. What is declared is deterministic by declaration.
            asked: its body, parsed.
        """
        if kind == DECLARED:
            return ""
        if not isinstance(asked, dict) or not isinstance(asked.get("model"), str):
            return NOT_UNDERSTOOD
        for member in self.refuse:
            if asked.get(member) not in (None, False, "", [], {}):
                return f"member-{member}" if member.isascii() and member.isidentifier() else "member"
        if kind == RERANK:
            if "query" not in asked or not isinstance(asked.get("documents"), list):
                return NOT_UNDERSTOOD
            return self._of_content([asked["query"], *asked["documents"]])
        return (
            self._of_shape(kind, asked)
            or self._of_sampling(asked)
            or self._of_choices(asked)
            or self._of_tools(asked)
            or self._of_modalities(asked)
            or (self._of_content(asked["messages"]) if kind == CHAT else "")
        )

    @staticmethod
    def _of_shape(kind: str, asked: dict[str, Any]) -> str:
        stream = asked.get("stream")
        content = asked.get("messages") if kind == CHAT else asked.get("prompt")
        shaped = isinstance(content, list) or (kind == COMPLETIONS and isinstance(content, str))
        return "" if shaped and (stream is None or isinstance(stream, bool)) else NOT_UNDERSTOOD

    def _of_sampling(self, asked: dict[str, Any]) -> str:
        temperature, seed = asked.get("temperature"), asked.get("seed")
        for value, kinds in ((temperature, (int, float)), (seed, int)):
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                return NOT_UNDERSTOOD
        if self.sampling == "any" or temperature == 0:
            return ""
        seeded = seed is not None and seed >= 0 and seed != _ANY_SEED
        return "" if seeded and self.sampling == "greedy-or-seed" else "sampled"

    def _of_choices(self, asked: dict[str, Any]) -> str:
        for name in ("n", "best_of"):
            value = asked.get(name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                return NOT_UNDERSTOOD
            if value > self.choices:
                return "choices"
        return ""

    def _of_tools(self, asked: dict[str, Any]) -> str:
        tools, choice = asked.get("tools"), asked.get("tool_choice")
        if tools is not None and not isinstance(tools, list):
            return NOT_UNDERSTOOD
        kinds = [tool.get("type") if isinstance(tool, dict) else None for tool in tools or ()]
        if isinstance(choice, dict) and choice.get("type") not in _CHOICES:
            kinds.append(choice.get("type"))
        return "" if all(isinstance(kind, str) and kind in self.tools for kind in kinds) else "tools"

    def _of_modalities(self, asked: dict[str, Any]) -> str:
        modalities = asked.get("modalities")
        if modalities is None:
            return ""
        if not isinstance(modalities, list) or not all(isinstance(each, str) for each in modalities):
            return NOT_UNDERSTOOD
        return "" if self.modalities.issuperset(modalities) else "modalities"

    def _of_content(self, content: list[Any]) -> str:
        return "" if self.remote_content or not any(map(_is_remote, content)) else "remote-content"


def _is_remote(part: Any) -> bool:
    """Whether a message, a part of one or a document has content by address: {"image_url": {"url": "https://…"}}."""
    if isinstance(part, list):
        return any(map(_is_remote, part))
    if not isinstance(part, dict):
        return False
    for name, value in part.items():
        if isinstance(value, str):
            if (name.endswith("url") or name in ("image", "audio", "video", "file")) and _ADDRESS.match(value):
                return True
        elif _is_remote(value):
            return True
    return False
