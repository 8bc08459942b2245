"""What a tier may be given, and that what is wrong with it is told at once, without a password."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis
import redis.asyncio

from asking import Asker, refused
from certificates import Certificates
from infercache.errors import InvalidArgument
from infercache.tiers import Command, RedisTier
from servers import Server, binary


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "begins with one of redis://"),
        ("http://user:hidden@localhost", "begins with one of redis://"),
        ("redis://:hidden@localhost/first", "database's number"),
        ("redis://:hidden@localhost:port", "ort"),
        ("redis://[::1", "Invalid IPv6"),
        ("redis+cluster://localhost/1", "database 0 only"),
        ("unix://", "path"),
        ("redis://localhost?socket_timeout=5", "RedisTier(timeout=…)"),
        ("redis://localhost?max_connections=5", "RedisTier(connections=…)"),
        ("redis://localhost?no_such_option=5", "no_such_option"),
        ("redis://localhost?ssl_ca_certs=x", "ssl_ca_certs"),
        ("rediss://:hidden@localhost?ssl_ca_certs=/no/such/file", "certificates cannot be read"),
        ("rediss://localhost?ssl_cert_reqs=perhaps", "perhaps"),
    ],
)
def test_a_url_that_is_wrong_is_told_at_once_and_without_its_password(url: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        RedisTier(url)
    assert said in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": None}, "timeout=None"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "soon"}, "timeout="),
        ({"soft_timeout": "1s"}, "soft_timeout='1s'"),
        ({"soft_timeout": 0}, "soft_timeout=0"),
        ({"connections": 0}, "connections=0"),
        ({"retries": -1}, "retries=-1"),
        ({"retries": True}, "retries=True"),
        ({"write_behind": 0}, "write_behind=0"),
        ({"write_behind": 5, "write_behind_bytes": "much"}, "write_behind_bytes="),
        ({"breaker": {"patience": 1}}, "patience"),
    ],
    ids=str,
)
def test_an_option_that_is_wrong_is_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        RedisTier("redis://localhost", **options)  # type: ignore[arg-type]
    assert said in str(caught.value)


@pytest.mark.parametrize("given", [None, 5, object(), b"redis://localhost"], ids=["None", "int", "object", "bytes"])
def test_what_is_neither_a_url_nor_a_client_is_refused(given: object) -> None:
    with pytest.raises(InvalidArgument, match="client of redis-py"):
        RedisTier(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("redis://user:hidden@host", "redis://host:6379/0"),
        ("redis://host:7/3", "redis://host:7/3"),
        ("redis://host:7?db=3", "redis://host:7/3"),
        ("rediss://:hidden@host:7", "rediss://host:7/0"),
        ("unix:///run/server.sock?db=2", "unix:///run/server.sock/2"),
        ("redis+cluster://user:hidden@host:7", "redis+cluster://host:7/0"),
    ],
)
def test_identity_tells_servers_apart_and_shows_no_password(url: str, identity: str) -> None:
    tier = RedisTier(url)
    assert tier.identity == identity
    assert identity in repr(tier)
    assert "hidden" not in repr(tier)


@pytest.mark.parametrize("make", [redis.Redis, redis.asyncio.Redis], ids=["sync", "asyncio"])
def test_a_client_of_the_caller_s_serves_both_kinds_of_callers(make: type, server: Server, ask: Asker) -> None:
    server.user("app", "secret", "~*", "+@all")
    # What would change replies or budgets is the tier's own business, and not taken over.
    client = make(
        host="127.0.0.1", port=server.port, db=2, username="app", password="secret", decode_responses=True, protocol=2
    )
    tier = RedisTier(client, timeout="20s")
    assert tier.identity == RedisTier(server.url.replace("/0", "/2")).identity
    assert ask(tier, Command("SET", "k", b"\xff"), Command("GET", "k")) == [b"OK", b"\xff"]
    assert ask(tier, Command("ACL", "WHOAMI")) == [b"app"]
    ask.close(tier)


def test_a_tls_client_of_the_caller_s_serves_both_kinds_of_callers(tmp_path: Path, ask: Asker) -> None:
    certificates = Certificates(tmp_path)
    with Server(binary("redis-7.0"), tls=certificates, client_auth="yes") as server:
        client = redis.from_url(server.tls_url, **certificates.client_options(with_certificate=True))
        tier = RedisTier(client, timeout="20s")
        assert ask(tier, Command("PING")) == [b"PONG"]
        ask.close(tier)


def test_a_connection_class_of_the_caller_s_own_serves_its_kind_and_says_so_to_the_other(server: Server) -> None:
    import asyncio

    class Own(redis.Connection):
        pass

    pool = redis.ConnectionPool(connection_class=Own, host="127.0.0.1", port=server.port)
    tier = RedisTier(redis.Redis(connection_pool=pool), timeout="20s")
    assert tier.exchange([Command("PING")]) == [b"PONG"]
    with refused("client") as caught:
        asyncio.run(tier.aexchange([Command("PING")]))
    assert "no asyncio twin" in str(caught.value)
    tier.close()


@pytest.mark.parametrize("missing", ["redis", "hiredis"])
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from infercache.errors import MissingExtra
from infercache.tiers import RedisTier
try:
    RedisTier("redis://localhost")
except MissingExtra as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert missing in done.stdout
    assert "pip install 'infercache[redis]'" in done.stdout


def test_making_a_tier_connects_to_nobody() -> None:
    tier = RedisTier("redis://127.0.0.1:1")
    assert not tier.is_out
    assert tier.stats() == {}
    tier.close()
