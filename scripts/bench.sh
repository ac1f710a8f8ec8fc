#!/usr/bin/env bash
# Sets up an environment with the peers if there is none and runs `wsfast bench`. Arguments go to it:
# crf seeds, --quick, --threads 4, --device cuda, --html page.html ... (`wsfast bench --help`).
# Figures are kept with: python -m benchmarks.report build/bench.json --write
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pip install --quiet "grad-cam>=1.5" "torchcam>=0.4" "scikit-image>=0.22" connected-components-3d
exec wsfast bench --json build/bench.json "$@"
