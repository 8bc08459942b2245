"""Every example is executed: the blocks of README.md and docs/, and the docstrings of the package.

A page's `python` blocks run in order, as one module. In a `console` block each line that begins with `$ ` is run,
`infercache` and `python` being this environment's, and what stands below it must be what it prints (`...` matches
anything). Blocks of any other kind (`sh`, `text`, none) are not run; a `make` command anywhere must be one that the
Makefile has.

A block that says `server` after its kind (three backticks, `python server`) runs beside a real server of the test's
own, which stands where the page says `redis://localhost:6379`. Where no server program is, such blocks are left out,
and the test is skipped with the reason once the others have run.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

import pytest

import infercache
import servers

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benches" / "README.md"]
MODULES = ["infercache", *(found.name for found in pkgutil.walk_packages(infercache.__path__, "infercache."))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>[\w-]*)(?P<server> server)?\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
#: What stands in the pages for the server of the reader.
THEIRS = "redis://localhost:6379"


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    line: int  # of the page, at which its first line stands
    body: str
    needs_server: bool


@pytest.fixture
def beside_server() -> Iterator[Callable[[Block], Block]]:
    """Puts a server of the test's own into a block that needs one; it starts with the first."""
    started: list[servers.Server] = []

    def put(block: Block) -> Block:
        if not started:
            started.append(servers.Server(servers.binary()).__enter__())
        return block._replace(body=block.body.replace(THEIRS, started[0].url.removesuffix("/0")))

    yield put
    for server in started:
        server.close()


def runnable(page: Path, kind: str) -> Iterator[Block]:
    """The page's blocks of a kind; without those that need a server, and then the reason, where there is none."""
    is_left_out = False
    for block in blocks(page):
        if block.kind != kind:
            continue
        if block.needs_server and not servers.binaries():
            is_left_out = True
        else:
            yield block
    if is_left_out:
        servers.binary()  # skips, and says which programs would do


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            found["kind"],
            text.count("\n", 0, found.start()) + 2,
            inspect.cleandoc(found["body"]),
            found["server"] is not None,
        )
        for found in FENCE.finditer(text)
    ]


def compiled(page: Path, block: Block) -> CodeType:
    """The block as code whose line numbers are the page's; `await` may stand at the top level."""
    source = "\n" * (block.line - 1) + block.body
    return compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside_server: Callable[[Block], Block]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in runnable(page, "python"):
        code = compiled(page, beside_server(block) if block.needs_server else block)
        running = eval(code, module.__dict__)  # noqa: S307 (our own pages)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(running)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_console_of_the_page_prints_what_it_says(
    page: Path, tmp_path: Path, beside_server: Callable[[Block], Block]
) -> None:
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    for given in runnable(page, "console"):
        block = beside_server(given) if given.needs_server else given
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", block.body + "\n", re.MULTILINE):
            done = subprocess.run(
                ["bash", "-c", command], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{page.name}:{block.line}: {command}\n{done.stderr}"
            checker = doctest.OutputChecker()
            matches = checker.check_output(expected.rstrip() + "\n", done.stdout.rstrip() + "\n", doctest.ELLIPSIS)
            assert matches, f"{page.name}:{block.line}: {command} printed\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_commands_of_the_page_exist(page: Path) -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    quoted = [block.body for block in blocks(page)] + re.findall(r"`([^`\n]+)`", page.read_text())
    named = {name for text in quoted for name in re.findall(r"^(?:\$ )?make ([a-z-]+)", text, re.MULTILINE)}
    assert named <= made


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    if name == "infercache.__main__":
        pytest.skip("runs the command when imported")
    module: ModuleType = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_readme_shows_a_working_example_on_its_first_screen() -> None:
    first = next(block for block in blocks(ROOT / "README.md") if block.kind == "python")
    assert first.line + len(first.body.splitlines()) <= 40


def test_a_block_that_needs_a_server_runs_beside_one(tmp_path: Path, beside_server: Callable[[Block], Block]) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\n```\n\n```python server\nb = 'redis://localhost:6379/3'\n```\n")
    plain, needing = blocks(page)
    assert (plain.needs_server, needing.needs_server) == (False, True)
    assert re.fullmatch(r"b = 'redis://127\.0\.0\.1:\d+/3'", beside_server(needing).body)
