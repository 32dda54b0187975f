"""The HTTP API: FastAPI over `core.platform`; the inference role adds `core.ml.inference`."""
