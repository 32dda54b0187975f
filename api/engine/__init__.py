"""The networks in a process of their own, and the way to it from the processes that speak HTTP."""
