"""Bytes to store in a bucket, and what a test wants to know of a store and its process."""

import hashlib
import os
from pathlib import Path

from core.settings import Settings
from tests.fixtures.s3 import PART_BYTES

ROOT = Path(__file__).parents[4]
#: Three parts.
LARGE = os.urandom(2 * PART_BYTES + 1000)
SMALL = os.urandom(200_000)
SECRET = "a-secret-of-the-test"

#: Stores one file; configured by the environment, as a process of the service is.
PUT_FILE = f"""
import sys
from pathlib import Path
from core.platform.storage.s3_open import open_s3_store
from core.settings import Settings, build_environment
print(open_s3_store(Settings(), part_bytes={PART_BYTES}).put_file(Path(sys.argv[1])).sha256)
"""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make these settings."""
    assert settings.s3_secret_access_key is not None
    fields = {name: getattr(settings, name) for name in settings.model_fields_set}
    fields["s3_secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    return {f"IDAT_{name.upper()}": str(value) for name, value in fields.items()}


def cached(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.cache_dir.glob("??/*"))


def partial_files(settings: Settings) -> list[Path]:
    return list((settings.cache_dir / "incoming").iterdir())
