"""`infercache invalidate`: purges from outside, in every process of a deployment, and says what became of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import servers
from infercache import Cache, Token
from proxy import Cut, Delay, Proxy
from servers import free_port, until

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network

STALENESS = 0.3
SCOPE = {"model": "m", "version": "1"}


def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit status, output and errors of the command."""
    command = [sys.executable, "-m", "infercache", "invalidate", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **variables})
    return done.returncode, done.stdout, done.stderr


def make(server: Server, **options: Any) -> Cache:
    return Cache("8MB", l2=server.url, **{"max_staleness": STALENESS, "timeout": "1s", **options})


def filled(cache: Cache) -> Any:
    """The key of an entry that memory and server have."""
    key = cache.key("q", operation="test", **SCOPE)
    assert cache.set(key, "answer", tags=["t"])
    assert cache.get(key) == "answer"
    return key


@pytest.mark.parametrize("target", ["tag", "key", "model", "version", "all"])
def test_a_purge_by_the_command_reaches_every_process_and_prints_its_token(server: Server, target: str) -> None:
    with make(server) as cache:
        key = filled(cache)
        given = {
            "tag": ("--tag", "other", "t"),
            "key": ("--key", str(key)),
            "model": ("--model", "m"),
            "version": ("--model", "m", "--version", "1"),
            "all": ("--all",),
        }[target]
        status, printed, told = run("--l2", server.url, *given)
        assert (status, told) == (0, "")
        token = Token.parse(printed.strip())
        assert cache.get(key, min_token=token) is None, "a reader who is given the token knows at once"
        assert cache.token() == token


def test_only_what_is_named_is_purged(server: Server) -> None:
    with make(server) as cache, make(server, namespace="n", l2_prefix="p") as other:
        key, elsewhere = filled(cache), filled(other)
        for given in (("--tag", "u"), ("--model", "m", "--version", "2"), ("--tag", "t", "--namespace", "n")):
            assert run("--l2", server.url, *given)[0] == 0
        assert run("--l2", server.url, "--all", "--l2-prefix", "q")[0] == 0
        assert run("--l2", server.url, "--tag", "t", "--namespace", "n", "--l2-prefix", "p")[0] == 0
        time.sleep(STALENESS)
        assert cache.get(key) == "answer"
        assert other.get(elsewhere) is None


def test_soft_marks_stale(server: Server) -> None:
    with make(server) as cache:
        key = filled(cache)
        assert run("--l2", server.url, "--tag", "t", "--soft")[0] == 0
        time.sleep(STALENESS)
        assert cache.lookup(key).source == "stale"


def test_with_the_deployments_secret_its_tags_are_found(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("ab" * 32)
    with make(server, secret=b"\xab" * 32) as cache:
        key = filled(cache)
        assert run("--l2", server.url, "--tag", "t")[0] == 0
        time.sleep(STALENESS)
        assert cache.get(key) == "answer", "whoever has no secret cannot name its tags"
        status, _, told = run("--l2", server.url, "--tag", "t", "--secret-file", str(path))
        assert (status, told) == (0, "")
        time.sleep(STALENESS)
        assert cache.get(key) is None


def test_the_url_may_come_from_the_environment(server: Server) -> None:
    with make(server) as cache:
        key = filled(cache)
        status, printed, _ = run("--tag", "t", INFERCACHE_L2=server.url)
        assert status == 0
        assert cache.get(key, min_token=Token.parse(printed.strip())) is None


def test_a_thousand_tags_and_more_are_purged(server: Server) -> None:
    with make(server) as cache:
        key = filled(cache)
        status, printed, _ = run("--l2", server.url, "--tag", *(f"tag:{number}" for number in range(2_500)), "t")
        assert status == 0
        assert Token.parse(printed.strip()).lsn == 3
        assert cache.get(key, min_token=Token.parse(printed.strip())) is None


def test_a_server_that_is_not_there_purges_nothing_and_exits_with_1() -> None:
    status, printed, told = run("--l2", f"redis://127.0.0.1:{free_port()}", "--tag", "t", "--timeout", "500ms")
    assert (status, printed) == (1, "")
    assert "not purged: the authority was not told" in told
    assert "Traceback" not in told


def test_an_answer_that_never_comes_leaves_it_unknown_and_exits_with_3(server: Server) -> None:
    with Proxy(server.address) as proxy:
        proxy.set(replies=Cut(after=0, when="EVALSHA"))
        status, printed, told = run("--l2", f"redis://127.0.0.1:{proxy.port}", "--tag", "t", "--timeout", "1s")
    assert (status, printed) == (3, "")
    assert "it is unknown whether it was purged" in told
    assert "a purge may be repeated" in told


def test_a_purge_that_fails_half_way_tells_how_far_it_came(server: Server) -> None:
    with Proxy(server.address) as proxy, ThreadPoolExecutor(1) as pool:
        proxy.set(replies=Delay(0.5))  # time to cut the line while the answer about the first thousand is on its way
        tags = [f"tag:{number}" for number in range(3_000)]
        running = pool.submit(run, "--l2", f"redis://127.0.0.1:{proxy.port}", "--tag", *tags, "--timeout", "4s")
        until(lambda: server.admin.zcard("ic:fences") >= 1_000, "the first thousand are purged")
        proxy.set(replies=Delay(0.5), requests=Cut())
        status, printed, told = running.result()
    assert status in (1, 3), "whether the second thousand got through is not for the client to know in every case"
    assert printed == ""
    assert "the first 1000 tags were purged, and those after them were not tried" in told
    assert server.admin.zcard("ic:fences") == 1_002


def test_fewer_replicas_than_asked_for_exit_with_4_and_the_purge_is_done(binary: servers.Binary) -> None:
    with servers.Server(binary) as primary, make(primary) as cache:
        key = filled(cache)
        status, printed, told = run("--l2", primary.url, "--tag", "t", "--durable", "1", "--timeout", "500ms")
        assert status == 4
        assert "the purge is done, but 0 replicas have it" in told
        assert cache.get(key, min_token=Token.parse(printed.strip())) is None
        primary.replica()
        assert run("--l2", primary.url, "--tag", "t", "--durable", "1")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tag", "t"), "which deployment? Give --l2 URL"),
        (("--l2", "redis://127.0.0.1:1"), "what is to be purged?"),
        (("--l2", "redis://127.0.0.1:1", "--version", "1"), "of which model?"),
        (("--l2", "redis://127.0.0.1:1", "--key", "ic1:00"), "ic1:00"),
        (("--l2", "http://127.0.0.1:1", "--tag", "t"), "--l2"),
        (("--l2", "redis://127.0.0.1:1", "--tag", "t", "--timeout", "soon"), "timeout"),
        (("--l2", "redis://127.0.0.1:1", "--tag", "t", "--durable", "-1"), "give a number of replicas"),
        (("--l2", "redis://127.0.0.1:1", "--tag", "t", "--l2-prefix", "A"), "l2_prefix"),
        (("--l2", "redis://127.0.0.1:1", "--tag", "t", "--secret-file", __file__), "a secret is 32 bytes"),
    ],
)
def test_bad_usage_is_told_and_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    status, printed, told = run(*arguments, INFERCACHE_L2="")
    assert (status, printed) == (2, "")
    assert said in told
    assert "Traceback" not in told
