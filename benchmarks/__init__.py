"""Side-by-side benchmarks: ``wsfast bench`` runs them, ``benchmarks.report`` prints them.

In a checkout this package is ``benchmarks``; in an installed wheel it is ``wsfast.benchmarks``,
which is why its modules import one another relatively.
"""
