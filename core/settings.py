"""Everything that can be configured, read once from the environment (prefix `IDAT_`) and passed on.

Nothing else in the project reads the environment.
"""

import os
import re
from collections.abc import Mapping
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from core.types import DEFAULT_PROJECT, PROJECT_PATTERN

Role = Literal["control", "inference"]


#: What the text settings may look like: caught at the start, in one line, and not in the depths of
#: a library. The values stay out of the messages, as a URL may hold a password.
_FORMS = {
    "database_url": (
        r"|(sqlite:///|postgresql(\+psycopg)?://).*",
        "must be sqlite:///path or postgresql://user:password@host/name",
    ),
    "storage_url": (
        r"|file:///.+|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#]*)?",
        "must be file:///absolute/path or s3://bucket/prefix",
    ),
    "s3_endpoint_url": (r"|https?://[^/@?#]+/?", "must be http(s)://host:port, without a password"),
    "broker_url": (r"|(rediss?|redis\+socket)://.+", "must be redis://host:port/number"),
    "device": (r"auto|cpu|cuda(:[0-9]+)?", "must be auto, cpu, cuda or cuda:N"),
}


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _split_project(entry: str) -> tuple[str, SecretStr]:
    project, colon, secret = entry.partition(":")
    return (project, SecretStr(secret)) if colon else (DEFAULT_PROJECT, SecretStr(entry))


def _check_project_keys(keys: list[tuple[str, SecretStr]]) -> None:
    """Refuse keys that open no project, or two; the secrets stay out of the messages."""
    owners: dict[str, str] = {}
    for number, (project, secret) in enumerate(keys, 1):
        if not re.fullmatch(PROJECT_PATTERN, project):
            raise ValueError(
                f"entry {number} of IDAT_API_KEYS has a colon, but no name of a project before it: "
                "1 to 40 small letters, digits, '.', '_' or '-', the first a letter or digit. "
                f"A key that holds a colon itself is written {DEFAULT_PROJECT}:KEY"
            )
        value = secret.get_secret_value()
        if not value:
            raise ValueError(f"entry {number} of IDAT_API_KEYS has no key after its colon")
        if owners.setdefault(value, project) != project:
            raise ValueError(
                f"entry {number} of IDAT_API_KEYS repeats a key of another project; a key opens one"
            )


def _check_host_or_network(entry: str) -> None:
    try:
        ip_network(entry.strip("[]"))
    except ValueError:
        # What ends in a number is an address in another notation, or with a slip in it.
        last = entry.rstrip(".").rpartition(".")[2]
        is_number = re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", last)
        if is_number or not re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", entry):
            raise ValueError(
                f"{entry!r} is neither a host name nor an address nor a network like 10.1.0.0/16 "
                "(whose host bits are zero)"
            ) from None


class Settings(BaseSettings):
    """Settings of the API and the worker; both must see the same database and store."""

    model_config = SettingsConfigDict(env_prefix="IDAT_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address the API binds.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 picks a free one.")
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list,
        description="Comma-separated bearer keys, each SECRET or PROJECT:SECRET; needed unless the "
        "host is loopback.",
    )
    roles: Annotated[list[Role], NoDecode] = Field(
        default=["control", "inference"],
        description="What this API process does; only inference loads torch.",
    )

    data_dir: Path = Field(
        Path(".idat"), description="Folder of the embedded database, the store and scratch files."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL; empty means SQLite in the data directory."
    )
    storage_url: str = Field(
        "", description="file:///path or s3://bucket/prefix; empty means the data directory."
    )
    storage_cache_bytes: int = Field(
        16 * 2**30, gt=0, description="Most bytes of local copies of an S3 store's blobs."
    )
    s3_endpoint_url: str = Field(
        "", description="http(s)://host:port of an S3 server; empty means AWS."
    )
    s3_region: str = Field("", description="Region of the bucket; empty asks boto3's usual places.")
    s3_path_style: bool = Field(
        default=False, description="Name the bucket in the path instead of the host."
    )
    s3_access_key_id: str = Field(
        "", description="Access key; empty asks boto3's usual places, roles included."
    )
    s3_secret_access_key: SecretStr | None = Field(
        None, description="Secret that belongs to the access key."
    )
    s3_timeout_s: float = Field(
        20.0, gt=0, description="Longest silence of the S3 server within a request."
    )
    s3_attempts: int = Field(
        4, ge=1, le=10, description="Tries of a request to the S3 server, the first included."
    )
    broker_url: str = Field(
        "", description="Redis URL of the doorbell; empty means that workers poll the database."
    )
    broker_visibility_timeout_s: float = Field(
        3600.0,
        gt=0,
        description="When Redis gives a message that nobody acknowledged to another worker.",
    )

    webhook_allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Comma-separated hosts, addresses and CIDRs that webhooks may go to although "
        "they are not public.",
    )

    weights_dir: Path | None = Field(
        None, description="Folder with timm weights (NAME.safetensors) for hosts without a hub."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, description="CPU threads of a trainer; 0 means all cores.")
    worker_slots: int = Field(1, ge=1, le=64, description="Jobs that one worker trains at once.")
    worker_memory_bytes: int = Field(
        0,
        ge=0,
        description="Memory that a worker's jobs share; 0 asks the GPU, and without one means any.",
    )
    max_running_jobs: int = Field(
        0, ge=0, description="Jobs that a project may have running at once; 0 means any number."
    )
    max_queued_jobs: int = Field(
        0, ge=0, description="Jobs that a project may have waiting at once; 0 means any number."
    )
    max_job_s: float = Field(
        0.0, ge=0, description="Longest running time of a job, all attempts together; 0 means any."
    )
    reserve_after_s: float = Field(
        600.0,
        ge=0,
        description="A worker keeps memory free for a job that has waited for it so long.",
    )

    max_archive_bytes: int = Field(8 * 2**30, gt=0, description="Largest archive accepted.")
    max_archive_files: int = Field(200_000, gt=0, description="Most entries in an archive.")
    max_image_pixels: int = Field(50_000_000, gt=0, description="Largest image, width x height.")
    max_image_bytes: int = Field(32 * 2**20, gt=0, description="Largest encoded image.")
    max_import_bytes: int = Field(
        2**30, gt=0, description="Largest model that can be imported, all its files together."
    )
    onnx_cache_bytes: int = Field(
        2 * 2**30, ge=0, description="Most bytes of ONNX files that are kept to be sent again."
    )
    inference_precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Number format of served networks; auto is bf16 where that is fast."
    )
    inference_max_batch: int = Field(
        64, ge=1, le=1024, description="Most images of one batch through a network."
    )
    inference_deadline_s: float = Field(
        10.0, gt=0, description="An image not answered for so long is given up with 504."
    )
    inference_bank_bytes: int = Field(
        2**30, gt=0, description="Most bytes of resident models, backbones not counted."
    )
    inference_max_images: int = Field(
        4096, ge=1, description="Most images under way at once; fewer where the network is slow."
    )
    inference_project_images: int = Field(
        0, ge=0, description="Most images of one project under way at once; 0 means its share."
    )
    inference_body_bytes: int = Field(
        512 * 2**20, gt=0, description="Most bytes of images in requests under way at once."
    )
    inference_decode_threads: int = Field(
        0, ge=0, le=64, description="Images decoded at once; 0 means one for each core, up to 16."
    )
    warm_backbones: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Comma-separated backbones to be loaded before inference is ready; "
        "empty means those of the newest models.",
    )
    drain_s: float = Field(
        1.0,
        ge=0,
        le=600,
        description="After SIGTERM, how long connections are still taken and told to go elsewhere.",
    )
    engine_socket: Path | None = Field(
        None,
        description="Unix socket of the engine process; empty means networks in the API process.",
    )
    api_processes: int = Field(
        1, ge=1, le=64, description="API processes that share the port, and one engine process."
    )
    invocations_model: str = Field(
        "", description="Model of /invocations where the request names none: id, name, name@alias."
    )

    lease_ttl_s: float = Field(
        60.0, gt=0, description="An attempt is lost this long after its last heartbeat."
    )
    heartbeat_s: float = Field(15.0, gt=0, description="How often a supervisor renews its lease.")
    poll_interval_s: float = Field(
        1.0, gt=0, description="How often a worker without a broker looks for work."
    )
    sweep_interval_s: float = Field(
        15.0, gt=0, description="How often a worker with a broker does."
    )
    collect_interval_s: float = Field(
        600.0, gt=0, description="How often one of the workers looks for what can be deleted."
    )
    collect_grace_s: float = Field(
        21_600.0,
        ge=0,
        description="Stored files that no row names are spared for so long.",
    )
    checkpoint_interval_s: float = Field(
        30.0, ge=0, description="Least time between two checkpoints."
    )
    progress_timeout_s: float = Field(
        900.0, gt=0, description="An attempt without a step for so long is killed."
    )
    max_attempts: int = Field(3, ge=1, description="Attempts before a job is given up.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe log line that is written."
    )

    _commas = field_validator(
        "api_keys", "roles", "webhook_allowed_hosts", "warm_backbones", mode="before"
    )(_split_commas)

    @field_validator("engine_socket", mode="before")
    @classmethod
    def _drop_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("webhook_allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: list[str]) -> list[str]:
        for entry in value:
            _check_host_or_network(entry)
        return value

    @field_validator(*_FORMS)
    @classmethod
    def _check_form(cls, value: str, info: ValidationInfo) -> str:
        assert info.field_name is not None
        pattern, meaning = _FORMS[info.field_name]
        if not re.fullmatch(pattern, value):
            raise ValueError(meaning)
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.roles:
            raise ValueError("IDAT_ROLES is empty: name control, inference or both")
        _check_project_keys(self.project_keys)
        if self.heartbeat_s * 2 > self.lease_ttl_s:
            raise ValueError(
                "IDAT_HEARTBEAT_S must be at most half of IDAT_LEASE_TTL_S, "
                "or one late heartbeat loses a live job"
            )
        secret = self.s3_secret_access_key
        if bool(self.s3_access_key_id) != bool(secret and secret.get_secret_value()):
            raise ValueError(
                "IDAT_S3_ACCESS_KEY_ID and IDAT_S3_SECRET_ACCESS_KEY belong together: set both, "
                "or neither and let boto3 look in its usual places"
            )
        return self

    @property
    def project_keys(self) -> list[tuple[str, SecretStr]]:
        """The API keys, each with the project that it opens; several may open the same."""
        return [_split_project(key.get_secret_value()) for key in self.api_keys]

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @cached_property
    def resolved_database_url(self) -> str:
        """The database URL with the embedded default filled in."""
        if self.database_url:
            return self.database_url
        return f"sqlite:///{self.data_dir.resolve() / 'idat.db'}"

    @cached_property
    def resolved_storage_url(self) -> str:
        """The storage URL with the embedded default filled in."""
        return self.storage_url or (self.data_dir.resolve() / "blobs").as_uri()

    @property
    def resolved_engine_socket(self) -> Path | None:
        """Where the engine process listens; None where each API process has its own networks."""
        if self.engine_socket is None and self.api_processes > 1:
            return self.data_dir.resolve() / "engine" / "socket"
        return self.engine_socket

    @property
    def cache_dir(self) -> Path:
        """Folder for local copies of blobs that lie elsewhere; on the scratch's file system."""
        return self.data_dir.resolve() / "cache"

    @property
    def scratch_dir(self) -> Path:
        """Folder for files in the making: uploads, attempts' working folders, fetched blobs."""
        return self.data_dir.resolve() / "scratch"


def describe_wrong_settings(error: ValidationError) -> str:
    """Say in one line which variables are wrong and why, for whoever started the process."""
    problems = []
    for detail in error.errors():
        name = "_".join(str(part) for part in detail["loc"][:1]).upper()
        message = detail["msg"].removeprefix("Value error, ")
        problems.append(f"IDAT_{name}: {message}" if name else message)
    return f"the settings are wrong: {'; '.join(problems)}"


def build_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `changes`, for a child that reads its own settings."""
    return {**os.environ, **changes}  # noqa: TID251 - passed on whole, nothing is read from it
