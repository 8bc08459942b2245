"""Whose entries a request may see: the tenant, derived from what identifies the caller, never from what it claims.

The tenant is a keyed BLAKE2b hash of the length-prefixed tuple of the identifying headers, so that neither the tier nor
a log holds a credential, and no two tuples have the same bytes. The key is the deployment's secret; without one the
hash still parts tenants, but whoever can read the tier can try credentials that are easily guessed.

A credential gets nothing out of the cache before the upstream has let it in, and has to be let in again within
`auth_ttl`. At half of that one request in a while asks the upstream, while the others are still served.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infercache.edge.settings import Settings

__all__ = ["Caller", "Tenants"]

#: Credentials that are known to be good at once; the one that was let in longest ago makes room.
_MOST_KNOWN = 100_000
#: Seconds after which another request re-checks a credential, where the first has not come back.
_CHECK_AGAIN = 10.0


@dataclass(slots=True)
class Caller:
    """Who asks.

    Attributes:
        tenant: hexadecimal digits; "" where all share.
        credential: a hash of what identifies the caller.
        proven: see `EdgeRequest`.
        excused: see `EdgeRequest`.
    """

    tenant: str
    credential: bytes
    proven: bool = False
    excused: bool = False


@dataclass(slots=True)
class _Proof:
    """When the upstream let a credential in, by route, and when it was last asked to do so again."""

    at: dict[str, float]
    asked: float = 0.0


class Tenants:
    """Derives tenants, and remembers which credentials are good.

    Args:
        settings: the edge's.
        secret: the deployment's, 32 bytes, or None.
        clock: seconds that only go forward.
    """

    def __init__(
        self, settings: Settings, secret: bytes | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._places = {name.encode(): place for place, name in enumerate(settings.identity)}
        self._shares = settings.sharing == "all"
        self._header = None if settings.tenant_header is None else settings.tenant_header.encode()
        self._trusted: list[IPv4Network | IPv6Network] = [ip_network(each) for each in settings.trusted_proxies]
        self._believed: dict[str, bool] = {}
        self._auth_ttl = settings.auth_ttl
        self._excuse = settings.auth_ttl + settings.auth_ttl_if_error
        self._key = secret or b""
        self._clock = clock
        self._proofs: dict[bytes, _Proof] = {}
        self._nobody = self._hash(b"credential", [])

    def of(self, headers: Sequence[tuple[bytes, bytes]], client: Sequence[object] | None, route: str) -> Caller:
        """Who asks, by the request's headers and the address that the connection comes from."""
        credential = self._credential(headers)
        if self._shares:
            tenant = ""
        elif self._header is not None and self._believes(client):
            claimed = [(0, value) for name, value in headers if name == self._header]
            tenant = (self._hash(b"header", claimed) if claimed else credential).hex()
        else:
            tenant = credential.hex()
        caller = Caller(tenant, credential)
        proof = self._proofs.get(credential)
        at = None if proof is None else proof.at.get(route)
        if proof is None or at is None:
            return caller
        now = self._clock()
        age = now - at
        caller.excused = age < self._excuse
        caller.proven = age < self._auth_ttl
        if caller.proven and 2 * age >= self._auth_ttl and now - proof.asked >= min(_CHECK_AGAIN, self._auth_ttl / 4):
            proof.asked = now
            caller.proven = False  # this one asks, so that the others need not wait for an answer when time is up
        return caller

    def is_proven(self, credential: bytes, route: str) -> bool:
        """Whether the upstream has let the credential in on this route within `auth_ttl`."""
        proof = self._proofs.get(credential)
        at = None if proof is None else proof.at.get(route)
        return at is not None and self._clock() - at < self._auth_ttl

    def told(self, credential: bytes, route: str, status: int) -> None:
        """The upstream answered a request with this credential."""
        if status in (401, 403):
            self._proofs.pop(credential, None)
        elif 200 <= status < 300:
            proof = self._proofs.pop(credential, None) or _Proof({})
            proof.at[route] = self._clock()
            self._proofs[credential] = proof
            if len(self._proofs) > _MOST_KNOWN:
                del self._proofs[next(iter(self._proofs))]

    def _credential(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        places = self._places
        found = [(places[name], value) for name, value in headers if name in places]
        return self._hash(b"credential", found) if found else self._nobody

    def _hash(self, kind: bytes, found: list[tuple[int, bytes]]) -> bytes:
        # By place in the list, and in their order within one name: the order of different headers does not count.
        if len(found) > 1:
            found.sort(key=_place)
        text = b"".join([b"%d:%d:%b" % (place, len(value), value) for place, value in found])
        return hashlib.blake2b(text, digest_size=16, key=self._key, person=b"ic1 " + kind).digest()

    def _believes(self, client: Sequence[object] | None) -> bool:
        """Whether the connection comes from a proxy that is trusted."""
        host = str(client[0]) if client else ""
        known = self._believed.get(host)
        if known is None:
            try:
                address = ip_address(host)
            except ValueError:
                return False
            address = getattr(address, "ipv4_mapped", None) or address
            known = any(address in network for network in self._trusted)
            if len(self._believed) >= 10_000:
                self._believed.clear()
            self._believed[host] = known
        return known


def _place(pair: tuple[int, bytes]) -> int:
    return pair[0]
