"""A sample of a log that a small cache can be tried with, and what it tells of the whole.

The filter is that of SHARDS (C. Waldspurger, N. Park, A. Garthwaite, I. Ahmad: "Efficient MRC construction with
SHARDS", FAST 2015): a hash of the key decides, so a key is in the sample with all of its requests or with none. A cache
of the size `rate × size` then meets the sample as the whole cache meets the whole log, whatever its policy (Waldspurger
et al., "Cache modeling and optimization using miniature simulations", ATC 2017).

Of what is *missed* the sample has its share: `missed = missed in the sample / rate`. What is not missed are hits:
`hits = all - missed`, and all are counted while the log is read. This is the size correction of SHARDS (SHARDS-adj adds
the requests that the sample lacks, or has too many, to those of the smallest distance): whether the few keys that are
asked for all the time happen to be in the sample then hardly matters.

How sure that is is asked in two ways, and the wider answer is shown:

- Misses are a sum over keys of which each is in the sample with probability `rate`, independently: the variance of
  the estimate is about `Σ missed(k)² × (1 - rate) / rate²` over the sample's keys `k` (Horvitz and Thompson, 1952).
  Twice its root holds in 19 of 20 samples, if what a key misses does not depend on which others are in the sample.
- It does depend, and the more the steeper the curve is. So the sample's keys are parted, by other bits of the hash,
  into eight samples of an eighth of the rate, each with an eighth of the cache. How far their eight estimates lie apart
  says how sure one is, and their mean by `√8` more (Student's t with 7 degrees of freedom, 2.365 for 19 of 20). The
  eight together take as long as the sample itself.

tests/test_simulate_sampling.py compares with exact runs of real traces. What neither sees: a cliff, such as
a loop that is exactly as long as the cache.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["PARTS", "bound", "hashes", "part_of", "threshold"]

#: Parts of a sample that are tried one by one, and Student's t for as many, two-sided, 95 %.
PARTS = 8
_STUDENT = 2.365
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


def part_of(keys: npt.NDArray[np.uint8], seed: int) -> U64:
    """(n,): in which of the parts of the sample each key, (n, 32), is: the filter looks at the hash's high bits,
    this at its low ones.
    """
    return hashes(keys, seed) % np.uint64(PARTS)


def bound(missed_by_key: npt.NDArray[np.generic], parts: list[float], rate: float) -> float:
    """How far an estimate of what is missed (requests or seconds) may be from the truth, in 19 of 20 samples.

    Args:
        missed_by_key: what the sample misses, by its keys.
        parts: the same estimate from each part of the sample alone.
        rate: the sample's, below 1.
    """
    by_key = 2.0 * float(np.sqrt(np.square(missed_by_key.astype(np.float64)).sum() * (1.0 - rate))) / rate
    by_part = _STUDENT * float(np.std(parts, ddof=1)) * math.sqrt((1.0 - rate) / len(parts))
    return max(by_key, by_part)
