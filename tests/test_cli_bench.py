"""`infercache bench`: what it measures of a function or an endpoint, and when it advises against a cache."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from infercache import InvalidArgument
from infercache.workload.comparison import Comparison, compare
from infercache.workload.subjects import Endpoint, Function, of

COMMAND = Path(sys.executable).with_name("infercache")

MODULE = """
import asyncio, time

def slow(text):
    time.sleep(0.003)
    return [len(text), text.upper()]

async def slow_too(text):
    await asyncio.sleep(0.003)
    return len(text)

def cheap(text):
    return len(text)

def fails(text):
    raise RuntimeError("no GPU")

def forgets(text):
    return time.perf_counter_ns()

def odd(text):
    time.sleep(0.001)
    return object()

def two(query, limit=3):
    time.sleep(0.002)
    return [query] * limit

class Model:
    @staticmethod
    def run(text):
        return text

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of functions, and questions."""
    (tmp_path / "models_of_a_test.py").write_text(MODULE)
    (tmp_path / "questions.txt").write_text("".join(f"question {place % 8}\n" for place in range(80)))
    (tmp_path / "new.txt").write_text("".join(f"question {place}\n" for place in range(30)))
    return tmp_path


def run(folder: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the installed command there."""
    return subprocess.run(
        [COMMAND, "bench", *arguments], check=False, cwd=folder, input=given, capture_output=True, text=True
    )


def test_a_slow_function_that_repeats_is_worth_a_cache(folder: Path) -> None:
    done = run(folder, "models_of_a_test:slow", "--input", "questions.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert "80 calls without the cache, 80 with it (8 different questions)" in done.stdout
    assert re.search(r"without a cache +80 +3\.\d+ ms", done.stdout)
    assert re.search(r"a hit +72 +\d+(\.\d+)? [µn]s", done.stdout)
    assert re.search(r"a miss +8 +\d+\.\d+ ms", done.stdout)
    assert "hit ratio 90.0%" in done.stdout
    assert "worth it: a call takes" in done.stdout
    assert "not worth it" not in done.stdout
    even = float(re.search(r"break-even hit ratio (\d+\.\d+)%", done.stdout)[1])  # type: ignore[index]
    assert 0 <= even < 20


def test_a_function_cheaper_than_a_look_up_is_not_to_be_cached(folder: Path) -> None:
    done = run(folder, "models_of_a_test:cheap", "--input", "questions.txt", "--zipf", "1", "--requests", "5000")
    assert done.returncode == 0
    assert "DO NOT CACHE THIS: the model takes" in done.stdout
    assert "worth it" not in done.stdout


def test_questions_that_never_repeat_have_no_hit_to_measure(folder: Path) -> None:
    done = run(folder, "models_of_a_test:slow", "--input", "new.txt")
    assert "no question came twice" in done.stdout
    assert "hit ratio 0.0%" in done.stdout


def test_few_hits_of_a_function_that_is_hardly_slower_are_not_worth_it() -> None:
    few = comparison(model=5e-6, hit=2e-6, overhead=4e-6, hits=10, misses=90)
    from infercache.cli.bench import _verdict

    told = " ".join(_verdict(few))
    assert "break-even hit ratio 57.14%" in told
    assert "not worth it with these questions" in told


def comparison(*, model: float, hit: float, overhead: float, hits: int, misses: int) -> Comparison:
    return Comparison(
        without=np.full(hits + misses, model),
        hits=np.full(hits, hit),
        misses=np.full(misses, model + overhead),
        models=np.full(misses, model),
        elapsed=1.0,
        uncacheable=0,
        repeats=True,
    )


@pytest.mark.parametrize("model", [1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize("overhead", [0.0, 1e-6, 3e-6])
def test_at_the_break_even_ratio_a_request_takes_what_the_model_does(model: float, overhead: float) -> None:
    hit = 5e-7
    even = comparison(model=model, hit=hit, overhead=overhead, hits=5, misses=5).break_even
    assert even is not None
    assert even * hit + (1 - even) * (model + overhead) == pytest.approx(model)


def test_a_look_up_as_slow_as_the_model_has_no_break_even() -> None:
    assert comparison(model=1e-6, hit=1e-6, overhead=1e-6, hits=5, misses=5).break_even is None
    assert comparison(model=1e-6, hit=2e-6, overhead=0.0, hits=5, misses=5).break_even is None
    assert comparison(model=1e-6, hit=5e-7, overhead=0.0, hits=0, misses=5).break_even is None


def test_arguments_of_several_parameters_are_spread(folder: Path) -> None:
    lines = [{"query": "a", "limit": 2}, ["b"], {"query": "a", "limit": 2}]
    done = run(folder, "models_of_a_test:two", "--spread", "--input", "-", given="\n".join(map(json.dumps, lines)))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"a hit +1 ", done.stdout)
    done = run(folder, "models_of_a_test:two", "--spread", "--input", "-", given='"a"\n')
    assert "with --spread it is an object or an array of arguments, not 'a'" in done.stderr


def test_a_coroutine_function_is_awaited(folder: Path) -> None:
    done = run(folder, "models_of_a_test:slow_too", "--input", "questions.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hit ratio 90.0%" in done.stdout


def test_a_function_that_raises_is_told_and_exits_with_1(folder: Path) -> None:
    done = run(folder, "models_of_a_test:fails", "--input", "questions.txt")
    assert done.returncode == 1
    assert done.stderr == "infercache bench: models_of_a_test:fails raised RuntimeError: no GPU\n"


def test_answers_that_differ_or_cannot_be_stored_are_told(folder: Path) -> None:
    done = run(folder, "models_of_a_test:forgets", "--input", "questions.txt")
    assert "asked the same twice, the model gave two different answers" in done.stdout
    done = run(folder, "models_of_a_test:odd", "--input", "questions.txt")
    assert "80 results could not be stored" in done.stdout
    assert "asked the same twice" not in done.stdout


def test_time_bounds_how_much_is_asked(folder: Path) -> None:
    before = time.monotonic()
    done = run(
        folder,
        "models_of_a_test:slow",
        "--input",
        "questions.txt",
        "--zipf",
        "0",
        "--requests",
        "100000",
        "--seconds",
        "1",
    )
    assert time.monotonic() - before < 20
    calls = int(re.search(r": ([\d,]+) calls without", done.stdout)[1].replace(",", ""))  # type: ignore[index]
    assert 50 < calls < 400


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["models_of_a_test:nothing", "--input", "questions.txt"], "'models_of_a_test' has no 'nothing'"),
        (["models_of_a_test:number", "--input", "questions.txt"], "is no function, but 7"),
        (["no_such_module:f", "--input", "questions.txt"], "cannot import 'no_such_module'"),
        (["models_of_a_test", "--input", "questions.txt"], "give MODULE:FUNCTION, such as app.models:embed, or a URL"),
        (["ftp://host/x", "--input", "questions.txt"], "give http://… or https://…, or MODULE:FUNCTION"),
        (["models_of_a_test:slow", "--input", "no-file"], "no-file: No such file"),
        (["models_of_a_test:slow", "--input", "-"], "no question in it; one a line is expected"),
        (["models_of_a_test:slow", "--input", "questions.txt", "--json"], "question 1 is not JSON"),
        (["models_of_a_test:slow", "--input", "questions.txt", "--requests", "0"], "0 is not between 1 and"),
        (["models_of_a_test:slow", "--input", "questions.txt", "--capacity", "much"], "capacity='much'"),
        (["http://127.0.0.1:1/x", "--input", "questions.txt"], "http://127.0.0.1:1/x: no answer: "),
        (["http://127.0.0.1:1/x", "--input", "questions.txt", "--body", "{}"], "it has no {input}"),
        (["http://127.0.0.1:1/x", "--input", "questions.txt", "--header", "nonsense"], "give NAME: VALUE"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_exits_with_2(arguments: list[str], expected: str, folder: Path) -> None:
    done = run(folder, *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_methods_of_classes_are_functions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    assert Function("models_of_a_test:Model.run").ask("x") == "x"


class Answers(BaseHTTPRequestHandler):
    """An endpoint of a model: takes 2 ms, and says of every second answer that a cache had it."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append(({name.lower(): value for name, value in self.headers.items()}, body))
        time.sleep(0.002)
        status = 503 if b"wrong" in body else 200
        content = b'{"echo": %d}' % len(body)
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        if len(self.asked) % 2 == 0:
            self.send_header("cache-status", "infercache; hit; ttl=3")
        elif self.path == "/gateway":
            self.send_header("cache-status", "infercache; fwd=miss; stored")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Answers.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.network
def test_an_endpoint_is_asked_with_its_body_and_headers(folder: Path, endpoint: str) -> None:
    (folder / "headers").write_text("Authorization: Bearer secret\n")
    done = run(
        folder,
        *(f"{endpoint}/gateway", "--input", "questions.txt", "--body", '{"model": "m", "input": {input}}'),
        *("--header", "x-other: 1", "--header-file", "headers"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "hit ratio 90.0%" in done.stdout
    assert "worth it: a call takes" in done.stdout
    assert "a cache on the way to the endpoint answered" in done.stdout
    headers, body = Answers.asked[0]
    assert json.loads(body) == {"model": "m", "input": "question 0"}
    assert (headers["authorization"], headers["x-other"]) == ("Bearer secret", "1")
    assert headers["content-type"] == "application/json"
    assert len(Answers.asked) == 1 + 80 + 8 + 2


@pytest.mark.network
def test_an_error_of_an_endpoint_is_told(folder: Path, endpoint: str) -> None:
    done = run(folder, f"{endpoint}/x", "--input", "-", "--json", given='{"a": 1}\n{"a": "wrong"}\n')
    assert done.returncode == 2
    assert 'answered 503 Service Unavailable to {"a": "wrong"}' in done.stderr


@pytest.mark.network
def test_a_connection_that_the_server_closed_is_opened_again(endpoint: str) -> None:
    subject = Endpoint(f"{endpoint}/x", body=None, headers=[], timeout=10)
    first = subject.ask({"a": 1})
    assert subject._connection.sock is not None
    subject._connection.sock.shutdown(2)
    assert subject.ask({"a": 1}) == first
    subject.close()


def test_nothing_is_counted_twice_and_each_call_is_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counting:
        name = "counting"

        def ask(self, question: str) -> str:
            asked.append(question)
            time.sleep(0.001)
            return question

        def close(self) -> None:
            pass

    told: list[int] = []
    found = compare(Counting(), ["a", "b", "a", "a"], capacity="1MB", seconds=60, called=lambda: told.append(1))
    assert asked == ["a", "a", "b", "a", "a", "a", "b", "a", "a"]
    assert (len(found.without), len(found.hits), len(found.misses)) == (4, 2, 2)
    assert sum(told) == 8
    assert found.repeats is True
    assert (found.models >= 0.001).all()
    assert (found.misses >= found.models).all()
    assert found.hit is not None
    assert found.hit < 0.001


def test_a_subject_is_a_function_or_a_url() -> None:
    with pytest.raises(InvalidArgument, match="give MODULE:FUNCTION"):
        of("module:", spread=False, body=None, headers=[], timeout=1)
    function = of("asyncio:sleep", spread=False, body=None, headers=[], timeout=1)
    assert isinstance(function, Function)
    assert function.ask(0) is None
    function.close()
    assert asyncio.iscoroutinefunction(asyncio.sleep)
