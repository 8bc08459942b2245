"""What an error of the network or of a login is called, for both kinds of connections."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from infercache.errors import TierUnavailable

if TYPE_CHECKING:
    from infercache.tiers.target import Address

__all__ = ["refusal", "shown_address", "timed_out"]


def shown_address(address: Address) -> str:
    """An address as an error shows it."""
    host, port = address
    return f"{host}:{port}" if port else host


def timed_out() -> TimeoutError:
    """What is raised where a budget is spent."""
    return TimeoutError("the budget was spent")


def refusal(error: BaseException, address: Address, *, sent: bool) -> TierUnavailable:
    """An error of a socket, of TLS, of redis-py or of the protocol, as the one that callers see."""
    import hiredis
    import redis

    place = shown_address(address)
    cause = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    chain = (error, cause)
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
        return TierUnavailable(
            f"the certificate of {place} was refused ({cause}): name its authority with ssl_ca_certs=… in the URL",
            sent=sent,
            reason="certificate",
        )
    if any(isinstance(one, ssl.SSLError) for one in chain):
        return TierUnavailable(
            f"no TLS with {place} ({cause}): does it speak TLS on this port, and does it want a certificate of ours "
            "(ssl_certfile=…, ssl_keyfile=… in the URL)?",
            sent=sent,
            reason="certificate",
        )
    if any(isinstance(one, TimeoutError | redis.TimeoutError) for one in chain):
        done = "did not answer" if sent else "could not be reached"
        return TierUnavailable(f"{place} {done} within the budget", sent=sent, reason="timeout")
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError) or _is_login(error):
        return TierUnavailable(
            f"{place} refused the login ({error}): check user and password, percent-encoded, in the tier's URL",
            sent=sent,
            reason="authentication",
        )
    if isinstance(error, redis.ResponseError | redis.BusyLoadingError):
        return TierUnavailable(f"{place} refused the connection: {error}", sent=sent, reason="connect")
    if isinstance(error, hiredis.HiredisError | redis.InvalidResponse):
        return TierUnavailable(
            f"{place} does not speak the protocol of Redis ({error}): is something else at this address?",
            sent=sent,
            reason="protocol",
        )
    reason = "closed" if sent else "connect"
    return TierUnavailable(f"the connection to {place} failed: {cause}", sent=sent, reason=reason)


def _is_login(error: BaseException) -> bool:
    return str(error).startswith(("WRONGPASS", "NOAUTH", "NOPERM", "ERR AUTH"))
