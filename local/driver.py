"""Makes Microsoft's ODBC driver known to unixODBC without installing it.

The driver comes as a file inside the wheel `mssql-python-odbc`. Its licence allows copies to develop and test with,
and no passing on: so it stays where pip put it, and an `odbcinst.ini` of our own names it.
"""

import configparser
import os
import platform
import tempfile
from importlib.util import find_spec
from pathlib import Path

NAME = "ODBC Driver 18 for SQL Server"
_TOOLS = Path(__file__).resolve().parent.parent / ".tools"


def register() -> None:
    """Points ODBCSYSINI at a folder whose odbcinst.ini names the driver; does nothing when the system has it already.

    To be called before pyodbc's first use in this process (unixODBC reads the variable once); children inherit it.
    Raises FileNotFoundError when the wheel holds no driver for this machine.
    """
    if NAME in _drivers(Path(os.environ.get("ODBCSYSINI", "/etc"), "odbcinst.ini")):
        return
    folder = _TOOLS / "odbc"
    ini = folder / "odbcinst.ini"
    text = f"[{NAME}]\nDescription=Microsoft ODBC Driver 18 for SQL Server\nDriver={_library()}\nUsageCount=1\n"
    if not ini.exists() or ini.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        # Several processes may get here at once: each sees a whole file.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as fresh:
            fresh.write(text)
        Path(fresh.name).replace(ini)
    os.environ["ODBCSYSINI"] = str(folder)


def _drivers(ini: Path) -> list[str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(ini)
    return [name for name in parser.sections() if Path(parser.get(name, "Driver", fallback="")).exists()]


def _library() -> Path:
    spec = find_spec("mssql_python_odbc")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package mssql-python-odbc is not installed: run `make setup`")
    architecture = "arm64" if platform.machine() in ("aarch64", "arm64") else platform.machine()
    folder = Path(spec.origin).parent / "libs" / "linux" / "debian_ubuntu" / architecture / "lib"
    found = sorted(folder.glob("libmsodbcsql-18*.so*"))
    if not found:
        raise FileNotFoundError(f"mssql-python-odbc holds no ODBC driver for this machine in {folder}")
    return found[-1]
