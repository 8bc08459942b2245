"""The part of `infercache._core` that `replay.rs` registers: a stub only."""

from collections.abc import Sequence

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
