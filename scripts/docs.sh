#!/usr/bin/env bash
# Sets up an environment if there is none, and builds the documentation into build/site; a warning
# is an error. Arguments go to `mkdocs build`. `mkdocs serve` shows the site while it is written.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
mapfile -t wanted < <(python -c '
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["optional-dependencies"]["docs"], sep="\n")')
python -m pip install --quiet "${wanted[@]}"
export NO_MKDOCS_2_WARNING=1 # an advertisement
exec python -m mkdocs build --strict "$@"
