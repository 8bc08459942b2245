"""What a cache would have done with a log of requests: reading logs, replaying them, and what came of it.

    files ─ lines ─ format ─ batches ─ sample ─ log ─ replay ─ outcomes ─ estimates ─ table, JSON, plots, page
            sources  formats  requests  sampling        trials                        report, plots, page

A replay is the cache's own code: the core's look-ups and stores, on a clock that the log moves (`_core._replay`).
docs/simulate.md says what is read, what is estimated, how sure that is, and what cannot be known.
"""
