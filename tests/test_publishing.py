"""What is published runs by itself: the package as the tool makes it, in an environment of requirements.txt alone.

`func azure functionapp publish --build remote` zips what .funcignore leaves, and Azure installs requirements.txt. Here
pip does that, in a Python 3.13 in which nothing of development is present, and the worker library indexes the app.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pathspec
import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parent.parent
MOST_KILOBYTES = 1_000

# Imports the app with an ear on what Python opens: anything but code, any socket, any process.
IMPORT = """
import json, sys
heard = []
def hear(event, arguments):
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc", ".so")):
        heard.append(str(arguments[0]))
    if event.split(".")[0] in ("socket", "subprocess", "urllib", "sqlite3") or event == "os.system":
        heard.append(event)
sys.addaudithook(hear)
import function_app
print(json.dumps({"heard": heard, "modules": sorted(sys.modules)}))
"""


@dataclass(frozen=True)
class Published:
    """The package, unpacked, its size zipped, and the Python in which it runs."""

    folder: Path
    kilobytes: int
    python: Path

    def run(self, *arguments: str, **environment: str) -> str:
        """What Python prints, with the package as its working directory and nothing else at hand."""
        bare = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        done = subprocess.run(
            [self.python, "-B", *arguments],
            cwd=self.folder,
            env=bare | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def python_313() -> str | None:
    """A Python 3.13: this one, pyenv's, or one on the path."""
    if sys.version_info[:2] == (3, 13):
        return sys.executable
    found = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob("3.13*/bin/python"))
    return str(found[-1]) if found else shutil.which("python3.13")


def package(to: Path) -> Path:
    """The zip of what .funcignore leaves of the working copy."""
    ignored = pathspec.GitIgnoreSpec.from_lines((REPOSITORY / ".funcignore").read_text().splitlines())
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder, folders, files in os.walk(REPOSITORY):
            here = Path(folder).relative_to(REPOSITORY)
            folders[:] = [name for name in folders if not ignored.match_file(f"{(here / name).as_posix()}/")]
            for name in files:
                if not ignored.match_file((here / name).as_posix()):
                    archive.write(Path(folder) / name, here / name)
    return to


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    python = python_313()
    if python is None:
        pytest.skip("there is no Python 3.13 here")
    folder = tmp_path_factory.mktemp("published")
    archive = package(folder / "package.zip")
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder / "app")
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    own = folder / "venv" / "bin" / "python"
    pip = [own, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--only-binary", ":all:"]
    subprocess.run([*pip, "--require-hashes", "-r", folder / "app" / "requirements.txt"], check=True)
    yield Published(folder / "app", archive.stat().st_size // 1024, own)


def test_the_package_is_small(published):
    print(f"\npackage: {published.kilobytes} kB zipped")
    assert published.kilobytes < MOST_KILOBYTES


def test_the_app_imports_where_nothing_but_its_requirements_is_present(published):
    installed = json.loads(published.run("-m", "pip", "--disable-pip-version-check", "list", "--format", "json"))
    names = {one["name"].lower() for one in installed}
    assert not names & {"pytest", "duckdb", "mssql-python-odbc", "croniter"}
    for module in sorted((published.folder / "shared").glob("*.py")):
        if module.stem != "__init__":
            published.run("-c", f"import shared.{module.stem}")


def test_importing_the_app_is_light_and_touches_nothing(published):
    said = json.loads(published.run("-c", IMPORT))
    assert said["heard"] == []
    heavy = ("pyodbc", "httpx", "azure.storage", "azure.identity", "jinja2", "opentelemetry", "pydantic")
    assert [name for name in heavy if name in said["modules"]] == []


def test_the_worker_library_indexes_every_function_of_the_package(published, tmp_path):
    # of the repository, only the few lines that speak to the library as the host does
    (tmp_path / "local" / "host").mkdir(parents=True)
    for name in ("worker.py", "protocol.py"):
        shutil.copy(REPOSITORY / "local" / "host" / name, tmp_path / "local" / "host" / name)
    lines = published.run("-m", "local.host.worker", str(published.folder), "library", PYTHONPATH=str(tmp_path))
    (index,) = [said["index"] for line in lines.splitlines() if "index" in (said := json.loads(line))]
    from shared.syncs import CATALOGUE

    named = re.findall(r'@app\.function_name\("(\w+)"\)', (REPOSITORY / "function_app.py").read_text())
    assert sorted(one["name"] for one in index) == sorted([*named, *(sync.name for sync in CATALOGUE)])
