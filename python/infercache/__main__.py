"""`python -m infercache`: the command `infercache`."""

from __future__ import annotations

import sys

from infercache.cli import main

if __name__ == "__main__":
    sys.exit(main())
