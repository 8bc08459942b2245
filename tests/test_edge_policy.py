"""Which requests are cached whole: each rule, what breaks it, and how an operator changes it."""

from __future__ import annotations

from typing import Any

import pytest

from infercache.edge.policy import CHAT, COMPLETIONS, DECLARED, RERANK, Policy
from infercache.edge.settings import Settings
from infercache.errors import InvalidArgument

MESSAGES = [{"role": "user", "content": "hello"}]
GREEDY = {"model": "m", "messages": MESSAGES, "temperature": 0}
PROMPT = {"model": "m", "prompt": "hello", "temperature": 0}
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def refusal(asked: Any, kind: str = CHAT, **options: Any) -> str:
    return Policy.of(Settings(**options)).refusal(kind, asked)


@pytest.mark.parametrize("temperature", [0, 0.0, -0.0])
def test_a_temperature_of_zero_is_deterministic(temperature: float) -> None:
    assert refusal({**GREEDY, "temperature": temperature}) == ""


@pytest.mark.parametrize("sampling", [{}, {"temperature": None}, {"temperature": 0.01}, {"top_p": 0.1}, {"seed": None}])
def test_what_is_sampled_is_not(sampling: dict[str, Any]) -> None:
    assert refusal({"model": "m", "messages": MESSAGES, **sampling}) == "sampled"
    assert refusal({"model": "m", "prompt": "x", **sampling}, COMPLETIONS) == "sampled"


@pytest.mark.parametrize("seed", [0, 1, 1 << 40])
def test_a_seed_is_deterministic_whatever_the_temperature(seed: int) -> None:
    assert refusal({"model": "m", "messages": MESSAGES, "temperature": 1.5, "seed": seed}) == ""


@pytest.mark.parametrize("seed", [-1, -7, 0xFFFF_FFFF])
def test_a_seed_by_which_servers_mean_any_seed_is_none(seed: int) -> None:
    assert refusal({"model": "m", "messages": MESSAGES, "seed": seed}) == "sampled"


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": "0"}, {"temperature": False}, {"seed": "1"}, {"seed": True}, {"seed": 1.5}, {"temperature": [0]}],
)
def test_sampling_that_the_protocol_does_not_know_is_not_understood(sampling: dict[str, Any]) -> None:
    assert refusal({"model": "m", "messages": MESSAGES, **sampling}) == "not-understood"


def test_an_operator_says_what_sampling_is_kept() -> None:
    seeded = {"model": "m", "messages": MESSAGES, "seed": 1}
    sampled = {"model": "m", "messages": MESSAGES, "temperature": 0.7}
    assert refusal(seeded, policy_sampling="greedy") == "sampled"
    assert refusal(GREEDY, policy_sampling="greedy") == ""
    assert refusal(sampled, policy_sampling="any") == ""
    with pytest.raises(InvalidArgument, match="policy_sampling"):
        Settings(policy_sampling="all")


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_several_choices_are_not_kept(name: str) -> None:
    assert refusal({**PROMPT, name: 1}, COMPLETIONS) == ""
    assert refusal({**PROMPT, name: None}, COMPLETIONS) == ""
    assert refusal({**PROMPT, name: 2}, COMPLETIONS) == "choices"
    assert refusal({**PROMPT, name: 2}, COMPLETIONS, policy_choices=2) == ""
    for wrong in ("1", 0, True, 1.0, [1]):
        assert refusal({**PROMPT, name: wrong}, COMPLETIONS) == "not-understood"


@pytest.mark.parametrize("tool", [FUNCTION, {"type": "custom", "custom": {"name": "grep"}}])
def test_tools_that_the_caller_runs_only_describe(tool: Any) -> None:
    assert refusal({**GREEDY, "tools": [tool], "tool_choice": "auto", "parallel_tool_calls": True}) == ""
    assert refusal({**GREEDY, "tools": [tool], "tool_choice": {"type": tool["type"]}}) == ""
    assert refusal({**GREEDY, "tools": [tool], "tool_choice": {"type": "allowed_tools"}}) == ""
    assert refusal({**GREEDY, "functions": [{"name": "weather"}], "function_call": "auto"}) == ""


@pytest.mark.parametrize("kind", ["web_search", "web_search_preview", "code_interpreter", "mcp", "file_search", "new"])
def test_tools_that_the_server_runs_are_not_kept(kind: str) -> None:
    assert refusal({**GREEDY, "tools": [FUNCTION, {"type": kind}]}) == "tools"
    assert refusal({**GREEDY, "tool_choice": {"type": kind}}) == "tools"
    assert refusal({**GREEDY, "tools": [{"type": kind}]}, policy_tools=["function", kind]) == ""


@pytest.mark.parametrize("tools", [[{}], ["function"], [None], [{"type": 1}]])
def test_tools_of_no_known_type_are_not_kept(tools: Any) -> None:
    assert refusal({**GREEDY, "tools": tools}) == "tools"
    assert refusal({**GREEDY, "tools": {"type": "function"}}) == "not-understood"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("store", True),
        ("background", True),
        ("conversation", "conv_1"),
        ("previous_response_id", "resp_1"),
        ("web_search_options", {"search_context_size": "low"}),
        ("mcp_servers", [{"url": "x"}]),
        ("audio", {"voice": "alloy"}),
    ],
)
def test_members_that_ask_for_more_than_an_answer_are_not_kept(member: str, value: Any) -> None:
    assert refusal({**GREEDY, member: value}) == f"member-{member}"
    assert refusal({**GREEDY, member: value}, policy_refuse=[]) == ""
    for nothing in (None, False, "", [], {}):
        assert refusal({**GREEDY, member: nothing}) == ""


def test_an_operator_names_members_of_its_own() -> None:
    assert refusal({**GREEDY, "agent": "x"}) == ""
    assert refusal({**GREEDY, "agent": "x"}, policy_refuse=["agent"]) == "member-agent"
    # What `Cache-Status` tells has to be a word there.
    assert refusal({**GREEDY, 'a"b': "x"}, policy_refuse=['a"b']) == "member"


def test_answers_that_are_not_text_are_not_kept() -> None:
    assert refusal({**GREEDY, "modalities": ["text"]}) == ""
    assert refusal({**GREEDY, "modalities": ["text", "audio"]}) == "modalities"
    assert refusal({**GREEDY, "modalities": ["text", "audio"]}, policy_modalities=["text", "audio"]) == ""
    assert refusal({**GREEDY, "modalities": "text"}) == "not-understood"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": "http://example.org/a.png"},
        {"type": "video_url", "video_url": {"url": "s3://bucket/a"}},
        {"type": "input_image", "image_url": "file:///etc/passwd"},
        {"type": "nested", "more": [{"file_url": " HTTPS://example.org"}]},
    ],
)
def test_content_by_address_may_change(part: Any) -> None:
    asked = {**GREEDY, "messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]}
    assert refusal(asked) == "remote-content"
    assert refusal(asked, policy_remote_content=True) == ""


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "see https://example.org/a.png"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ],
)
def test_content_that_is_there_does_not(part: Any) -> None:
    assert refusal({**GREEDY, "messages": [{"role": "user", "content": [part]}]}) == ""


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (CHAT, {"model": "m", "temperature": 0}),
        (CHAT, {"model": "m", "messages": "hello", "temperature": 0}),
        (CHAT, {"messages": MESSAGES, "temperature": 0}),
        (CHAT, {**GREEDY, "model": 1}),
        (CHAT, {**GREEDY, "stream": 1}),
        (CHAT, {**GREEDY, "stream": "true"}),
        (CHAT, [GREEDY]),
        (CHAT, "hello"),
        (COMPLETIONS, {"model": "m", "temperature": 0}),
        (COMPLETIONS, {**PROMPT, "prompt": 1}),
        (RERANK, {"model": "m", "query": "x"}),
        (RERANK, {"model": "m", "documents": ["x"]}),
        (RERANK, {"model": "m", "query": "x", "documents": "y"}),
    ],
)
def test_what_is_no_such_request_is_not_understood(kind: str, asked: Any) -> None:
    assert refusal(asked, kind) == "not-understood"


def test_members_that_nobody_knows_bar_nothing() -> None:
    # They enter the key instead.
    assert refusal({**GREEDY, "logprobs": True, "top_logprobs": 3, "guided_json": {}, "new": [1]}) == ""


def test_reranking_samples_nothing() -> None:
    asked = {"model": "m", "query": "x", "documents": ["a", {"text": "b"}], "top_n": 1}
    assert refusal(asked, RERANK) == ""
    assert refusal({**asked, "documents": [{"image": "https://example.org/a.png"}]}, RERANK) == "remote-content"


@pytest.mark.parametrize("asked", [GREEDY, {"user": "u1"}, [1, 2], "x", 1, None, {"temperature": 1}])
def test_what_is_declared_is_deterministic_by_declaration(asked: Any) -> None:
    assert refusal(asked, DECLARED) == ""
