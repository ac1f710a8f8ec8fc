"""Looks into a built wheel: what it holds, what its libraries need, and what must not be there.

Prints name, size, platform tag and the libraries; one line per offence on stderr and exit status 1
where something is wrong.
"""

import argparse
import re
import sys
import zipfile
from pathlib import Path

LIBRARIES = {"cpu": {"_C.so"}, "cu12": {"_C.so", "_C_cuda.so"}, "cu13": {"_C.so", "_C_cuda.so"}}
ALLOWED = re.compile(r"wsfast/|wsfast-[^/]+\.dist-info/")
BENCHMARKS = "wsfast/benchmarks/"  # some peers of the benchmarks are C++, compiled when they run
FORBIDDEN = re.compile(r"(^|/)(tests?|csrc|build|__pycache__)/|\.(cpp|cu|cuh|h|o|pyc)$")
CLASSIC_ABI = re.compile(rb"_ZN\w*?(?:2at|3c10|5torch)\w+")


def file_offences(names: list[str], variant: str) -> list[str]:
    """Files that must not be in the wheel, and libraries that are missing."""
    found = [
        f"{name} does not belong into a wheel"
        for name in names
        if not ALLOWED.match(name) or (FORBIDDEN.search(name) and not name.startswith(BENCHMARKS))
    ]
    libraries = {name.removeprefix("wsfast/") for name in names if name.endswith(".so")}
    if libraries != LIBRARIES[variant]:
        found.append(f"libraries are {sorted(libraries)}, expected {sorted(LIBRARIES[variant])}")
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        found.append("the licence is missing")
    return found


def library_offences(name: str, data: bytes, paths: list[str], version: str) -> list[str]:
    """Debug sections, folders of the build machine, symbols outside the stable ABI."""
    found = [f"{name} has a {section.decode()} section" for section in (b".debug_info", b".symtab")
             if section + b"\0" in data]  # fmt: skip
    found += [f"{name} names the folder {path}" for path in paths if path.encode() + b"/" in data]
    symbols = sorted({symbol.decode() for symbol in CLASSIC_ABI.findall(data)})
    found += [f"{name} needs {symbol}" for symbol in symbols[:3]]
    if f"wsfast build: version={version.split('+')[0]};".encode() not in data:
        found.append(f"{name} does not say that it was built from wsfast {version}")
    return found


def check(wheel: Path, variant: str, paths: list[str]) -> list[str]:
    """Everything that is wrong with a wheel; prints what it is."""
    _, version, *_, platform = wheel.stem.split("-")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        offences = file_offences(names, variant)
        libraries = {name: archive.read(name) for name in names if name.endswith(".so")}
        metadata = archive.read(next(n for n in names if n.endswith(".dist-info/METADATA")))
    if f"\nVersion: {version}\n".encode() not in metadata:
        offences.append(f"the metadata has another version than {version}")
    if not platform.startswith("manylinux_"):
        offences.append(f"the platform is {platform}, not a manylinux policy")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {len(names)} files")
    for name, data in libraries.items():
        facts = re.search(rb"wsfast build: ([^\0]+)", data)
        print(f"  {name}: {len(data) / 1e6:.2f} MB; {facts.group(1).decode() if facts else '?'}")
        offences += library_offences(name, data, paths, version)
    return offences


def main() -> int:
    """Check the wheels on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--variant", required=True, choices=sorted(LIBRARIES))
    parser.add_argument("--no-path", action="append", default=[], help="folder not to be named")
    options = parser.parse_args()
    offences = [
        offence
        for wheel in options.wheels
        for offence in check(wheel, options.variant, options.no_path)
    ]
    for offence in offences:
        print(f"check_wheel: {offence}", file=sys.stderr)
    return int(bool(offences))


if __name__ == "__main__":
    sys.exit(main())
