"""Keeps the collector of cyclic garbage away from what a process has once and for all.

A full collection looks at every object and holds the interpreter's lock meanwhile. With torch there
are half a million before the first request, none of them ever garbage: a quarter of a second in
which no request is answered or refused, whenever enough objects have come and stayed.
"""

import gc


def settle_heap() -> None:
    """Collect now, and exempt from all later collections what is left.

    To be called when everything is imported and nobody waits yet.
    """
    gc.collect()
    gc.freeze()
