"""Which files of a folder count, and which of them are one set of weights.

What changes answers counts: weights, configuration, tokenizer, templates, code. What cannot does not: hidden files
(version control, download bookkeeping), documentation by its usual names, bytecode, leavings of file managers. A file
that is not known to be harmless counts: a needless recomputation is the smaller evil.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field

from infercache.errors import InvalidArgument, InvalidModel, shown
from infercache.fingerprint import safetensors

__all__ = ["Weights", "counted", "set_of", "sets"]

#: `model-00001-of-00003.safetensors`: the name without it, the part's number, how many there are.
_PART = re.compile(r"^(?P<base>.+)-(?P<part>\d{5,9})-of-(?P<parts>\d{5,9})(?P<ending>\.[^./\\]+)$")
_DOCUMENTATION = re.compile(
    r"(readme|licen[cs]e|notice|authors|changelog|contributing|code_of_conduct|use_policy|citation)"
    r"(([._-][^.]*)?\.(md|txt|rst|pdf|html|cff))?",
    re.IGNORECASE,
)
_CLUTTER = {"__pycache__", "__macosx", "thumbs.db", "desktop.ini", "cvs"}
_INDEX = ".safetensors.index.json"


@dataclass(slots=True)
class Weights:
    """Files that are one set of weights.

    Attributes:
        name: what the file would be called if it were one.
        format: "safetensors" or "gguf".
        files: relative names of the parts, in order.
        index: parameter name to file name, where an index lists them.
    """

    name: str
    format: str
    files: list[str] = field(default_factory=list)
    index: dict[str, str] | None = None


def counted(root: str) -> dict[str, str]:
    """Relative name (with `/`) to path of every file in the folder that counts. Links are followed.

    Raises:
        InvalidArgument: it is a hub's cache, of which one snapshot is the model; or nothing in it counts.
        InvalidModel: a link that leads in a circle or nowhere, or something that is no file.
    """
    _refuse_hub_cache(root)
    found: dict[str, str] = {}
    folders = [(root, "", frozenset([_identity(root)]))]
    while folders:
        folder, prefix, above = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_left_out(entry.name):
                    continue
                # What a folder's listing says of a plain file need not be asked again.
                mode = stat.S_IFREG if entry.is_file(follow_symlinks=False) else _mode(entry.path)
                if stat.S_ISDIR(mode):
                    identity = _identity(entry.path)
                    if identity in above:
                        raise InvalidModel(f"{entry.path}: a link that leads in a circle; remove it")
                    folders.append((entry.path, f"{prefix}{entry.name}/", above | {identity}))
                elif stat.S_ISREG(mode):
                    found[prefix + entry.name] = entry.path
                else:
                    raise InvalidModel(
                        f"{entry.path}: neither a file nor a folder; remove it, or name the model's file"
                    )
    if not found:
        raise InvalidArgument(
            f"{root}: no file in this folder counts as part of a model (hidden files and documentation do not); "
            "name the folder that the weights lie in"
        )
    return found


def _is_left_out(name: str) -> bool:
    lower = name.lower()
    return (
        name.startswith(".")
        or lower in _CLUTTER
        or lower.endswith(".pyc")
        or _DOCUMENTATION.fullmatch(name) is not None
    )


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        raise InvalidModel(f"{path}: a link that leads nowhere; download the model again, or remove it") from None


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _refuse_hub_cache(root: str) -> None:
    """A folder `models--owner--name` holds every revision: which one is meant has to be said."""
    snapshots = os.path.join(root, "snapshots")
    if os.path.isdir(snapshots) and os.path.isdir(os.path.join(root, "blobs")):
        names = sorted(os.listdir(snapshots))
        raise InvalidArgument(
            f"{root}: the cache of a model hub, which holds every revision; name one of its {len(names)} snapshots"
            + "".join(f", such as {os.path.join(snapshots, name)}" for name in names[:1])
        )


def part_of(name: str) -> tuple[str, int, int] | None:
    """Of a part's file name: the whole's name, the part's number from 1 on, how many parts there are."""
    found = _PART.match(name)
    if found is None:
        return None
    return found["base"] + found["ending"], int(found["part"]), int(found["parts"])


def format_of(name: str) -> str | None:
    """The format whose parameters are told apart, by the file's ending."""
    return {".safetensors": "safetensors", ".gguf": "gguf"}.get(os.path.splitext(name)[1].lower())


def sets(root: str, files: dict[str, str]) -> tuple[list[Weights], dict[str, str]]:
    """The sets of weights among the files, and what is in none of them.

    Raises:
        InvalidModel: a part is missing, or an index does not fit.
    """
    found: dict[str, Weights] = {}
    taken: set[str] = set()
    for name in sorted(files):
        if name.lower().endswith(_INDEX):
            weights = _indexed(root, name, files)
            found[weights.name] = weights
            taken |= {name, *weights.files}
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for name in sorted(files.keys() - taken):
        kind = format_of(name)
        if kind is not None:
            whole, number, many = part_of(name) or (name, 1, 1)
            parts.setdefault(whole, []).append((number, many, name))
            taken.add(name)
    for whole, its in parts.items():
        if whole in found:
            raise InvalidModel(
                f"{os.path.join(root, its[0][2])}: {shown(whole)} has an index, which does not list this file; remove "
                'one of the two, or pass by="content"'
            )
        found[whole] = Weights(whole, str(format_of(whole)), _complete(root, whole, its))
    return [found[name] for name in sorted(found)], {name: files[name] for name in files.keys() - taken}


def set_of(path: str) -> tuple[str, Weights] | None:
    """Of a file that is an index, or one of several parts: its folder and the whole set. Otherwise None.

    Raises:
        InvalidArgument: a part of a format whose parts are no set here.
        InvalidModel: a part is missing, or an index does not fit.
    """
    root, name = os.path.split(path)
    root = root or os.curdir
    if name.lower().endswith(_INDEX):
        return root, _indexed(root, name, {other: os.path.join(root, other) for other in os.listdir(root)})
    part = part_of(name)
    lower = name.lower()
    if lower.endswith(".index.json") or (part is not None and part[2] > 1 and format_of(name) is None):
        raise InvalidArgument(
            f'{path}: one file of a model of several; name their folder, or pass by="content" for this file alone'
        )
    if part is None or format_of(name) is None:
        return None
    its = [
        (found[1], found[2], other)
        for other in os.listdir(root)
        if (found := part_of(other)) is not None and found[0] == part[0] and found[2] == part[2]
    ]
    return root, Weights(part[0], str(format_of(name)), _complete(root, part[0], its))


def _indexed(root: str, name: str, files: dict[str, str]) -> Weights:
    path = os.path.join(root, *name.split("/"))
    listed = safetensors.index(path)
    prefix = name[: len(name) - len(os.path.basename(name))]
    its = sorted({prefix + file for file in listed.values()})
    missing = [file for file in its if file not in files]
    if missing:
        raise InvalidModel(
            f"{path}: {len(missing)} of the {len(its)} files that it names are missing, such as {shown(missing[0])}; "
            "download the model again, or remove the index if it is a leftover"
        )
    return Weights(name[: -len(".index.json")], "safetensors", its, listed)


def _complete(root: str, whole: str, its: list[tuple[int, int, str]]) -> list[str]:
    its = sorted(its)
    many = its[0][1]
    if any(other != many for _, other, _ in its) or [number for number, _, _ in its] != list(range(1, many + 1)):
        there = ", ".join(os.path.basename(name) for _, _, name in its[:3])
        raise InvalidModel(
            f"{os.path.join(root, whole)}: its parts are not those of one model, each once ({there}"
            f'{", …" if len(its) > 3 else ""}); download what is missing, remove leftovers, or pass by="content"'
        )
    return [name for _, _, name in its]
