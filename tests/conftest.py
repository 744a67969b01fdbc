"""Shared by all tests: `tests/` on the path, so that they can import the tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
