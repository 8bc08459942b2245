"""The proxy does to each direction what a test asked for, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import BlackHole, Cut, Delay, Hold, Proxy, Requests, Trickle
from together import PATIENCE, Started

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.network


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.ended = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()[:2]
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # closing alone leaves it to the thread that accepts
        self.listener.close()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while chunk := peer.recv(65_536):
                    self.heard += chunk
                    peer.sendall(chunk)
            except OSError:
                pass
        self.ended.set()

    def wait_until_heard(self, what: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while bytes(self.heard) != what:
            assert time.monotonic() < deadline, f"heard {bytes(self.heard)!r}, not {what!r}"
            time.sleep(0.001)


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    with contextlib.suppress(OSError):
        echo.stop()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address) as proxy:
        yield proxy


def connect(proxy: Proxy, patience: float = PATIENCE) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), patience)


def receive(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        chunk = sock.recv(size - len(got))
        assert chunk, f"ended after {bytes(got)!r}"
        got += chunk
    return bytes(got)


def is_silent(sock: socket.socket, seconds: float = 0.1) -> bool:
    sock.settimeout(seconds)
    try:
        return sock.recv(1) is None
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE)


def test_bytes_pass_unchanged_and_are_counted(proxy: Proxy, echo: Echo) -> None:
    blob = bytes(range(256)) * 8192
    with connect(proxy) as sock:
        sending = Started(lambda: sock.sendall(blob))
        assert receive(sock, len(blob)) == blob
        sending.join()
        [connection] = proxy.open_connections
        assert (connection.bytes_requested, connection.bytes_replied) == (len(blob), len(blob))
    assert echo.ended.wait(PATIENCE)


def test_the_end_of_the_requests_still_lets_the_reply_through(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, 10) == b"last words"
        assert sock.recv(1) == b""


def test_a_delay_holds_each_direction_back_by_its_time_and_keeps_the_order(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        for fault in ({"requests": Delay(0.2)}, {"replies": Delay(0.15, jitter=0.05)}):
            proxy.set(**fault)
            begun = time.monotonic()
            for word in (b"one", b"two"):
                sock.sendall(word)
                time.sleep(0.01)
            assert receive(sock, 6) == b"onetwo"
            assert time.monotonic() - begun >= 0.15


def test_a_trickle_comes_in_portions(proxy: Proxy) -> None:
    proxy.set(replies=Trickle(size=2, every=0.02))
    with connect(proxy) as sock:
        begun = time.monotonic()
        sock.sendall(b"0123456789")
        assert len(sock.recv(100)) <= 2
        receive(sock, 8)
        assert time.monotonic() - begun >= 0.08


def test_a_trickle_that_is_switched_off_is_slow_no_longer(proxy: Proxy) -> None:
    proxy.set(replies=Trickle(size=1, every=0.01))
    with connect(proxy) as sock:
        blob = b"x" * 1_000_000
        sending = Started(lambda: sock.sendall(blob))
        receive(sock, 1)
        proxy.set()
        receive(sock, len(blob) - 1)
        sending.join()


def test_a_black_hole_of_requests_swallows_them_and_tells_nobody(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as sock:
        proxy.set(requests=BlackHole())
        sock.sendall(b"lost")
        assert is_silent(sock)
        assert echo.heard == b""
        proxy.set()
        sock.sendall(b"heard")
        assert receive(sock, 5) == b"heard"
        assert echo.heard == b"heard"


def test_a_half_open_connection_brings_requests_and_no_reply_nor_the_end(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as sock:
        proxy.set(replies=BlackHole())
        sock.sendall(b"heard")
        echo.wait_until_heard(b"heard")
        sock.shutdown(socket.SHUT_WR)
        assert echo.ended.wait(PATIENCE)  # the server has gone, and the client is not told
        assert is_silent(sock)


def test_held_replies_come_in_order_once_released(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as sock:
        proxy.set(replies=Hold())
        sock.sendall(b"one")
        echo.wait_until_heard(b"one")
        sock.sendall(b"two")
        assert is_silent(sock)
        proxy.set()
        assert receive(sock, 6) == b"onetwo"


def test_replies_overtake_one_another_on_connections_that_are_held_apart(proxy: Proxy) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        for sock in (first, second):
            sock.sendall(b"-")
            receive(sock, 1)
        held = next(
            each
            for each in proxy.connections
            if each.requests.reader._transport.get_extra_info("peername")[1] == first.getsockname()[1]
        )
        held.set(replies=Hold())
        first.sendall(b"asked first")
        second.sendall(b"asked second")
        assert receive(second, 12) == b"asked second"
        assert is_silent(first)
        held.set()
        assert receive(first, 11) == b"asked first"


def test_refused_connections_are_refused_and_the_port_comes_back(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        sock.sendall(b"open ones live")
        receive(sock, 14)
        proxy.refuse(cut=True)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    proxy.listen()
    with connect(proxy) as sock:
        sock.sendall(b"back")
        assert receive(sock, 4) == b"back"


@pytest.mark.parametrize("after", [0, 1, 5, 9])
def test_a_cut_comes_in_the_middle_of_a_reply_as_a_reset(proxy: Proxy, echo: Echo, after: int) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"before")
        receive(sock, 6)
        proxy.set(replies=Cut(after))
        sock.sendall(b"0123456789")
        assert receive(sock, after) == b"0123456789"[:after]
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        echo.wait_until_heard(
            b"before0123456789"
        )  # the server heard it all: the outcome is unknown to the client alone


def test_a_cut_of_requests_keeps_the_rest_from_the_server(proxy: Proxy, echo: Echo) -> None:
    proxy.set(requests=Cut(4))
    with connect(proxy) as sock:
        sock.sendall(b"0123456789")
        with pytest.raises(ConnectionResetError):
            receive(sock, 10)
    assert echo.ended.wait(PATIENCE)
    assert echo.heard == b"0123"


def test_a_cut_that_happens_once_leaves_the_next_connection_alone(proxy: Proxy) -> None:
    proxy.set(replies=Cut(0, times=1))
    with connect(proxy) as sock:
        sock.sendall(b"lost")
        with pytest.raises(ConnectionResetError):
            sock.recv(4)
    with connect(proxy) as sock:
        sock.sendall(b"fine")
        assert receive(sock, 4) == b"fine"


def request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def test_a_fault_waits_for_the_command_that_it_is_for(proxy: Proxy) -> None:
    proxy.set(replies=Cut(0, when="EVALSHA"))
    with connect(proxy) as sock:
        hello = request(b"hello", b"3")
        sock.sendall(hello)
        assert receive(sock, len(hello)) == hello
        sock.sendall(request(b"EvalSha", b"EVALSHA"))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    proxy.wait_for("evalsha")
    assert proxy.commands == {"HELLO": 1, "EVALSHA": 1}


def test_a_server_that_is_not_there_resets_the_client(proxy: Proxy, echo: Echo) -> None:
    echo.stop()
    with pytest.raises(ConnectionResetError), connect(proxy) as sock:
        sock.recv(1)


def test_what_is_open_is_reset_when_the_address_moves(proxy: Proxy) -> None:
    other = Echo()
    with connect(proxy) as sock:
        sock.sendall(b"-")
        receive(sock, 1)
        proxy.retarget(other.address)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with connect(proxy) as sock:
        sock.sendall(b"there")
        receive(sock, 5)
    assert other.heard == b"there"
    other.stop()


WORDS = st.lists(st.binary(max_size=20), max_size=4)


@given(st.data(), st.lists(st.tuples(st.sampled_from([b"GET", b"evalsha", b"HELLO"]), WORDS), max_size=8))
def test_commands_are_named_however_their_bytes_are_cut(
    data: st.DataObject, commands: list[tuple[bytes, list[bytes]]]
) -> None:
    stream = b"".join(request(name, *words) for name, words in commands)
    parser, names = Requests(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        names += parser.feed(stream[:size])
        stream = stream[size:]
    assert names == [name.decode().upper() for name, _ in commands]
