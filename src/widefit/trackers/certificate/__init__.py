"""The certificate tracker, from the top: `tracking` follows steps by `bounds` or by `passes`.

`geometry` is what is fixed in a run, `chunk` what is kept of neurons, `trial` what a step finds, `look` what becomes of
certificates that expire, `commit` how a step is carried out.
"""

from widefit.trackers.certificate.tracking import Certificate

__all__ = ["Certificate"]
