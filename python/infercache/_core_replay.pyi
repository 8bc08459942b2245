"""The part of `infercache._core` that `replay.rs` and `log_lines.rs` register: a stub only."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from infercache._core import ManualClock, Store

def _replay(
    store: Store,
    clock: ManualClock,
    keys: NDArray[np.uint8],
    names: Sequence[str],
    asked: NDArray[np.uint32],
    times: NDArray[np.uint64],
    sizes: NDArray[np.uint64],
    costs: NDArray[np.float32],
    models: NDArray[np.uint16],
) -> bytes:
    """Replays requests through a cache whose clock this is: a byte for each, 0 not found and stored, 1 found, 2 not
    found and refused, since it is larger than the cache. `keys` has 32 bytes a row; `asked` numbers its rows, `models`
    the names; times are in milliseconds of the clock, costs in seconds.

    Raises:
        InvalidArgument: arrays of other types or lengths, numbers of nothing, times that go backwards.
    """

#: Lines, keys, groups, times, sizes, costs, the groups' workloads and models, lines that were not understood. Lines and
#: groups are uint32, times, sizes and costs float64, keys 32 bytes each, as bytes; lines are counted in their block.
LogColumns: TypeAlias = tuple[bytes, bytes, bytes, bytes, bytes, bytes, list[tuple[str, str]], bytes]

def _log_objects(
    block: bytes, names: Sequence[str | None], units: tuple[float, float], most: tuple[float, float], workload: str
) -> LogColumns:
    """Columns of a block of lines of JSON.

    Args:
        block: the lines.
        names: the members of time, model, version, workload, question, bytes and cost; None: the log has none.
        units: seconds of the units of time and cost.
        most: the largest size and cost.
        workload: of lines that name none.
    """

def _log_rows(
    block: bytes,
    places: Sequence[int | None],
    columns: int,
    delimiter: int,
    units: tuple[float, float],
    most: tuple[float, float],
    workload: str,
) -> LogColumns:
    """The same of a table without quotes, of so many columns, parted by a byte; `places`: the fields' columns."""
