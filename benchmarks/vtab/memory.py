"""What was uploaded and submitted, for the next call of an interrupted one."""

import json
from pathlib import Path

from core.ml.data.atomic import replace_file


class Memory:
    """Ids of what a service has created for us, and how often it failed.

    Losing the file loses no job: the same `Idempotency-Key` leads to the same job.
    """

    def __init__(self, path: Path, url: str) -> None:
        """Read what an earlier process left.

        Args:
            path: the file, which need not exist.
            url: of the service; what another one created means nothing here.
        """
        self._path, self._url = path, url
        self._known: dict[str, dict[str, dict[str, str | int | None]]] = {}
        if path.exists():
            self._known = json.loads(path.read_bytes())

    def find_id(self, name: str) -> str | None:
        """Return the id under which `name` was created, or None."""
        found = self._entry(name)["id"]
        return None if found is None else str(found)

    def build_key(self, name: str) -> str:
        """Return the `Idempotency-Key` of the next try at `name`."""
        return f"vtab-{name}-{self._entry(name)['failures']}"

    def remember(self, name: str, resource_id: str) -> None:
        """Write down what was created."""
        self._save(name, {**self._entry(name), "id": resource_id})

    def forget(self, name: str) -> None:
        """Write down that it failed or is gone: the next try has another key."""
        failures = int(self._entry(name)["failures"] or 0)
        self._save(name, {"id": None, "failures": failures + 1})

    def _entry(self, name: str) -> dict[str, str | int | None]:
        return self._known.get(self._url, {}).get(name, {"id": None, "failures": 0})

    def _save(self, name: str, entry: dict[str, str | int | None]) -> None:
        self._known.setdefault(self._url, {})[name] = entry
        with replace_file(self._path) as file:
            file.write(json.dumps(self._known).encode())
