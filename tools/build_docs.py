"""Builds the documents into a site, build/docs/site; a link that leads nowhere is an error.

They are copied first, with the folders that they lie in, since links lead from one folder to another.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "build" / "docs" / "source"
SHOWN = ["README.md", "LOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*", "examples/*.*", "examples/*/README.md"]
SHOWN += ["src/mobilemoe/assets/*/README.md"]


def main() -> None:
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path in (path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file()):
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    without_notice = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # of other programs by the theme's authors
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    sys.exit(subprocess.run(command, cwd=ROOT, env=without_notice).returncode)


if __name__ == "__main__":
    main()
