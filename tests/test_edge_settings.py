"""Every option of the edge: what its default is, what it accepts, and where that is written down."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from infercache.edge import Settings
from infercache.edge.option_tables import example, table
from infercache.errors import InvalidArgument

FILE = "examples/edge.toml"


def test_the_example_has_every_option_with_its_default(root: Path) -> None:
    text = (root / FILE).read_text()
    assert text == example(), f"write it anew: python -m infercache.edge.option_tables > {FILE}"
    assert Settings.load(root / FILE) == Settings()
    for option in fields(Settings):
        assert f"\n{option.name} = " in text or f"\n# {option.name} = " in text


def test_options_without_a_default_are_shown_with_a_value_that_is_accepted(root: Path, tmp_path: Path) -> None:
    shown = [line.removeprefix("# ") for line in (root / FILE).read_text().splitlines() if line.startswith("# ")]
    lines = [line for line in shown if line.split(" = ")[0] in Settings.__dataclass_fields__]
    path = tmp_path / "all.toml"
    path.write_text("\n".join([*lines, 'trusted_proxies = ["192.0.2.0/24"]']))
    loaded = Settings.load(path)
    assert loaded.model_versions and loaded.upstream == "http://model:8000"


def test_the_page_lists_every_option(root: Path) -> None:
    page = (root / "docs/edge.md").read_text()
    begin, end = (
        "<!-- options: begin, written by python -m infercache.edge.option_tables --table -->",
        "<!-- options: end -->",
    )
    assert page.partition(begin)[2].partition(end)[0].strip() == table().strip()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"listen": "8080"}, "give HOST:PORT"),
        ({"listen": ":8080"}, "give HOST:PORT"),
        ({"listen": "::1:8080"}, "give HOST:PORT"),
        ({"listen": "h:65536"}, "at most 65535"),
        ({"listen": "h:8_0"}, "give HOST:PORT"),
        ({"admin_listen": 5}, "give HOST:PORT"),
        ({"upstream": "model:8000"}, "give the server's URL"),
        ({"upstream": "http://"}, "give the server's URL"),
        ({"upstream": "http://h:port"}, "give the server's URL"),
        ({"upstream": "http://h/?x=1"}, "give the server's URL"),
        ({"upstream": "redis://h"}, "give the server's URL"),
        ({"upstream": "http://user:password@h"}, "ends up in logs"),
        ({"capacity": "much"}, "capacity"),
        ({"max_body": 0}, "max_body=0: a size is positive"),
        ({"max_body": True}, "max_body"),
        ({"body_timeout": "soon"}, "body_timeout"),
        ({"body_timeout": 0}, "longer than none"),
        ({"max_items": 0}, "from 1 on"),
        ({"max_items": 1.5}, "from 1 on"),
        ({"upstream_verify": "yes"}, "true or false"),
        ({"sharing": "some"}, "one of none, all"),
        ({"identity": "authorization"}, "give a list"),
        ({"identity": ["a b"]}, "the name of a header"),
        ({"identity": []}, "all callers are one"),
        ({"tenant_header": "x-tenant"}, "from whom is it believed"),
        ({"trusted_proxies": ["192.0.2.0/40"]}, "an address or a network"),
        ({"model_versions": ["e5"]}, "a table of names"),
        ({"model_versions": {"e5": 1}}, "the version of 'e5' is 1"),
        ({"model_list": "v1/models"}, "begins with '/'"),
        ({"tls_certificate": "x"}, "give both, or neither"),
        ({"upstream_key": "x"}, "give both, or neither"),
        ({"tls_client_ca": "x"}, "over TLS only"),
        ({"admin_on_listener": True}, "give admin_token_file too"),
        ({"log_level": "loud"}, "one of debug, info"),
        ({"max_bdy": "1MB"}, "'max_bdy' is no option; docs/edge.md lists them (did you mean 'max_body'?)"),
    ],
)
def test_a_wrong_option_is_told_by_its_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument) as told:
        Settings.load(**given)
    assert said in str(told.value)
    assert next(iter(given)) in str(told.value)


def test_given_options_come_before_the_files_and_versions_are_put_together(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text('max_items = 5\nttl = "10s"\n[model_versions]\na = "1"\nb = "1"\n')
    loaded = Settings.load(path, max_items=6, model_versions={"b": "2", "*": "3"})
    assert (loaded.max_items, loaded.ttl) == (6, 10.0)
    assert loaded.model_versions == {"a": "1", "b": "2", "*": "3"}


@pytest.mark.parametrize(
    ("text", "said"), [("a = ", "no TOML"), ("max_items = 0", "edge.toml: max_items=0"), (None, "cannot be read")]
)
def test_a_wrong_file_is_told_by_its_path(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "edge.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidArgument) as told:
        Settings.load(path)
    assert said in str(told.value) and "edge.toml" in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give --upstream URL"),
        (["--upstream", "nowhere"], "upstream='nowhere': give the server's URL"),
        (["--upstream", "http://h", "--listen", "x"], "listen='x': give HOST:PORT"),
        (["--upstream", "http://h", "--model-version", "e5"], "--model-version 'e5': give NAME=VERSION"),
        (["--upstream", "http://h", "--set", "max_body"], "--set 'max_body': give NAME=VALUE"),
        (["--upstream", "http://h", "--set", "max_body=none"], "max_body='none'"),
        (["--upstream", "http://h", "--set", "nothing=1"], "'nothing' is no option"),
        (["--upstream", "http://h", "--config", "/nowhere.toml"], "/nowhere.toml: cannot be read"),
        (["--upstream", "http://h", "--secret-file", "/nowhere"], "secret_file"),
        (["--upstream", "http://h", "--admin-token-file", "/nowhere"], "admin_token_file /nowhere: cannot be read"),
        (["--upstream", "http://h", "--l2", "http://h"], "l2"),
        (["--upstream", "http://h", "--tls-certificate", "/nowhere", "--tls-key", "/nowhere"], "tls_certificate"),
        (["--upstream", "http://h", "--listen", "h:1", "--admin-listen", "h:1"], "an address of their own"),
        (["--upstream", "http://h", "--listen", "192.0.2.1:0"], "listen=192.0.2.1:0: cannot listen there"),
        (["--upstream", "https://h", "--set", "upstream_ca=/nowhere"], "upstream_ca"),
    ],
)
def test_bad_usage_of_the_command_is_told_and_exits_with_2(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infercache", "serve", "--admin-listen", "", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("infercache serve: ") and said in last
    assert "Traceback" not in done.stderr
