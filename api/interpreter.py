"""Keeps the interpreter's lock from being held for long: whoever waits for it answers nobody.

A full collection of cyclic garbage looks at every object and holds the lock meanwhile. With torch
there are half a million before the first request, none of them ever garbage: a quarter of a second,
whenever enough objects have come and stayed. And a thread that computes keeps the lock for 5 ms,
which the event loop waits for again and again.
"""

import gc
import sys

#: How long a thread may keep the lock while another waits for it.
_SWITCH_S = 0.0005


def settle_interpreter() -> None:
    """Collect now, and exempt from later collections what is left; hand the lock on sooner.

    To be called once, when everything is imported and nobody waits yet.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
