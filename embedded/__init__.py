"""Starts the embedded stack: one API, one worker, one folder. Start-up wiring and nothing else.

It knows the API and the worker by their module names only. Which database, store and doorbell they
use is decided by the settings, here as anywhere.
"""
