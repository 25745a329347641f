"""Programs that tests start."""

import subprocess
from pathlib import Path


def run(*command: str | Path) -> None:
    """Fails with what the program printed unless it ends with status 0."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
