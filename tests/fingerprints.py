"""The slow oracle of fingerprints: docs/model-fingerprint.md in plain Python, without infercache's readers."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blake3
import numpy as np

import reference

CONTEXT = "infercache 2026-11-24 model fingerprint v1"


def text(document: str) -> str:
    """The fingerprint of a document."""
    return "fp1:" + blake3.blake3(document.encode(), derive_key_context=CONTEXT).hexdigest()


def content(path: Path) -> str:
    """The document of a file that counts by its bytes."""
    return '{"content":"' + blake3.blake3(path.read_bytes()).hexdigest() + '"}'


def parameters(state: Mapping[str, Any]) -> str:
    """The document of a state dict."""
    return '{"parameters":' + reference.form(dict(state)) + "}"


def folder(files: Mapping[str, str]) -> str:
    """The document of a folder, from the documents of what is in it."""
    return '{"files":' + reference.object_of(list(files.items())) + "}"


def state(
    seed: int = 1, names: tuple[str, ...] = ("a.weight", "a.bias", "b.weight")
) -> dict[str, np.ndarray[Any, Any]]:
    """Some parameters."""
    numbers = np.random.default_rng(seed)
    return {name: numbers.random((3, 4), dtype=np.float32) for name in names}


def safetensors(entries: Mapping[str, Any], data: bytes, padding: int = 0) -> bytes:
    """A safetensors file of this header, whatever it says."""
    header = json.dumps(entries).encode() + b" " * padding
    return struct.pack("<Q", len(header)) + header + data


def stamp(path: Path) -> str:
    """What tells whether a file was written."""
    return f"{path.stat().st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}"
