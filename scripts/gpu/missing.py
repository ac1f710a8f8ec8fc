"""Prints the wheels of a folder whose package is not installed here. Needs nothing but Python."""

import sys
from importlib import metadata
from pathlib import Path


def installed(package: str) -> bool:
    """Whether this environment has the package, in any version."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    if not installed(wheel.name.split("-", 1)[0].replace("_", "-")):
        print(wheel)
