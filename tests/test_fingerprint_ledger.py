"""Unchanged files are not read again; nothing stale, foreign or corrupt is believed; nothing here is ever an error."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import fingerprints
from infercache import UnusableCacheFolder, model_fingerprint
from infercache.fingerprint import ledger
from infercache.fingerprint.ledger import Ledger, Stamp, default_folder

STATE = fingerprints.state()
EXPECTED = fingerprints.text(fingerprints.parameters(STATE))


def settle(path: Path) -> None:
    """Makes a file look as if nobody had touched it for long; ctime, which nobody can set, is waited for."""
    os.utime(path, ns=(10**18, 10**18))
    while not Stamp.of(path.stat()).is_settled(time.time_ns()):
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="the real path of a file is found otherwise there")
def test_what_is_kept_of_a_file_is_found_with_five_questions_to_the_system(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However deep the folder lies, and whatever else a path of 64 shards costs."""
    asked: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def counting(*args: Any, **options: Any) -> Any:
            asked.append(name)
            return call(*args, **options)

        return counting

    def questions(files: int) -> int:
        folder = tmp_path / f"of {files}" / "a" / "b" / "c"
        folder.mkdir(parents=True)
        names = list(STATE)
        for number in range(files):
            one = {f"{number}.{name}": STATE[name] for name in names}
            save_file(one, folder / f"model-{number + 1:05}-of-{files:05}.safetensors")
            settle(folder / f"model-{number + 1:05}-of-{files:05}.safetensors")
        read(folder)
        with monkeypatch.context() as patch:
            for name in ("lstat", "stat", "open", "fstat", "read", "close", "readlink", "scandir", "listdir"):
                patch.setattr(os, name, counted(name))
            asked.clear()
            assert read(folder)[1] == 0
        return len(asked)

    assert (questions(9) - questions(2)) / 7 <= 5


class Read:
    """Asks for a fingerprint, and says how many bytes were read for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, path: Path, **options: Any) -> tuple[str, int]:
        totals: list[int] = []
        found = model_fingerprint(
            path, progress=lambda done, total: totals.append(total), cache_dir=self.folder, **options
        )
        return found, max(totals, default=0)

    @property
    def entries(self) -> list[Path]:
        inside = self.folder / "fingerprints"
        return sorted(inside.iterdir()) if inside.is_dir() else []


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return Read(tmp_path / "cache")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    save_file(STATE, path)
    settle(path)
    return path


BYTES = sum(value.nbytes for value in STATE.values())


def test_an_unchanged_file_is_not_read_again(model: Path, read: Read) -> None:
    assert read(model) == (EXPECTED, BYTES)
    assert read(model) == (EXPECTED, 0)
    link = model.with_name("link.safetensors")
    link.symlink_to(model)
    assert read(link) == (EXPECTED, 0)
    assert model_fingerprint(model, cache_dir=False) == EXPECTED


def test_another_process_does_not_read_it_again(model: Path, read: Read) -> None:
    read(model)
    script = (
        "import sys, infercache\n"
        "def refuse(done, total): raise SystemExit('it was read')\n"
        "print(infercache.model_fingerprint(sys.argv[1], progress=refuse))"
    )
    environment = {**os.environ, "INFERCACHE_CACHE_DIR": str(read.folder)}
    command = [sys.executable, "-c", script, str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == EXPECTED


def test_of_a_folder_only_the_changed_files_are_read(tmp_path: Path, read: Read) -> None:
    root = tmp_path / "model"
    root.mkdir()
    save_file(STATE, root / "model.safetensors")
    (root / "config.json").write_text("{}")
    settle(root / "model.safetensors")
    settle(root / "config.json")
    first, total = read(root)
    assert total == BYTES + 2
    (root / "config.json").write_text('{"a":1}')
    second, total = read(root)
    assert total == 7
    assert first != second


def overwritten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def overwritten_with_its_old_mtime(path: Path) -> None:
    before = path.stat()
    overwritten(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_with_its_old_mtime(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def touched(path: Path) -> None:
    os.utime(path, ns=(5, 5))


@pytest.mark.parametrize(
    "change",
    [overwritten, overwritten_with_its_old_mtime, replaced_with_its_old_mtime, touched],
    ids=lambda f: f.__name__,
)
def test_a_changed_file_is_read_again(change: Callable[[Path], None], model: Path, read: Read) -> None:
    read(model)
    change(model)
    found, total = read(model)
    assert total == BYTES
    assert (found == EXPECTED) == (change is touched)


def test_a_file_that_was_just_modified_is_not_written_down(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "m.safetensors"
    save_file(STATE, path)
    os.utime(path)
    assert read(path) == (EXPECTED, BYTES)
    assert read.entries == []
    assert read(path) == (EXPECTED, BYTES)
    os.utime(path, ns=(2 * 10**18, 2 * 10**18))  # the future of another machine's clock
    read(path)
    assert read.entries == []


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux dates what is written through a memory map")
def test_what_is_written_through_a_memory_map_is_seen(tmp_path: Path, read: Read) -> None:
    """A page that is still to be written back is dated no more when it is written to again."""
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(8192))
    if "tmpfs" in _file_system(path):
        pytest.skip("the temporary folder is in memory, where pages are never clean")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[0] = 1
        while not Stamp.of(path.stat()).is_settled(time.time_ns()):
            time.sleep(0.05)
        first, _ = read(path)
        mapped[0] = 2
        again, _ = read(path)
    assert first != again
    assert again == model_fingerprint(path, cache_dir=False)


def _file_system(path: Path) -> str:
    """The kind of file system that a path lies on."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    on = [(where, kind) for where, kind in mounts if path.resolve().is_relative_to(where)]
    return max(on, key=lambda mount: len(mount[0]))[1]


def test_what_settled_means_is_two_seconds_for_both_times() -> None:
    second = 10**9
    assert Stamp(1, 1, 8 * second, 8 * second).is_settled(10 * second)
    assert not Stamp(1, 1, 8 * second + 1, 0).is_settled(10 * second)
    assert not Stamp(1, 1, 0, 8 * second + 1).is_settled(10 * second)


def test_by_content_and_by_parameters_are_kept_apart(model: Path, read: Read) -> None:
    read(model)
    found, total = read(model, by="content")
    assert (found, total) == (fingerprints.text(fingerprints.content(model)), model.stat().st_size)
    assert read(model) == (EXPECTED, 0)
    assert read(model, by="content") == (found, 0)


def test_a_corrupt_or_foreign_entry_is_ignored_and_written_anew(model: Path, read: Read) -> None:
    read(model)
    (entry,) = read.entries
    good = entry.read_bytes()
    head, _, body = good.partition(b"\n")
    digest = json.loads(body)["sheet"]["parameters"][0][3]
    forged = body.replace(digest.encode(), b"0" * 64)
    later = json.dumps({**json.loads(head), "version": ledger.VERSION + 1}).encode()
    for bad in (b"", b"\n", b"{}", b"[]\n[]", b"\xff" * 100, good[:-1], good[:40], head + b"\n" + forged, body,
                later + b"\n" + body, b"[" * 100_000, head + b"\n{}"):  # fmt: skip
        entry.write_bytes(bad)
        assert read(model) == (EXPECTED, BYTES), bad[:50]
        assert entry.read_bytes() == good
        assert read(model) == (EXPECTED, 0)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_whatever_an_entry_holds_is_no_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, keep: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "whatever"
    kept = Ledger(str(folder))
    stamp = Stamp(1, 2, 3, 4)
    kept.keep("/m", "content", stamp, {"content": "ab"})
    (entry,) = (folder / "fingerprints").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(good[:keep] + content)
    found = kept.find("/m", "content", stamp)
    assert found == ({"content": "ab"} if entry.read_bytes() == good else None)


def test_an_entry_of_another_file_or_stamp_is_not_taken(tmp_path: Path) -> None:
    kept = Ledger(str(tmp_path))
    stamp = Stamp(1, 2, 3, 4)
    kept.keep("/m", "content", stamp, {"content": "ab"})
    assert kept.find("/m", "content", stamp) == {"content": "ab"}
    for place in range(4):
        assert kept.find("/m", "content", Stamp(*[9 if at == place else one for at, one in enumerate(stamp)])) is None
    (entry,) = (tmp_path / "fingerprints").iterdir()
    other = Path(kept._place("/other", "content"))
    entry.rename(other)
    assert kept.find("/other", "content", stamp) is None


@pytest.fixture
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_warned", set())


@pytest.mark.usefixtures("unwarned")
def test_a_folder_that_cannot_be_written_warns_once_and_harms_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file, no folder")
    reader = Read(tmp_path / "occupied")
    with pytest.warns(UnusableCacheFolder, match="cannot be written"):
        assert reader(model) == (EXPECTED, BYTES)
    assert reader(model) == (EXPECTED, BYTES)  # warnings are errors here: it does not warn again


@pytest.mark.usefixtures("unwarned")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_warns_once_and_harms_nothing(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    with pytest.warns(UnusableCacheFolder, match="cannot be written"):
        assert Read(folder)(model) == (EXPECTED, BYTES)


@pytest.mark.usefixtures("unwarned")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_not_trusted(mode: int, model: Path, read: Read) -> None:
    read(model)
    inside = read.folder / "fingerprints"
    inside.chmod(mode)
    with pytest.warns(UnusableCacheFolder, match="others may write"):
        assert read(model) == (EXPECTED, BYTES)
    inside.chmod(0o700)
    assert read(model) == (EXPECTED, 0)


@pytest.mark.usefixtures("unwarned")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_or_entry_of_another_user_is_not_trusted(model: Path, read: Read) -> None:
    read(model)
    (entry,) = read.entries
    os.chown(entry, 12345, 12345)
    assert read(model) == (EXPECTED, BYTES)
    inside = read.folder / "fingerprints"
    os.chown(inside, 12345, 12345)
    with pytest.warns(UnusableCacheFolder, match="another user"):
        assert read(model) == (EXPECTED, BYTES)


def test_trust_is_in_oneself_and_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's number is made up, for one machine has not all of them."""
    owner = tmp_path.stat().st_uid
    tmp_path.chmod(0o700)
    for user in (owner, owner + 1):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert ledger._is_trusted(tmp_path.stat()) == (user == owner or owner == 0)


@pytest.mark.usefixtures("unwarned")
def test_links_and_pipes_in_place_of_folder_or_entry_are_not_followed(model: Path, read: Read, tmp_path: Path) -> None:
    read(model)
    (entry,) = read.entries
    real = tmp_path / "real.json"
    entry.rename(real)
    entry.symlink_to(real)
    assert read(model) == (EXPECTED, BYTES)
    assert not entry.is_symlink()
    entry.unlink()
    os.mkfifo(entry, 0o600)
    assert read(model) == (EXPECTED, BYTES)
    inside = read.folder / "fingerprints"
    inside.rename(tmp_path / "moved")
    inside.symlink_to(tmp_path / "moved", target_is_directory=True)
    with pytest.warns(UnusableCacheFolder, match="a link to one"):
        assert read(model) == (EXPECTED, BYTES)


def test_what_is_written_is_for_its_owner_alone_and_json(model: Path, read: Read) -> None:
    read(model)
    (entry,) = read.entries
    assert entry.stat().st_mode & 0o777 == 0o600
    assert entry.parent.stat().st_mode & 0o777 == 0o700
    head, body = map(json.loads, entry.read_bytes().splitlines())
    assert (head["format"], head["version"]) == ("infercache fingerprint", 1)
    assert body["path"] == str(model.resolve())


def test_old_entries_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MOST_ENTRIES", 8)
    kept = Ledger(str(tmp_path))
    stamp = Stamp(1, 2, 3, 4)
    for number in range(30):
        kept.keep(f"/m{number}", "content", stamp, {"content": str(number)})
        os.utime(kept._place(f"/m{number}", "content"), ns=(number, number))
    found = [kept.find(f"/m{number}", "content", stamp) is not None for number in range(30)]
    assert 6 <= sum(found) <= 8
    assert found == sorted(found)


def test_where_entries_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFERCACHE_CACHE_DIR", str(tmp_path / "chosen"))
    assert default_folder() == str(tmp_path / "chosen")
    monkeypatch.setenv("INFERCACHE_CACHE_DIR", "")
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    monkeypatch.setenv(variable, str(tmp_path))
    assert default_folder() == str(tmp_path / "infercache")
    monkeypatch.setenv(variable, "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if sys.platform != "win32":
        assert default_folder() == str(tmp_path / "home" / ".cache" / "infercache")


def test_threads_of_one_process_may_share_the_folder(model: Path, read: Read) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(read(model)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [EXPECTED] * 8
    assert read(model) == (EXPECTED, 0)
    assert len(read.entries) == 1  # no temporary file is left


def ask(path: str, folder: str, times: int) -> set[str]:
    """Asks again and again, while others do, and takes the entry away in between."""
    found = set()
    for _ in range(times):
        found.add(model_fingerprint(path, cache_dir=folder, progress=False))
        for entry in (Path(folder) / "fingerprints").glob("*.json"):
            entry.unlink(missing_ok=True)
    return found


def test_several_processes_may_share_the_folder(model: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(), multiprocessing.get_context("spawn").Pool(3) as pool:
        given = [(str(model), str(tmp_path / "cache"), 40)] * 3
        assert pool.starmap(ask, given) == [{EXPECTED}] * 3
