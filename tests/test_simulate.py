"""`infercache simulate`: what a person types, sees and gets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infercache.cli import main
from infercache.workload import plots
from infercache.workload.charts import charts
from infercache.workload.page import page
from infercache.workload.report import Style, lines
from infercache.workload.simulation import Options, Simulation, simulate
from logs_of_requests import Asked, drawn, json_lines
from terminals import shown_on_a_terminal

COMMAND = Path(sys.executable).with_name("infercache")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return json_lines(tmp_path / "requests.jsonl", drawn(5_000, keys=900, seconds=86_400))


def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the installed command."""
    return subprocess.run([COMMAND, *arguments], check=False, input=given, capture_output=True, text=True)


def shown(simulation: Simulation) -> str:
    return "\n".join(lines(simulation, Style()))


def document(path: Path, *arguments: str) -> dict[str, Any]:
    out = path.with_suffix(".json")
    assert main(["simulate", str(path), *arguments, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_one_command_gives_a_table_and_every_kind_of_file(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the images need the extra 'workload'")
    out = {name: str(tmp_path / name) for name in ("found.json", "found.html", "images")}
    done = run(
        *("simulate", str(log), "--price", "2.50", "--json", out["found.json"], "--html", out["found.html"]),
        *("--png", out["images"]),
    )
    assert (done.returncode, done.stderr) == (0, "")
    for expected in ("5,000 requests", "hit ratio", "model time saved", "By life", "By model", "★", "█", "p99"):
        assert expected in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["requests"] == 5_000
    assert (tmp_path / "found.html").read_text().startswith("<!doctype html>")
    images = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert images == sorted(
        f"{name}.png"
        for name in (
            *("hit-ratio-by-size", "saved-by-size", "hit-ratio-by-model", "hit-ratio-by-ttl", "saved-by-ttl"),
            *("gpu-hours-by-size", "popularity"),
        )
    )
    assert all((tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG") for name in images)


def test_figures_are_those_of_the_log(log: Path) -> None:
    requests = drawn(5_000, keys=900, seconds=86_400)
    found = document(log, "--price", "3.6")
    seconds = sum(each.cost for each in requests)
    assert found["without_cache"]["model_seconds"] == pytest.approx(seconds)
    assert found["without_cache"]["money"] == pytest.approx(seconds / 1_000)
    assert found["without_cache"]["p50"] == pytest.approx(float(np.median([each.cost for each in requests])))
    assert found["different"] == len({each.key for each in requests})
    assert {group["model"]: group["requests"] for group in found["groups"]} == {
        name: sum(each.model == name for each in requests) for name in ("embed", "rank", "chat")
    }
    whole = next(trial for trial in found["trials"] if trial["size"] is None and trial["ttl"] is None)
    first: dict[str, Asked] = {}
    missed = [each for each in requests if first.setdefault(each.key, each) is each]
    assert whole["hits"] == 5_000 - len(missed)
    assert whole["saved_seconds"] == pytest.approx(seconds - sum(each.cost for each in missed), rel=1e-5)
    assert whole["mean"] == pytest.approx(sum(each.cost for each in missed) / 5_000 + 1.2e-6, rel=1e-5)
    assert sum(group["saved_seconds"] for group in whole["groups"]) == pytest.approx(whole["saved_seconds"], rel=1e-5)
    sizes = [trial["size"] for trial in found["trials"] if trial["ttl"] is None and trial["size"]]
    ratios = [trial["hit_ratio"] for trial in found["trials"] if trial["ttl"] is None and trial["size"]]
    assert sizes == sorted(sizes)
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(whole["hit_ratio"], abs=0.02), "100 % holds nearly everything"


def test_sizes_and_lives_are_those_that_are_asked_for(log: Path) -> None:
    found = document(log, "--size", "100kB,1MB", "--size", "50%", "--ttl", "none,1h30m", "--ttl", "90s")
    sizes = {trial["size"] for trial in found["trials"]}
    assert {100_000, 1_000_000, None} < sizes
    assert len(sizes) == 4
    assert [trial["ttl"] for trial in found["trials"] if trial["size"] is None] == [None, 5_400, 90]


def test_evictions_are_compared(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(log), "--size", "10%,30%", "--ttl", "none", "--eviction", "cost,s3-fifo"]) == 0
    assert "By eviction, life: until evicted" in capsys.readouterr().out
    found = document(log, "--size", "10%", "--ttl", "none", "--eviction", "cost,s3-fifo")
    cost, plain = (trial for trial in found["trials"] if trial["size"])
    assert (cost["eviction"], plain["eviction"]) == ("cost", "s3-fifo")
    assert cost["saved_seconds"] > plain["saved_seconds"]


@pytest.mark.parametrize("wrong", ["random", "S3-FIFO", "s3fifo", "costs"])
def test_an_unknown_eviction_is_refused_before_a_log_is_read(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(tmp_path / "no log"), "--eviction", f"cost,{wrong}"]) == 2
    assert f"eviction='{wrong}': give 's3-fifo' or 'cost'" in capsys.readouterr().err


def test_a_shorter_life_never_hits_more_where_everything_is_held(log: Path) -> None:
    found = document(log, "--size", "100MB", "--ttl", "none,6h,1h,1m")
    ratios = [trial["hit_ratio"] for trial in found["trials"] if trial["size"]]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[-1]


def test_the_latency_of_a_miss_is_the_models_and_of_a_hit_a_look_ups(tmp_path: Path) -> None:
    requests = [Asked(float(place), "m", f"k{place % 10}", 100, 2.0) for place in range(100)]
    path = json_lines(tmp_path / "log", requests)
    found = document(path, "--size", "1MB", "--ttl", "none", "--hit-time", "50us")["trials"][0]
    assert found["hit_ratio"] == 0.9
    assert (found["p50"], found["p99"]) == (pytest.approx(50e-6), pytest.approx(2.0 + 50e-6))
    assert found["mean"] == pytest.approx(0.2 + 50e-6)


def test_a_model_that_is_cheaper_than_a_look_up_is_told(tmp_path: Path) -> None:
    requests = [Asked(1.0, "tree", f"k{place % 7}", 10, 5e-7) for place in range(70)]
    requests += [Asked(2.0, "net", f"k{place % 7}", 10, 0.1) for place in range(70)]
    told = shown(simulate([str(json_lines(tmp_path / "log", requests))], Options()))
    assert "! tree: do not cache this: a run takes 500 ns, and a look-up 1.20 µs" in told
    assert "! net" not in told


def test_a_log_without_costs_gives_hit_ratios_and_says_how_to_get_more(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\nb\na\na\n")
    told = shown(simulate([str(tmp_path / "log")], Options()))
    assert "50.0 %" in told
    assert "model time saved" not in told
    assert "--cost 20ms" in told
    assert "1,536 bytes are taken for each (--bytes)" in told
    assert "nothing expires" in told


def test_many_models_are_no_endless_table(tmp_path: Path) -> None:
    requests = [Asked(float(place), f"m{place % 50}", f"k{place % 200}", 10, 0.1) for place in range(1_000)]
    found = simulate([str(json_lines(tmp_path / "log", requests))], Options(ttls=[None]))
    told = shown(found)
    rows = [line.split() for line in told.splitlines() if re.match(r"  (m\d+|30 others) ", line)]
    assert len(rows) == 21
    assert rows[-1][:4] == ["30", "others", "600", "80.0"]
    assert len(found.log.groups) == 50


def test_a_sample_shows_bounds_and_where_they_are_little_worth(log: Path) -> None:
    done = run("simulate", str(log), "--sample", "0.2", "--ttl", "none")
    assert re.search(r"\d+\.\d ± \d+\.\d %", done.stdout)
    assert "the requests of 20.0 % of the keys" in done.stdout
    assert "a larger --sample is surer" in done.stdout
    found = document(log, "--sample", "0.2", "--size", "1MB", "--ttl", "none")
    assert found["rate"] == 0.2
    assert found["requests"] == 5_000
    assert found["trials"][0]["hit_ratio_bound"] > 0
    exact = document(log, "--size", "1MB", "--ttl", "none")["trials"][0]
    assert abs(found["trials"][0]["hit_ratio"] - exact["hit_ratio"]) < 2 * found["trials"][0]["hit_ratio_bound"]


def test_json_on_standard_output_stands_alone(log: Path) -> None:
    done = run("simulate", str(log), "--size", "1MB", "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["requests"] == 5_000


def test_the_same_seed_gives_the_same_figures(log: Path) -> None:
    one, again, other = (document(log, "--sample", "0.3", "--seed", seed) for seed in ("5", "5", "6"))
    assert one == again
    assert one["trials"] != other["trials"]


def test_a_pipe_is_a_log_too(log: Path) -> None:
    done = run("simulate", "-", "--size", "1MB", given=log.read_text())
    assert done.returncode == 0
    assert "5,000 requests" in done.stdout


def test_a_log_that_is_too_large_to_hold_is_sampled(log: Path) -> None:
    found = simulate([str(log)], Options(most=1_000, ttls=[None]))
    assert found.log.rate < 1
    assert len(found.log.asked) <= 1_000
    assert found.requests == 5_000


def test_a_log_whose_answers_are_too_large_to_hold_is_sampled(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infercache.workload.simulation.MOST_BYTES", 300_000)
    found = simulate([str(log)], Options(ttls=[None]))
    assert found.log.rate < 1
    assert max(trial.bytes for trial in found.trials) * found.log.rate <= 300_000
    assert simulate([str(log)], Options(ttls=[None], rate=1.0)).log.rate == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--size", "much"], "--size='much': write a number with"),
        (["--size", "1kB"], "a cache has at least 65536 bytes"),
        (["--size=-5%"], "give percent"),
        (["--ttl", "soon"], "--ttl='soon'"),
        (["--ttl", "0s"], "--ttl"),
        (["--cost", "fast"], "--cost 'fast': give a time such as 20ms"),
        (["--bytes", "m=big"], "--bytes='big'"),
        (["--price", "free"], "--price 'free': give a price"),
        (["--sample", "2"], "--sample '2': give auto, or a part such as 0.01"),
        (["--sample", "nan"], "--sample"),
        (["--seed", "x"], "--seed 'x': give a whole number"),
        (["--hit-time", "1 week"], "--hit-time"),
        (["--requests-per-second", "0"], "--requests-per-second"),
        (["--field", "when=time"], "the fields are time, model"),
        (["--field", "key=nothing"], "no 'nothing' in it for --field key; there is 'time', 'model', 'key'"),
        (["--format", "xml"], "invalid choice: 'xml'"),
        (["--arrivals", "no-such-file"], "no-such-file: No such file"),
        (["--json", "no/such/folder"], "no/such/folder: No such file or directory"),
        (["--html", "/"], "Is a directory"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_exits_with_2(
    arguments: list[str], expected: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(log), "--size", "1MB", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_lives_of_a_log_without_times_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\nb\n")
    done = run("simulate", str(tmp_path / "log"), "--ttl", "1h")
    assert done.returncode == 2
    assert "--requests-per-second" in done.stderr
    done = run("simulate", str(tmp_path / "log"), "--ttl", "1h", "--requests-per-second", "0.001")
    assert done.returncode == 0
    assert "in 16.7 min" in done.stdout


def test_images_without_matplotlib_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["simulate", str(tmp_path / "nothing"), "--png", str(tmp_path / "images")]) == 1
    assert "pip install 'infercache[workload]'" in capsys.readouterr().err
    with pytest.raises(ImportError):
        plots.check()


class Page(HTMLParser):
    """What a page is made of, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.refers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.refers += [str(value) for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_is_light_and_dark(log: Path) -> None:
    text = page(simulate([str(log)], Options(price=2.0)))
    found = Page(text)
    assert not found.open
    assert found.tags.count("svg") == 7
    assert found.tags.count("table") == 3
    assert "script" not in found.tags
    assert found.refers == ["data:,"]
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "{{" not in text
    assert "nan" not in text.lower().replace("finance", "")


def test_names_from_the_log_are_text_on_the_page(tmp_path: Path) -> None:
    model = "<script>alert(1)</script>{{head}}"
    requests = [Asked(1.0, name, "k", 10, 0.1) for name in (model, "other", model)]
    text = page(simulate([str(json_lines(tmp_path / "log", requests))], Options()))
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{head}}" in text


def test_every_chart_is_drawn_whatever_the_log(tmp_path: Path) -> None:
    """One request, one key, no cost, one moment: axes still have a length."""
    pytest.importorskip("matplotlib", reason="the images need the extra 'workload'")
    for number, requests in enumerate(
        (
            [Asked(0.0, "m", "k", 0, 0.0)],
            [Asked(0.0, "m", "k", 0, 0.0)] * 3,
            [Asked(float(place), "m", f"k{place}", 1, 1.0) for place in range(5)],
        )
    ):
        found = simulate([str(json_lines(tmp_path / f"log{number}", requests))], Options())
        assert Page(page(found)).tags.count("svg") == len(charts(found))
        assert len(plots.save(found, tmp_path / str(number))) == len(charts(found))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_a_terminal_sees_how_far_it_is_and_colours(log: Path) -> None:
    pytest.importorskip("rich", reason="rich is not installed")

    def seen(*arguments: str, **more: str) -> str:
        command = "from infercache.cli import main; os._exit(main(sys.argv[1:]))"
        return shown_on_a_terminal(command, "simulate", str(log), "--size", "1MB", *arguments, columns=120, **more)

    everything = seen()
    assert "replaying" in everything
    assert "━" in everything
    assert "\033[1m" in everything
    plain = seen("--quiet", NO_COLOR="1")
    assert "replaying" not in plain
    assert "\033[" not in plain
