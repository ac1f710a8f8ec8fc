"""How well each training method localises defects, measured: the tables of ``docs/results.md``.

``python -m benchmarks.training_quality [--data DIR]`` trains classifier, F-CAM, DiPS and
pseudo-label segmenters on image labels, one process per seed, and scores their maps beside those of
CAM methods.
"""
