"""This service's inference against LitServe and FastAPI + timm, in one run."""
