#!/usr/bin/env bash
# Sets up an environment if there is none, measures everything and prints the report.
# Arguments go to pytest: --quick, --threads 4, --device cuda, benchmarks/bench_fusion.py, ...
# Figures are kept with: python -m benchmarks.report build/bench.json --write
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# The peers.
python -m pip install --quiet "grad-cam>=1.5" "torchcam>=0.4" "scikit-image>=0.22" connected-components-3d
mkdir -p build
what=("$@")
[[ "$*" == *bench_* ]] || what+=(benchmarks/bench_*.py)
status=0
python -m pytest -q --benchmark-json=build/bench.json "${what[@]}" > build/bench.log || status=$?
python -m benchmarks.report build/bench.json || status=$?
[[ $status == 0 ]] || echo "bench: see build/bench.log" >&2
exit "$status"
