"""Loads a process without what it does not need, and quickly: for the start of it, around its imports.

Facts: importing pydicom imports every pixel library that is installed, which is 35 MiB a process, and requests;
structlog imports rich. They do well without. The collector walks all that imports have made so far, again and again: a
fifth of a start. What is loaded stays, so later rounds need not walk it either.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PIXEL_LIBRARIES = ("numpy", "PIL", "gdcm", "openjpeg", "rle", "pylibjpeg", "jpeg_ls")
FOR_TERMINALS = ("rich",)


@contextmanager
def loading(*unused: str) -> Iterator[None]:
    """Import what the block names; the pixel libraries and `unused` look from then on as if they were not installed."""
    for name in (*PIXEL_LIBRARIES, "requests", *unused):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None is how the import system says "no such module"
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
