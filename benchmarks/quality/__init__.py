"""How well each CAM method localises defects, measured: the tables of ``docs/results.md``.

``python -m benchmarks.quality [--data DIR]`` trains small classifiers on image labels, explains
their held-out defects with every method and writes the numbers, the tables and the figure.
"""
