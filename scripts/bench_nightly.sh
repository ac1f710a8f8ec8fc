#!/usr/bin/env bash
# Measures the suite, compares it with the committed results of this machine and fails if a row became
# slower beyond noise (benchmarks/compare.py has the rule). Arguments go to `wsfast bench`.
exec "$(dirname "${BASH_SOURCE[0]}")/bench.sh" --json build/nightly.json --html build/nightly.html \
  --compare benchmarks/results --fail-on-regression "$@"
