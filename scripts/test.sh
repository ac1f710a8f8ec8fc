#!/usr/bin/env bash
# Sets up an environment if there is none, and runs the test suite, a process per core and at
# most eight. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile "$@"
