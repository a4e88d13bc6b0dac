"""Tables in: what a file or a built-in data set holds, and how it becomes numbers.

Polars and scikit-learn are imported by the files here, so this package imports none of them: take the parts from where
they live (`widefit.data.readers`, `widefit.data.encoding`, `widefit.tuning.sphere`, …).
"""
