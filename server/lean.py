"""Keeps what only the rendering child needs out of the processes that serve: they decode no pixel.

Fact: importing pydicom imports every pixel library that is installed, which is 35 MiB a process; it does well without.
"""

import sys

PIXEL_LIBRARIES = ("numpy", "PIL", "gdcm", "openjpeg", "rle", "pylibjpeg", "jpeg_ls")


def keep_pixels_out() -> None:
    """Make the pixel libraries look as if they were not installed; for the start of a process, before other imports."""
    for name in PIXEL_LIBRARIES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None is how the import system says "no such module"
