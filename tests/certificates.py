"""Certificates made for one test run: an authority's, a server's and a client's."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, two PEM files."""

    certificate: Path
    key: Path


class Certificates:
    """The files of one authority, in `folder`.

    Attributes:
        authority: The authority's certificate, a PEM file: what clients and servers trust.
        server: For `localhost` and 127.0.0.1.
        client: For a client that must show one.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(self.authority)
        self.server = self._issue(authority, folder, "server", "localhost", "127.0.0.1")
        self.client = self._issue(authority, folder, "client", "client.example")

    @staticmethod
    def _issue(authority: trustme.CA, folder: Path, name: str, *identities: str) -> Pair:
        issued = authority.issue_cert(*identities)
        pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        for place, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(pair.certificate, append=place > 0)
        issued.private_key_pem.write_to_path(pair.key)
        return pair

    def server_context(self) -> ssl.SSLContext:
        """For a server of the test's own, the proxy for one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server.certificate, self.server.key)
        return context

    def client_options(self, *, with_certificate: bool = False) -> dict[str, str]:
        """What `redis.from_url("rediss://…")` takes to trust this authority, and to show the client's certificate."""
        options = {"ssl_ca_certs": str(self.authority)}
        if with_certificate:
            options |= {"ssl_certfile": str(self.client.certificate), "ssl_keyfile": str(self.client.key)}
        return options
