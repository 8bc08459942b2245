"""The ACL user of docs/tier.md may do everything that a cache and a consumer of events do, and nothing beside it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import servers
from infercache import Cache
from infercache.events import StreamEvents
from servers import until

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network


def documented(root: Path) -> list[str]:
    """The rules that the page gives the user."""
    found = re.search(r"^ACL SETUSER cache (.*)$", (root / "docs" / "tier.md").read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


def url_of(server: Server) -> str:
    return f"redis://cache:s%40cret@127.0.0.1:{server.port}/1"


@pytest.mark.parametrize("binary", servers.NAMES, indirect=True)
def test_the_documented_user_may_do_what_a_cache_does(server: Server, root: Path) -> None:
    server.admin.execute_command("ACL", "SETUSER", "cache", *documented(root))
    options = {"l2": url_of(server), "timeout": "1s", "max_staleness": "1h", "lease": "300ms"}
    with Cache("8MB", **options) as cache, Cache("8MB", **options) as other:
        key = cache.key("q", model="m", version="1")
        assert cache.set(key, "answer", tags=["t"])
        assert other.get(key) == "answer"
        many = [cache.key(number, model="m", version="1") for number in range(3)]
        assert cache.set_many([(key, "answer") for key in many]) == 3
        assert other.get_many(many) == 3 * ["answer"]
        until(lambda: server.admin.pubsub_numsub("ic:bell")[0][1] == 1, "the follower listens")
        computed = cache.key("computed", model="m", version="1")
        assert cache.get_or_compute(computed, lambda: time.sleep(0.3) or "under a lease") == "under a lease"
        cache.invalidate(tags=["t"])
        cache.delete(key)
        until(lambda: other.get(key) is None, "the purge has come")
        assert (cache.stats().l2_errors, other.stats().l2_errors) == (0, 0)
        with pytest.raises(Exception, match="the purge is done, but 0 replicas have it"):
            cache.invalidate(tags=["t"], durable=1)
    denied = server.admin.acl_log()
    assert not denied, denied


def test_a_consumer_of_events_needs_the_commands_of_its_line(server: Server, root: Path) -> None:
    row = next(line for line in (root / "docs" / "tier.md").read_text().splitlines() if line.startswith("| [events]"))
    commands = [f"+{name.lower()}" for name in re.findall(r"`(X[A-Z]+)`", row)]
    server.admin.execute_command("ACL", "SETUSER", "cache", *documented(root), *commands, "~stock", "~stock:aside")

    def targets(event: object) -> list[str]:
        raise ValueError(event)

    options = {"l2": url_of(server), "timeout": "1s"}
    with (
        Cache("8MB", **options) as cache,
        StreamEvents(cache, "stock", "g", targets, wait="50ms", claim_after="100ms", tries=2) as events,
    ):
        until(lambda: server.admin.acl_log() or events.is_running, "it runs")
        server.client(db=1, username="rig", password="x").xadd("stock", {"product": "1"})
        until(lambda: server.admin.acl_log() or events.stats().get("set_aside"), "the event is set aside")
    denied = server.admin.acl_log()
    assert not denied, denied
