"""What the deployment is made of: that its files agree with each other and with what Azure Functions expects."""

import ast
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import pathspec
import pytest
from packaging.requirements import Requirement

from local.host import Host
from local.host.app import cron, read_host_json

REPOSITORY = Path(__file__).resolve().parent.parent
VALUES: dict[str, str] = json.loads((REPOSITORY / "local.settings.example.json").read_text())["Values"]


def test_the_example_settings_are_a_local_settings_file() -> None:
    example = json.loads((REPOSITORY / "local.settings.example.json").read_text())
    assert set(example) <= {"IsEncrypted", "Values", "Host", "ConnectionStrings"}
    assert example["IsEncrypted"] is False
    assert all(isinstance(value, str) for value in VALUES.values()), "app settings are texts"


@pytest.mark.parametrize("name", sorted(name for name in VALUES if name.endswith("_SCHEDULE")))
def test_every_schedule_of_the_example_is_a_six_field_ncrontab(name: str) -> None:
    assert cron(VALUES[name], datetime(2026, 1, 1, tzinfo=UTC)).get_next(datetime) > datetime(2026, 1, 1, tzinfo=UTC)


def test_the_app_is_indexed_and_uses_no_setting_that_the_example_lacks() -> None:
    with Host(REPOSITORY, VALUES) as host:
        functions = host.functions()
    assert functions
    triggers = json.dumps([function.bindings for function in functions.values()])
    assert set(re.findall(r"%(\w+)%", triggers)) <= set(VALUES)


def test_host_json_is_what_the_queues_and_the_passes_need() -> None:
    host = read_host_json(REPOSITORY)
    assert host["functionTimeout"] == "00:30:00"
    # with the worker's own OpenTelemetry the host would send each line of the log once more
    assert host["telemetryMode"] == "OpenTelemetry"
    # The SDK sends plain text, and the messages are read one at a time.
    queues = host["extensions"]["queues"]
    assert (queues["messageEncoding"], queues["batchSize"], queues["newBatchThreshold"]) == ("none", 1, 0)


def _requirements(name: str) -> Iterator[Requirement]:
    for line in (REPOSITORY / name).read_text().splitlines():
        text = line.partition("#")[0].removesuffix("\\").strip()
        if text and not text.startswith("--hash="):
            yield Requirement(text)


def _pinned(requirement: Requirement) -> bool:
    return [(s.operator, "*" in s.version) for s in requirement.specifier] == [("==", False)]


REQUIREMENTS = ["requirements.in", "requirements.txt", "requirements-dev.txt", "requirements-nodeps.txt"]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_is_pinned(name: str) -> None:
    assert [str(requirement) for requirement in _requirements(name) if not _pinned(requirement)] == []


def test_what_ships_is_what_is_asked_for_and_each_has_its_hashes_and_its_purpose() -> None:
    shipped = {(one.name, str(one.specifier)) for one in _requirements("requirements.txt")}
    assert {(one.name, str(one.specifier)) for one in _requirements("requirements.in")} <= shipped
    entries = (REPOSITORY / "requirements.txt").read_text().split("\n")
    for number, line in enumerate(entries):
        if line and line[0] not in "# ":
            assert line.endswith("\\") and entries[number + 1].startswith("    --hash=sha256:"), line
    for line in (REPOSITORY / "requirements.in").read_text().splitlines():
        assert line.startswith("#") or re.search(r"  # \w", line), line


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_python_gets_each_requirement_once(version: str) -> None:
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    names = [r.name for r in _requirements("requirements.txt") if r.marker is None or r.marker.evaluate(environment)]
    assert len(names) == len(set(names))
    assert ("azure-functions-runtime" in names) == (version == "3.13")


def test_the_shipped_code_imports_what_is_asked_for_and_all_of_it() -> None:
    named = {requirement.name for requirement in _requirements("requirements.in")}
    imported = {_distribution(module) for module in _imports()}
    # Nobody imports these: zoneinfo reads the first, the platform starts the others.
    assert imported == named - {"tzdata", "azure-functions-runtime", "azure-monitor-opentelemetry"}


def _imports() -> Iterator[str]:
    for path in (REPOSITORY / "function_app.py", *(REPOSITORY / "shared").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for module in modules:
                if module.partition(".")[0] not in sys.stdlib_module_names | {"shared"}:
                    yield module


def _distribution(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "azure":
        return "-".join(parts[:3] if parts[1] == "storage" else parts[:2])
    if parts[0] == "opentelemetry":
        return "opentelemetry-instrumentation" if parts[1:2] == ["instrumentation"] else "opentelemetry-api"
    return {"ulid": "python-ulid"}.get(parts[0], parts[0].replace("_", "-"))


# What is lying about in a working copy and in none of the repository's listings.
LITTER = [
    ".env", ".venv/bin/python", ".venv-3.11/bin/python", ".tools/cdnow/CDNOW_master.txt", ".demo/report.json",
    ".bench/results.json", ".faults/results.json",
    ".git/config", "local.settings.json", "node_modules/x/index.js", "__pycache__/function_app.cpython-313.pyc",
    "shared/__pycache__/settings.cpython-313.pyc", ".mypy_cache/x.json", ".hypothesis/x", "tests/__pycache__/x.pyc",
    ".pictures/status.png",
]  # fmt: skip


def _working_copy() -> Iterator[str]:
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = [name for name in folders if name not in ("node_modules", "__pycache__")]
        if Path(folder) == REPOSITORY:
            folders[:] = [name for name in folders if not name.startswith(".") or name in (".ci", ".github")]
        for file in files:
            yield (Path(folder) / file).relative_to(REPOSITORY).as_posix()


def _core_tools_leaves_out(path: str, patterns: list[str]) -> bool:
    """Core Tools reads .funcignore in its own way: every line is a prefix of the path, `*` stays within a folder."""
    prefixes = (re.escape(p).replace(r"\*\*", ".+").replace(r"\*", "[^/]+") for p in patterns)
    return any(re.match(prefix, path) for prefix in prefixes)


def test_what_is_published_is_the_function_app_and_the_package_and_nothing_else() -> None:
    patterns = [line for line in (REPOSITORY / ".funcignore").read_text().splitlines() if line and line[0] != "#"]
    spec = pathspec.GitIgnoreSpec.from_lines(patterns)
    paths = sorted({*_working_copy(), *LITTER})
    expected = ["function_app.py", "host.json", "requirements.txt"]
    package = [p for p in paths if p.startswith("shared/") and PurePosixPath(p).suffix in (".py", ".html", ".css")]
    assert package
    assert [path for path in paths if not spec.match_file(path)] == sorted(expected + package)
    assert [path for path in paths if not _core_tools_leaves_out(path, patterns)] == sorted(expected + package)


def test_the_package_imports_nothing_of_what_is_not_published() -> None:
    assert not {module.partition(".")[0] for module in _imports()} & {"local", "tests", "bench"}


def test_git_keeps_no_settings_environments_or_tools() -> None:
    spec = pathspec.GitIgnoreSpec.from_lines((REPOSITORY / ".gitignore").read_text().splitlines())
    kept = [path for path in LITTER if not spec.match_file(path)]
    assert kept == [".git/config"]
    assert not spec.match_file("local.settings.example.json")


def test_the_readmes_tables_are_those_of_the_code():
    from local.reference import README, metrics_table, settings_table, with_tables

    text = README.read_text()
    assert settings_table() in text
    assert metrics_table() in text
    assert with_tables(text) == text
