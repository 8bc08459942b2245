"""A sample of a log that a small cache can be tried with, and what it tells of the whole.

The filter is that of SHARDS (C. Waldspurger, N. Park, A. Garthwaite, I. Ahmad: "Efficient MRC construction with
SHARDS", FAST 2015): a hash of the key decides, so a key is in the sample with all of its requests or with none. A cache
of the size `rate × size` then meets the sample as the whole cache meets the whole log, whatever its policy (Waldspurger
et al., "Cache modeling and optimization using miniature simulations", ATC 2017).

Of what is *missed* the sample has its share: `missed = missed in the sample / rate`. What is not missed are hits:
`hits = all - missed`, and all are counted while the log is read. This is the size correction of SHARDS (SHARDS-adj adds
the requests that the sample lacks, or has too many, to those of the smallest distance): whether the few keys that are
asked for all the time happen to be in the sample then hardly matters.

The bound: misses are a sum over keys of which each is in the sample with probability `rate`, independently, so
(Horvitz and Thompson, 1952) the variance of the estimate is about

    Σ over keys k in the sample of  missed(k)² × (1 - rate) / rate²

and the text shows twice its root: in 19 of 20 samples the truth lies within, if nothing else went wrong. What else may
is that the small cache does not hold its share: tests/test_simulate_sampling.py compares with exact runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["bound", "hashes", "threshold"]

U64 = npt.NDArray[np.uint64]


def hashes(keys: npt.NDArray[np.uint8], seed: int) -> U64:
    """(n,) uniform numbers of 64 bits, by which keys, (n, 32), are in the sample or not.

    The first eight bytes of a key are as good as random; the seed makes another sample of them (splitmix64's finisher).
    """
    word = np.ascontiguousarray(keys[:, :8]).view("<u8").ravel().astype(np.uint64)
    with np.errstate(over="ignore"):
        word += np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1))
        word ^= word >> np.uint64(30)
        word *= np.uint64(0xBF58476D1CE4E5B9)
        word ^= word >> np.uint64(27)
        word *= np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    return word


def threshold(rate: float) -> np.uint64:
    """Below it lie the hashes of a sample of this rate, 0 < rate < 1."""
    return np.uint64(int(rate * 2.0**64))


def bound(missed_by_key: npt.NDArray[np.float64] | npt.NDArray[np.intp], rate: float) -> float:
    """Twice the standard error of an estimate of what is missed (requests or seconds), by the sample's keys."""
    if rate >= 1.0:
        return 0.0
    return 2.0 * float(np.sqrt(np.square(missed_by_key.astype(np.float64)).sum() * (1.0 - rate))) / rate
