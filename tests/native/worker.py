"""The process that runs emulated kernels: ASan must be in place before Python starts.

Called by emulator.py as `worker.py MODULE FD`; knows NumPy and the test module, never torch.
"""

import importlib.util
import sys
from multiprocessing.connection import Connection

from numpy import ndarray  # noqa: F401  (the module's functions take and return arrays)

MODULE = "wsfast_native_test"


def serve(path: str, descriptor: int) -> None:
    """Answer (function name, arguments) with ("result", value) or ("error", exception)."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    connection = Connection(descriptor)
    connection.send(("result", None))
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = ("result", getattr(module, name)(*arguments))
        except Exception as error:
            answer = ("error", error)
        connection.send(answer)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
