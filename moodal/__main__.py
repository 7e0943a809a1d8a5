"""``python -m moodal``."""

from __future__ import annotations

import sys

from moodal.cli import main

if __name__ == "__main__":
    sys.exit(main())
