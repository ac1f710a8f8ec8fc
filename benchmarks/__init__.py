"""Side-by-side benchmarks: ``scripts/bench.sh`` runs them, ``benchmarks.report`` prints them."""
