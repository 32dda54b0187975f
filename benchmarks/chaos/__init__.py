"""Faults on purpose: a running service of real processes, a stream of jobs, and a strict oracle."""
