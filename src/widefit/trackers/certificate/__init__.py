"""Certificate tracker: exact fire patterns from bounds on how far pre-activations can have moved (this project).

`tracking` evaluates a step by bounds, by movements or by a pass. `geometry` holds the constants of a run, `chunk` the
state of some neurons, `trial` the result of a step; `expired` evaluates pairs whose certificates expire, `passes`
neurons as a whole, and `commit` adopts a step.
"""

from widefit.trackers.certificate.tracking import Certificate

__all__ = ["Certificate"]
