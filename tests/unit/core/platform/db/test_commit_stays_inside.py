"""Rules of the platform that a look at its source can check."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[5]
DB = ROOT / "core" / "platform" / "db"
SOURCES = sorted(
    path
    for package in ("api", "worker", "core", "migrations", "embedded", "demo")
    for path in (ROOT / package).rglob("*.py")
)


def commits_in(source: str) -> list[int]:
    """Lines that call a method named `commit`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr == "commit"
    ]


def test_the_check_sees_a_commit() -> None:
    assert commits_in("def f(session):\n    session.add(1)\n    session.commit()\n") == [3]


def test_only_the_database_module_commits() -> None:
    """A transaction is opened, and so ended, at the edge: by `Database.write`."""
    assert len(SOURCES) > 50
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if not path.is_relative_to(DB)
        for line in commits_in(path.read_text())
    }
    assert found == set()


def modules_imported_by(path: Path) -> set[str]:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    return imported


def test_the_platform_reads_no_clock_but_the_database_s() -> None:
    """So that no lease can depend on the clock of a worker.

    Stores look at the age of files, which only the machine's clock can tell, a walk through one
    counts the time that it takes; a migration and the switch of a new SQLite file to its journal
    count how long they try; none knows of leases.
    """
    folder = ROOT / "core" / "platform"
    others = (
        folder / "storage",
        folder / "collection",
        folder / "db" / "journal.py",
        folder / "db" / "migrate.py",
    )
    platform = [
        path
        for path in sorted(folder.rglob("*.py"))
        if not any(path.is_relative_to(other) for other in others)
    ]
    assert len(platform) > 10
    assert "core.clock" in modules_imported_by(ROOT / "worker" / "supervisor.py")
    clocks = {"time", "datetime", "core.clock"}
    assert [path for path in platform if clocks & modules_imported_by(path)] == []
