from .emulator import emulator  # noqa: F401
