"""What somebody sees of a program at a terminal."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, pty, sys
pid, master = pty.fork()
if pid == 0:
    from infercache import progress
    progress._PATIENCE = 0.0
    exec(sys.argv.pop(1))
    os._exit(0)
shown = b""
while True:
    try:
        part = os.read(master, 65536)
    except OSError:
        break
    if not part:
        break
    shown += part
os.waitpid(pid, 0)
sys.stdout.buffer.write(shown)
"""


def shown_on_a_terminal(statements: str, *arguments: str, columns: int = 100, **environment: str) -> str:
    """What statements of Python, whose `sys.argv[1:]` are the arguments, write to a terminal; bars come at once.

    `NO_COLOR` is set only if `environment` has it.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, statements, *arguments],
        check=True,
        capture_output=True,
        env={**inherited, "TERM": "xterm", "COLUMNS": str(columns), **environment},
    )
    return done.stdout.decode()
