"""Writes the tables that the docs share with the code: `make docs`. A test holds the two equal.

A generated table stands between two comments, `<!-- NAME -->` and `<!-- /NAME -->`.
"""

import ast
from pathlib import Path

from shared.settings import Settings, setting_name
from shared.syncs import SCHEDULES
from shared.telemetry import METRICS

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = (README, REPOSITORY / "docs" / "architecture.md")


def settings_table() -> str:
    """Every setting with its default, as a Markdown table."""
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        if field.is_required():
            default = "**required**"
        else:
            value = field.get_default(call_default_factory=True)
            default = f"`{value}`" if value not in (None, frozenset(), {}) else ""
        lines.append(f"| `{setting_name(name)}` | {default} | {field.description} |")
    for name, what in SCHEDULES.items():
        lines.append(f"| `{name}` | **required** | {what}: six-field NCRONTAB, UTC. |")
    return "\n".join(lines)


def metrics_table() -> str:
    """Every metric, as a Markdown table."""
    lines = ["| metric | kind | unit | dimensions | what it is |", "|---|---|---|---|---|"]
    for one in METRICS:
        dimensions = ", ".join(f"`{name}`" for name in ("sync", *one.dimensions))
        lines.append(f"| `{one.name}` | {one.kind} | {one.unit} | {dimensions} | {one.meaning} |")
    return "\n".join(lines)


def modules_table() -> str:
    """Every module of the package with the first sentence of its docstring, as a Markdown table."""
    lines = ["| module | what it is |", "|---|---|"]
    for path in sorted((REPOSITORY / "shared").glob("*.py")):
        if path.stem != "__init__":
            first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].rstrip(":.")
            lines.append(f"| [{path.stem}](../shared/{path.name}) | {first} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """`text` with those generated tables that it has as the code has them now."""
    tables = {"settings": settings_table, "metrics": metrics_table, "modules": modules_table}
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        if start in text:
            head, rest = text.split(start, 1)
            text = head + start + table() + end + rest.split(end, 1)[1]
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))
