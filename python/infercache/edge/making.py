"""What the settings describe: the cache, its secret, the operators' token."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from infercache.cache import Cache
from infercache.errors import InvalidArgument

if TYPE_CHECKING:
    from infercache.edge.settings import Settings

__all__ = ["cache_of", "secret_of", "token_of"]

logger = logging.getLogger("infercache.edge")

#: Longest token, and the shortest that is not guessed.
_TOKEN_BYTES = range(16, 1025)


def secret_of(settings: Settings) -> bytes | None:
    """The deployment's secret.

    Raises:
        InvalidArgument: the file cannot be read, or holds no secret.
    """
    if settings.secret_file is None:
        return None
    from infercache.cli.key import secret_of as read

    try:
        return read(Path(settings.secret_file))
    except InvalidArgument as error:
        raise InvalidArgument(f"secret_file: {error}") from None


def cache_of(settings: Settings, secret: bytes | None) -> Cache:
    """The cache. A shared tier without a secret is warned of."""
    if settings.l2 is not None and secret is None:
        logger.warning(
            "l2 without secret_file: whoever reaches the tier can read answers, write false ones and try credentials; "
            "give every gateway the same secret_file"
        )
    return Cache(
        settings.capacity,
        ttl=settings.ttl,
        namespace=settings.namespace,
        l2=settings.l2,
        l2_prefix=settings.l2_prefix,
        secret=secret,
        max_staleness=settings.max_staleness,
        timeout=settings.l2_timeout,
    )


def token_of(settings: Settings) -> bytes | None:
    """The operators' token, without the white space around it.

    Raises:
        InvalidArgument: the file cannot be read, or what it holds is no token.
    """
    if settings.admin_token_file is None:
        return None
    try:
        token = Path(settings.admin_token_file).read_bytes().strip()
    except OSError as error:
        raise InvalidArgument(
            f"admin_token_file {settings.admin_token_file}: cannot be read: {error.strerror or error}"
        ) from None
    if len(token) not in _TOKEN_BYTES or not all(0x21 <= byte <= 0x7E for byte in token):
        raise InvalidArgument(
            f"admin_token_file {settings.admin_token_file}: give {_TOKEN_BYTES[0]} to {_TOKEN_BYTES[-1]} printable "
            "characters without spaces, such as the output of: openssl rand -hex 32"
        )
    return token
