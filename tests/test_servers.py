"""The servers of the tests do what the tests will rely on, each kind that is here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

import servers
from certificates import Certificates
from proxy import Cut, Proxy
from servers import Binary, Server, until
from together import PATIENCE

pytestmark = pytest.mark.network
every_binary = pytest.mark.parametrize("binary", servers.NAMES, indirect=True)


@every_binary
def test_a_server_starts_empty_and_is_the_program_that_was_asked_for(binary: Binary, server: Server) -> None:
    info = server.info("server")
    assert info.get("valkey_version", info["redis_version"]) == binary.version
    for client in (server.client(), redis.from_url(server.url), redis.from_url(server.unix_url)):
        with client:
            assert client.dbsize() == 0
            client.set("key", "value")
            assert client.get("key") == b"value"
            client.flushall()
    assert server.info("persistence")["aof_enabled"] == 0
    assert server.admin.config_get("save") == {"save": ""}


@every_binary
def test_resp3_is_spoken(server: Server) -> None:
    with server.client(protocol=3) as client:
        client.hset("h", mapping={"a": "b"})
        assert client.execute_command("HGETALL", "h") == {b"a": b"b"}


@every_binary
def test_a_killed_server_is_gone_and_comes_back_empty_on_the_same_port(server: Server) -> None:
    with server.client() as client:
        client.set("key", "value")
        run = server.info("server")["run_id"]
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        server.restart(empty=True)
        assert client.get("key") is None
        assert server.info("server")["run_id"] != run


@every_binary
def test_what_was_acknowledged_survives_a_kill_of_a_persistent_server(binary: Binary) -> None:
    with Server(binary, persistent=True) as server, server.client() as client:
        for number in range(100):
            client.set(f"key {number}", number)
        server.restart()
        assert client.dbsize() == 100
        assert client.get("key 99") == b"99"
        server.restart(empty=True)
        assert client.dbsize() == 0


def test_a_restart_that_keeps_nothing_has_to_say_so(server: Server) -> None:
    with pytest.raises(AssertionError, match="restart\\(empty=True\\)"):
        server.restart()


@every_binary
def test_a_paused_server_accepts_and_answers_nothing_until_it_is_resumed(server: Server) -> None:
    with server.client(socket_timeout=0.1) as client, server.client(socket_timeout=0.1) as other:
        client.set("key", "value")
        with server.paused():
            for each in (client, other):
                with pytest.raises(redis.TimeoutError):
                    each.get("key")
        assert client.get("key") == other.get("key") == b"value"


def test_a_paused_server_can_be_killed(server: Server) -> None:
    server.pause()
    server.kill()
    assert not server.is_alive


def test_flushes_take_keys_and_scripts_apart(server: Server) -> None:
    digest = server.admin.script_load("return 1")
    server.admin.set("key", "value")
    server.flush()
    assert server.admin.dbsize() == 0
    assert server.admin.evalsha(digest, 0) == 1
    server.flush_scripts()
    with pytest.raises(redis.exceptions.NoScriptError):
        server.admin.evalsha(digest, 0)


def test_calls_of_a_command_are_counted(server: Server) -> None:
    before = server.calls("get")
    for _ in range(3):
        server.admin.get("key")
    assert server.calls("get") == before + 3


@every_binary
def test_memory_can_be_bounded_with_and_without_eviction(server: Server) -> None:
    server.config(maxmemory=server.info("memory")["used_memory"] + 1_000_000, maxmemory_policy="noeviction")
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        server.admin.mset({f"key {number}": b"x" * 50_000 for number in range(100)})
    assert server.admin.dbsize() == 0
    server.config(maxmemory_policy="allkeys-lru")
    for number in range(100):
        server.admin.set(f"key {number}", b"x" * 50_000)
    assert 0 < server.admin.dbsize() < 100
    assert server.info("stats")["evicted_keys"] > 0


@every_binary
def test_a_user_may_do_what_its_rules_say_and_the_rig_everything(server: Server) -> None:
    server.user("app", "secret", "~ic:*", "+get", "+set")
    server.admin.execute_command("ACL", "SETUSER", "default", "off")
    with pytest.raises(redis.AuthenticationError), server.client() as client:
        client.get("ic:key")
    with pytest.raises(redis.AuthenticationError), server.client(username="app", password="wrong") as client:
        client.get("ic:key")
    with server.client(username="app", password="secret") as client:
        client.set("ic:key", "value")
        assert client.get("ic:key") == b"value"
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("other")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.flushall()
    assert server.admin.dbsize() == 1


@every_binary
def test_a_replica_follows_and_is_promoted_when_its_primary_was_killed(server: Server) -> None:
    server.admin.set("key", "value")
    replica = server.replica()
    assert replica.admin.get("key") == b"value"
    with pytest.raises(redis.exceptions.ReadOnlyError):
        replica.admin.set("key", "other")
    lineage = server.info("replication")["master_replid"]
    assert replica.info("replication")["master_replid"] == lineage
    server.kill()
    replica.promote()
    replica.admin.set("key", "other")
    assert replica.info("replication")["master_replid"] != lineage


def test_a_deposed_primary_still_answers_until_it_follows(server: Server) -> None:
    replica = server.replica()
    replica.promote()
    replica.admin.set("key", "new")
    server.admin.set("key", "old")
    assert server.info("replication")["role"] == "master"
    server.follow(replica)
    assert server.admin.get("key") == b"new"


def test_an_address_moves_to_the_promoted_replica(server: Server) -> None:
    replica = server.replica()
    with Proxy(server.address) as proxy, redis.Redis(port=proxy.port) as client:
        assert client.info("server")["tcp_port"] == server.port
        server.kill()
        replica.promote()
        proxy.retarget(replica.address)
        assert client.info("server")["tcp_port"] == replica.port


def test_a_replica_works_where_the_default_user_is_switched_off(server: Server) -> None:
    server.admin.execute_command("ACL", "SETUSER", "default", "off")
    server.admin.set("key", "value")
    assert server.replica().admin.get("key") == b"value"


@every_binary
def test_tls_wants_the_authority_and_where_asked_the_certificate_of_the_client(binary: Binary, tmp_path: Path) -> None:
    ours, theirs = Certificates(tmp_path / "ours"), Certificates(tmp_path / "theirs")
    with Server(binary, tls=ours, client_auth="yes") as server:
        with redis.from_url(server.tls_url, **ours.client_options(with_certificate=True)) as client:
            assert client.ping()
        for options in (ours.client_options(), theirs.client_options(with_certificate=True)):
            with pytest.raises(redis.ConnectionError), redis.from_url(server.tls_url, **options) as client:
                client.ping()
    with Server(binary, tls=ours) as server, redis.from_url(server.tls_url, **ours.client_options()) as client:
        assert client.ping()


def test_tls_ends_at_the_proxy_for_servers_built_without(server: Server, tmp_path: Path) -> None:
    ours, theirs = Certificates(tmp_path / "ours"), Certificates(tmp_path / "theirs")
    with Proxy(server.address, tls=ours.server_context()) as proxy:
        with redis.from_url(proxy.url, **ours.client_options()) as client:
            client.set("key", b"x" * 1_000_000)
            assert client.get("key") == b"x" * 1_000_000
            assert proxy.commands["GET"] == 1
        with pytest.raises(redis.ConnectionError), redis.from_url(proxy.url, **theirs.client_options()) as client:
            client.ping()


@every_binary
def test_a_lost_reply_leaves_what_the_command_did(server: Server) -> None:
    with Proxy(server.address) as proxy, server.client(port=proxy.port) as client:
        proxy.set(replies=Cut(0, when="INCRBY", times=1))
        with pytest.raises(redis.ConnectionError):
            client.incrby("counter")
        assert client.incrby("counter") == 2


def test_the_log_of_an_open_server_is_at_hand(server: Server) -> None:
    assert server in servers.OPEN
    assert "Ready to accept connections" in server.log_tail()


def test_a_server_that_cannot_start_says_why(binary: Binary) -> None:
    with (
        pytest.raises(AssertionError, match=r"(?s)did not start.*no-such-directive"),
        Server(binary, no_such_directive="1"),
    ):
        pass
    assert not any("no-such-directive" in server.directives for server in servers.OPEN)


def test_a_missing_program_skips_with_a_reason_that_says_what_brings_it() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no server program redis-1\.0 .*redis-server"):
        servers.binary("redis-1.0")


def test_nothing_is_left_of_a_server_that_was_closed(binary: Binary) -> None:
    with Server(binary) as server:
        replica = server.replica()
        pids = [server.pid, replica.pid]
    assert not server.folder.exists()
    assert not replica.folder.exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_no_server_outlives_a_killed_pytest(binary: Binary) -> None:
    code = (
        "import sys, time, servers\n"
        f"server = servers.Server(servers.binary({binary.name!r})).__enter__()\n"
        "print(server.pid, server.folder, flush=True)\n"
        "time.sleep(60)\n"
    )
    tests = Path(__file__).parent
    with subprocess.Popen([sys.executable, "-c", code], cwd=tests, stdout=subprocess.PIPE, text=True) as parent:
        said, folder = parent.stdout.readline().split()
        pid = int(said)
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)

    def is_gone() -> bool:
        status = Path(f"/proc/{pid}/stat")  # a zombie is dead, whoever has yet to reap it
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    until(is_gone, f"the server {pid} is gone")
    shutil.rmtree(folder)


def test_until_says_what_did_not_come() -> None:
    begun = time.monotonic()
    with pytest.raises(AssertionError, match="still not: pigs fly"):
        until(lambda: False, "pigs fly", patience=0.05)
    assert time.monotonic() - begun < PATIENCE
