"""Runs a module with the stand-in for a GPU in place.

python -m tests.stand_in_gpu scripts.gpu.kernels --device cuda
"""

import runpy
import sys

from .plugin import install

if len(sys.argv) < 2:
    sys.exit(__doc__)
install()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
