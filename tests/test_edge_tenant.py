"""Tenants: nobody is taken for somebody else, and a credential is good for as long as the upstream said so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache.edge import Settings
from infercache.edge.settings import IDENTITY
from infercache.edge.tenant import Caller, Tenants

NAMES = st.sampled_from([name.encode() for name in IDENTITY])
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=4)), max_size=4)
PEER = ("127.0.0.1", 5)
ROUTE = "/v1/embeddings"


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def make(secret: bytes | None = None, clock: Clock | None = None, **options: Any) -> Tenants:
    return Tenants(Settings(**options), secret, clock=clock or Clock())


def of(tenants: Tenants, *headers: tuple[bytes, bytes], peer: Any = PEER) -> Caller:
    return tenants.of(list(headers), peer, ROUTE)


@given(HEADERS, HEADERS)
def test_two_callers_are_one_tenant_only_if_every_identifying_header_is_the_same(
    one: list[tuple[bytes, bytes]], other: list[tuple[bytes, bytes]]
) -> None:
    tenants = make()

    def identity(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, list[bytes]]]:
        return sorted((name, [v for n, v in headers if n == name]) for name in {name for name, _ in headers})

    assert (of(tenants, *one).tenant == of(tenants, *other).tenant) == (identity(one) == identity(other))


def test_what_does_not_identify_does_not_count() -> None:
    tenants = make()
    mine = of(tenants, (b"authorization", b"a"), (b"user-agent", b"x"))
    assert mine.tenant == of(tenants, (b"x-tenant", b"other"), (b"authorization", b"a"), peer=("203.0.113.1", 1)).tenant
    assert of(tenants).tenant == of(tenants, (b"accept", b"*/*")).tenant != mine.tenant


def test_values_cannot_move_from_one_header_into_another() -> None:
    tenants = make()
    pairs = [
        [(b"authorization", b"a"), (b"api-key", b"b")],
        [(b"authorization", b"b"), (b"api-key", b"a")],
        [(b"authorization", b"ab")],
        [(b"authorization", b"a"), (b"authorization", b"b")],
        [(b"authorization", b"a, b")],
        [(b"authorization", b"a1:1:b")],
        [(b"authorization", b"")],
        [],
    ]
    assert len({of(tenants, *pair).tenant for pair in pairs}) == len(pairs)


def test_the_list_of_identifying_headers_is_configured() -> None:
    tenants = make(identity=["x-user"])
    assert of(tenants, (b"authorization", b"a")).tenant == of(tenants, (b"authorization", b"b")).tenant
    assert of(tenants, (b"x-user", b"a")).tenant != of(tenants, (b"x-user", b"b")).tenant


def test_the_tenant_depends_on_the_secret_and_shows_no_credential() -> None:
    header = (b"authorization", b"Bearer s3cr3t")
    found = {of(make(secret), header).tenant for secret in (None, b"a" * 32, b"b" * 32)}
    assert len(found) == 3
    assert all(len(tenant) == 32 and set(tenant) <= set("0123456789abcdef") for tenant in found)
    assert of(make(b"a" * 32), header).tenant in found, "every gateway of a deployment finds the same"


def test_a_tenant_header_is_believed_of_trusted_proxies_alone() -> None:
    tenants = make(tenant_header="x-tenant", trusted_proxies=["198.51.100.0/24", "::1", "192.0.2.7"])
    claims = [(b"x-tenant", b"a"), (b"authorization", b"mine")]
    own = of(tenants, (b"authorization", b"mine")).tenant
    for peer in (PEER, None, ("unix", 0), ("11.0.0.1", 1), ("::2", 1)):
        assert of(tenants, *claims, peer=peer).tenant == own
    for host in ("198.51.100.3", "::1", "192.0.2.7", "::ffff:198.51.100.3"):
        believed = of(tenants, *claims, peer=(host, 1)).tenant
        assert believed != own
        assert believed == of(tenants, (b"x-tenant", b"a"), (b"authorization", b"other"), peer=(host, 1)).tenant
        assert believed != of(tenants, (b"x-tenant", b"b"), peer=(host, 1)).tenant
        assert of(tenants, (b"authorization", b"mine"), peer=(host, 1)).tenant == own, "the proxy said nothing"
        # Who claims to be the hash of another's credential, or a credential that is what the header says.
        assert believed != of(tenants, (b"authorization", b"a"), peer=(host, 1)).tenant


def test_sharing_is_explicit_and_still_asks_for_a_good_credential() -> None:
    tenants = make(sharing="all")
    one, other = of(tenants, (b"authorization", b"a")), of(tenants, (b"authorization", b"b"))
    assert one.tenant == other.tenant == ""
    assert one.credential != other.credential
    tenants.told(one.credential, ROUTE, 200)
    assert of(tenants, (b"authorization", b"a")).proven
    assert not of(tenants, (b"authorization", b"b")).proven


def test_a_credential_is_proven_by_success_and_forgotten_when_it_is_refused() -> None:
    tenants = make()
    for status, proven in (
        (500, False),
        (404, False),
        (200, True),
        (429, True),
        (503, True),
        (401, False),
        (201, True),
        (403, False),
    ):
        tenants.told(of(tenants).credential, ROUTE, status)
        assert of(tenants).proven is proven, status
        assert tenants.is_proven(of(tenants).credential, ROUTE) is proven


def test_a_proof_is_of_one_route_and_a_refusal_of_all() -> None:
    tenants = make()
    tenants.told(of(tenants).credential, ROUTE, 200)
    assert not tenants.of([], PEER, "/v1/rerank").proven
    tenants.told(of(tenants).credential, "/v1/rerank", 403)
    assert not of(tenants).proven


def test_a_proof_ends_with_auth_ttl_and_one_request_in_a_while_renews_it_before() -> None:
    clock = Clock()
    tenants = make(clock=clock, auth_ttl="100s", auth_ttl_if_error="50s")
    tenants.told(of(tenants).credential, ROUTE, 200)
    clock.now += 49
    assert all(of(tenants).proven for _ in range(5))
    clock.now += 2  # beyond half
    asks, *others = [of(tenants) for _ in range(5)]
    assert (asks.proven, asks.excused) == (False, True)
    assert all(each.proven for each in others), "the others are served meanwhile"
    clock.now += 11
    assert [of(tenants).proven for _ in range(3)] == [False, True, True], "the first has not come back"
    tenants.told(asks.credential, ROUTE, 200)
    clock.now += 49
    assert of(tenants).proven
    clock.now += 51
    assert not tenants.is_proven(asks.credential, ROUTE)
    ended = [of(tenants) for _ in range(3)]
    assert [(each.proven, each.excused) for each in ended] == [(False, True)] * 3
    clock.now += 50
    assert not of(tenants).excused


def test_auth_ttl_of_0_proves_nothing() -> None:
    tenants = make(auth_ttl=0)
    tenants.told(of(tenants).credential, ROUTE, 200)
    assert not of(tenants).proven


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infercache.edge.tenant._MOST_KNOWN", 10)
    tenants = make()
    for number in range(25):
        caller = of(tenants, (b"authorization", b"%d" % number))
        tenants.told(caller.credential, ROUTE, 200)
        tenants.told(of(tenants, (b"authorization", b"0")).credential, ROUTE, 200)
        tenants.told(b"never let in %d" % number, ROUTE, 401)
    assert len(tenants._proofs) == 10
    assert of(tenants, (b"authorization", b"0")).proven, "what is used stays"
    assert not of(tenants, (b"authorization", b"1")).proven
