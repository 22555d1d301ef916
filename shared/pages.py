"""The pages: templates of `shared/templates`, filled. Every value is escaped, and nothing is fetched from elsewhere."""

from functools import cache
from pathlib import Path
from typing import Any

import azure.functions as func
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> func.HttpResponse:
    """A page as an answer that nobody is to cache. `template` is a file's name in `shared/templates`."""
    text = _environment().get_template(template).render(values)
    return func.HttpResponse(text, headers=_HEADERS, mimetype="text/html", charset="utf-8")


def is_wanted(request: func.HttpRequest) -> bool:
    """Whether who asks would rather have a page than JSON: by ?format=html or json, else by Accept."""
    if chosen := request.params.get("format"):
        return bool(chosen == "html")
    accepted = (request.headers.get("Accept") or "").lower()
    html, json = accepted.find("text/html"), accepted.find("application/json")
    return html >= 0 and (json < 0 or html < json)
