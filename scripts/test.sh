#!/usr/bin/env bash
# Sets up an environment if there is none, and runs the test suite. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest "$@"
