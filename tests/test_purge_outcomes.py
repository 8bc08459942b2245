"""`PurgeFailed.outcome` says what is known of a purge that raised.

Refused by the server, it is not done; done in part, or sent twice, it is unknown.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis

import servers
from infercache import Cache, PurgeFailed, TierError
from proxy import Hold, Proxy
from servers import Server, until
from together import Started

if TYPE_CHECKING:
    from servers import Binary

pytestmark = pytest.mark.network


def make(url: str) -> Cache:
    return Cache("1MB", l2=url, timeout="2s", max_staleness="1h")


@contextlib.contextmanager
def as_a_replica(server: Server) -> Iterator[str]:
    with Server(server.binary) as primary:
        server.follow(primary)
        yield server.url


@contextlib.contextmanager
def without_the_right_to_run_scripts(server: Server) -> Iterator[str]:
    server.user("app", "secret", "~*", "&*", "+@all", "-evalsha", "-eval")
    yield f"redis://app:secret@127.0.0.1:{server.port}/0"


@contextlib.contextmanager
def without_the_right_to_the_key(server: Server) -> Iterator[str]:
    server.user("app", "secret", "~other:*", "&*", "+@all")
    yield f"redis://app:secret@127.0.0.1:{server.port}/0"


@contextlib.contextmanager
def without_a_primary(server: Server) -> Iterator[str]:
    replica = server.replica(replica_serve_stale_data="no")
    server.kill()
    until(lambda: replica.info("replication")["master_link_status"] == "down", "the replica has noticed")
    yield replica.url


@contextlib.contextmanager
def in_a_cluster_without_slots(server: Server) -> Iterator[str]:
    with Server(server.binary, cluster_enabled="yes", cluster_port=servers.free_port()) as alone:
        yield alone.url


@contextlib.contextmanager
def unable_to_save(server: Server) -> Iterator[str]:
    server.config(save="3600 1", stop_writes_on_bgsave_error="yes")
    (server.folder / "dump.rdb").mkdir()  # so that no snapshot can be put there
    server.admin.set("something", "to save")
    server.admin.bgsave()
    until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err", "saving has failed")
    yield server.url


@contextlib.contextmanager
def busy_with_another_script(server: Server) -> Iterator[str]:
    server.config(lua_time_limit=1)
    with server.client() as other, server.client() as watching:

        def loop() -> None:
            with contextlib.suppress(redis.RedisError):
                other.eval("while true do end", 0)

        def is_busy() -> bool:
            with contextlib.suppress(redis.exceptions.ResponseError):
                watching.ping()
                return False
            return True

        looping = threading.Thread(target=loop)
        looping.start()
        until(is_busy, "the script is over its time")
        yield server.url
        watching.script_kill()
        looping.join()


@contextlib.contextmanager
def loading(server: Server) -> Iterator[str]:
    for number in range(200):
        server.admin.set(f"key {number}", "x" * 1_000)
    server.config(key_load_delay=20_000, loading_process_events_interval_bytes=1_024)
    with server.client() as other:
        reloading = threading.Thread(target=other.execute_command, args=("DEBUG", "RELOAD"))
        reloading.start()
        until(lambda: server.info("persistence")["loading"], "it loads")
        yield server.url
        server.config(key_load_delay=0)
        reloading.join()


REFUSING: dict[str, Callable[[Server], Any]] = {
    "READONLY": as_a_replica,
    "NOPERM": without_the_right_to_run_scripts,
    "NOPERM of the key": without_the_right_to_the_key,
    "READONLY, and without its primary": without_a_primary,
    "CLUSTERDOWN": in_a_cluster_without_slots,
    "MISCONF": unable_to_save,
    "BUSY": busy_with_another_script,
    "LOADING": loading,
}


@pytest.mark.parametrize("binary", ["valkey-8.1", "redis-7.0"], indirect=True)
@pytest.mark.parametrize("code", REFUSING)
def test_a_purge_that_the_server_refuses_is_not_done(server: Server, code: str) -> None:
    with REFUSING[code](server) as url, make(url) as cache:
        key = cache.key("q", model="m", version="1")
        for purge in (lambda: cache.invalidate(tags=["t"]), lambda: cache.delete(key)):
            with pytest.raises(PurgeFailed, match="the authority's server refused it") as caught:
                purge()
            assert caught.value.outcome == "not done"
            assert isinstance(caught.value.__cause__, TierError)
            assert caught.value.__cause__.code == re.split("[ ,]", code)[0]


def test_a_login_that_is_refused_tells_nothing(server: Server) -> None:
    server.config(requirepass="another")
    with make(server.url) as cache, pytest.raises(PurgeFailed, match="the authority was not told") as caught:
        cache.invalidate(tags=["t"])
    assert caught.value.outcome == "not done"


def test_a_purge_whose_script_ends_half_way_is_of_unknown_outcome(server: Server) -> None:
    server.user("app", "secret", "~*", "&*", "+@all", "-zcard")
    with make(f"redis://app:secret@127.0.0.1:{server.port}/0") as cache:
        with pytest.raises(PurgeFailed) as caught:
            cache.invalidate(tags=["t"])
        assert caught.value.outcome == "unknown"
        assert "ACL failure in script" in str(caught.value)
    assert server.admin.zcard("ic:fences") == 3, "its fence was set before"


def test_a_purge_that_may_have_been_done_before_it_was_refused_is_of_unknown_outcome(
    server: Server, binary: Binary
) -> None:
    with Proxy(server.address) as proxy, Server(binary) as primary, make(proxy.url) as cache:
        assert cache.set(cache.key("q", model="m", version="1"), "answer")
        before = proxy.commands["EVALSHA"]
        proxy.set(replies=Hold(when="EVALSHA"))
        purging = Started(lambda: cache.invalidate(tags=["t"]))
        proxy.wait_for("EVALSHA", before + 1)
        until(lambda: server.admin.zcard("ic:fences") == 3, "it is done, and its answer held")
        server.follow(primary)
        proxy.cut()
        proxy.wait_for("EVALSHA", before + 2)
        proxy.set()
        purging.join()
        (error,) = purging.errors
        assert isinstance(error, PurgeFailed)
        assert "READONLY" in str(error), "it was sent again"
        assert error.outcome == "unknown"
