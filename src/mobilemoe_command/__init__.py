"""The command `mobilemoe`, apart from the package, whose import takes a moment that an interrupt may fall into."""

from __future__ import annotations

import sys


def main() -> None:
    """`mobilemoe.cli.main`; an interrupt before it can be called ends as one behind it does."""
    try:
        from mobilemoe.cli import main as cli
    except KeyboardInterrupt:
        print("mobilemoe: interrupted", file=sys.stderr)
        sys.exit(130)
    cli.main()
