"""Purges what PostgreSQL says has changed: a trigger notifies, this listens.

    python postgres_purges.py "host=localhost dbname=shop" redis://localhost:6379/0

A notification goes out when its transaction commits and never if it is rolled back, so a purge cannot come before the
change that it is for. PostgreSQL keeps none for a listener that is not connected: after each connection, the first one
included, everything that notifications name is purged once (`EVERYTHING`). Needs psycopg 3.2.4 or newer.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import psycopg
from psycopg import sql

from infercache import Cache, PurgeFailed

CHANNEL = "purge"
#: The tags of all entries that a notification may name: what is purged when notifications may have been lost.
EVERYTHING = ["catalogue"]
#: A connection that died silently is noticed within about half a minute.
ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "connect_timeout": 10}
#: Seconds after which an attempt is made again.
PAUSE = 1.0

#: What the database needs; the payload of a notification is the tag. It holds 8,000 bytes at most.
TRIGGER = """
CREATE OR REPLACE FUNCTION product_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('purge', 'product:' || COALESCE(NEW.id, OLD.id));
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER product_changed AFTER INSERT OR UPDATE OR DELETE ON product
    FOR EACH ROW EXECUTE FUNCTION product_changed();
"""


def listen(cache: Cache, database: str, stopped: threading.Event) -> None:
    """Purges the tag of each notification, through outages of both servers, until `stopped` is set."""
    while not stopped.is_set():
        try:
            with psycopg.connect(database, autocommit=True, **ALIVE) as connection:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                # After LISTEN: what is committed from now on is heard.
                purge(cache, EVERYTHING, stopped)
                while not stopped.is_set():
                    for notification in connection.notifies(timeout=PAUSE):
                        purge(cache, [notification.payload], stopped)
        except psycopg.OperationalError:
            stopped.wait(PAUSE)


def purge(cache: Cache, tags: Sequence[str], stopped: threading.Event) -> None:
    """Purges, again and again until the authority has acknowledged it. Meanwhile notifications wait."""
    while not stopped.is_set():
        try:
            cache.invalidate(tags=tags)
            return
        except PurgeFailed:
            stopped.wait(PAUSE)


if __name__ == "__main__":
    with Cache("1MB", l2=sys.argv[2]) as purger:
        listen(purger, sys.argv[1], threading.Event())
