"""Open Inference Protocol v2 over HTTP, with Triton's extensions: bytes to requests and back.

Nothing here knows a network; `api/routes/oip.py` puts the engine between request and response.
"""
