"""The compiled part of belvedere: a library without Python in it, loaded by data/views/native.py.

Optional: where no compiler is found, or it fails, the package installs without the library and renders the
same pixels in portable code.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("src/belvedere/data/views/kernels")
# floating point as written: the bytes of a view are the same on every machine
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
QUIET = ["-Wno-psabi"]  # wide vectors never leave a file


class BuildLibrary(build_ext):
    """Builds a plain library: nothing to export but what the source marks, and no PyInit among it."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


setup(
    ext_modules=[
        Extension(
            "belvedere.data.views._kernels",
            sources=sorted(str(path) for path in KERNELS.glob("*.c")),
            depends=sorted(str(path) for path in KERNELS.glob("*.h")),
            extra_compile_args=[] if sys.platform == "win32" else FLAGS + QUIET,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
