#!/usr/bin/env bash
# Sets up an environment if there is none, and runs the demonstration. Arguments go to `wsfast demo`.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"  # spinning waits where others use the cores
exec wsfast demo "$@"
