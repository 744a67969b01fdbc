"""Prints one hash over generated pages, to compare machines and versions.

python tools/hash_pages.py
"""

from __future__ import annotations

import hashlib
import platform

import fontTools
import numpy

from boxwright.sample import generate_page

PAGES = 40


def main() -> None:
    digest = hashlib.sha256()
    for seed in range(PAGES):
        page = generate_page(seed)
        digest.update(page.image.tobytes())
        digest.update(page.boxes.tobytes())
        digest.update(str(page.image.shape).encode())
    versions = f"NumPy {numpy.__version__}, fontTools {fontTools.version}"
    print(f"Python {platform.python_version()}, {versions}: {digest.hexdigest()}")


if __name__ == "__main__":
    main()
