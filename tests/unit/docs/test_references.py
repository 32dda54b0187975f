"""What the documents point at exists: files, links and routes; and the ADRs have one form."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
#: A path of this repository: under one of its folders, without placeholders.
OURS = re.compile(
    r"(?:api|benchmarks|core|demo|docker|docs|embedded|migrations|pretraining|requirements|tests"
    r"|worker)/[\w./-]*|[\w-]+\.(?:md|toml|yml)"
)
ROUTE = re.compile(r"/v1/[\w/${}-]*[\w}]")
DECORATOR = re.compile(r"@router\.\w+\(\s*\"([^\"]*)\"")
PREFIX = re.compile(r"APIRouter\(prefix=\"([^\"]*)\"")
SECTIONS = ["Context", "Decision", "Consequences", "Alternatives", "Enforced by"]


def read(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return str(page.relative_to(ROOT))


def read_routes():
    """Return the routes of the API with their parameters as `*`, without importing any of it."""
    routes = set()
    for module in (ROOT / "api" / "routes").glob("*.py"):
        text = read(module)
        prefix = PREFIX.search(text)
        for path in DECORATOR.findall(text):
            full = (prefix[1] if prefix else "") + path
            routes.add(re.sub(r"\{\w+\}", "*", full))
    return routes


def fits(mentioned, route):
    """Return whether a path as written, with values or placeholders, is one of this route."""
    given, wanted = mentioned.split("/"), route.split("/")
    return len(given) == len(wanted) and all(
        w in ("*", g) for g, w in zip(given, wanted, strict=True)
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
class TestPage:
    def test_links_resolve(self, page):
        missing = [link for link in LINK.findall(read(page)) if not (page.parent / link).exists()]

        assert missing == []

    def test_named_files_exist(self, page):
        text = FENCE.sub("", read(page))
        named = {name for name in CODE.findall(text) if OURS.fullmatch(name)}

        assert [n for n in sorted(named) if not ((ROOT / n).exists() or is_beside(n, page))] == []

    def test_named_routes_exist(self, page):
        routes = read_routes()
        mentioned = set(ROUTE.findall(read(page)))

        assert [m for m in sorted(mentioned) if not any(fits(m, r) for r in routes)] == []

    def test_python_compiles(self, page):
        for language, block in FENCE.findall(read(page)):
            if language == "python":
                compile(block, name_of(page), "exec")


def is_beside(name, page):
    """Return whether a bare file name is somewhere in the checkout's own folders."""
    return "/" not in name and any(
        (folder / name).exists() for folder in (page.parent, ROOT / "docs", ROOT / "docker")
    )


def test_routes_are_found_at_all():
    assert {"/v1/datasets", "/v1/fine_tuning/jobs/*/cancel", "/v1/models/*/classify"} <= (
        read_routes()
    )


class TestDecisions:
    def test_numbers_have_no_gap(self):
        assert [page.name[:4] for page in ADRS] == [f"{n + 1:04}" for n in range(len(ADRS))]

    @pytest.mark.parametrize("page", ADRS, ids=name_of)
    def test_form(self, page):
        text = read(page)

        assert text.startswith(f"# {page.name[:4]} ")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
