"""The pages in a browser, Debian's Chromium: what they draw, ask for and complain of, and whether everybody can use them.

Pictures of them go to .pictures/; `make pictures` puts those into the docs.
"""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import azure.functions as func
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import function_app
from tests.conftest import Deployment
from tests.test_qa import done, identify
from tests.test_resync import Worker, shop, worker
from tests.test_status import fill, trouble

__all__ = ["shop", "worker"]

pytestmark = [pytest.mark.slow, pytest.mark.shows_people]

REPOSITORY = Path(__file__).resolve().parent.parent
AXE = REPOSITORY / ".tools/axe/node_modules/axe-core/axe.min.js"
PICTURES = REPOSITORY / ".pictures"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-lcd-text", "--hide-scrollbars",
)  # fmt: skip
DESKTOP, PHONE = (1100, 900), (360, 740)
PAGES = ["status", "report", "readiness"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)) as browser,
    ):
        yield browser


@dataclass
class Site:
    """The pages of a deployment, on a port of this machine."""

    url: str
    pages: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def site(shop: Deployment, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A deployment that has seen something of everything, and a QA sync that has found something."""
    monkeypatch.setenv("QA_WAIT_SECONDS", "0")
    fill(shop)
    identify(shop, "1", 4102444800, tier="silver")
    identify(shop, "2", 4102444800, tier=" GOLD ")
    run = done(worker, {"customer_ids": [1, 2, 3]})["run"]
    trouble(shop, worker, monkeypatch)
    with served({"/api/status": "status", f"/api/runs/{run}/report": "report", "/api/readiness": "readiness"}) as site:
        yield site


@contextmanager
def served(routes: dict[str, str]) -> Iterator[Site]:
    """Functions at their paths, as the host has them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path not in routes:
                self.send_error(404)
                return
            function = getattr(function_app, routes[path]).build().get_user_function()
            parameters = {"run": path.split("/")[3]} if path.count("/") > 2 else {}
            answer = function(
                func.HttpRequest("GET", path, body=b"", headers=dict(self.headers), route_params=parameters)
            )
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", f"{answer.mimetype}; charset={answer.charset}")
            self.end_headers()
            self.wfile.write(answer.get_body())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield Site(url, {name: url + path for path, name in routes.items()})
        finally:
            server.shutdown()


@dataclass
class View:
    """A page as somebody has it before them, what it has asked for, and what the browser has complained of."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, scheme: Any = "light") -> Iterator[View]:
    viewport = {"width": size[0], "height": size[1]}
    with closing(browser.new_context(viewport=viewport, color_scheme=scheme, is_mobile=size == PHONE)) as context:  # type: ignore[arg-type]
        view = View(context.new_page())
        view.page.on("request", lambda request: view.asked.append(request.url))
        view.page.on("console", lambda message: view.complaints.append(f"{message.type}: {message.text}"))
        view.page.on("pageerror", lambda error: view.complaints.append(str(error)))
        answer = view.page.goto(url, wait_until="networkidle")
        assert answer is not None and answer.status == 200
        assert (answer.header_value("content-type") or "").startswith("text/html")
        yield view


def test_a_page_asks_for_nothing_but_itself_and_the_browser_has_no_complaint(site, browser):
    for name in PAGES:
        for scheme in ("light", "dark"):
            with opened(browser, site.pages[name], scheme=scheme) as view:
                assert (view.asked, view.complaints) == ([site.pages[name]], [])


def test_the_charts_are_drawn_and_say_in_words_what_they_show(site, browser):
    with opened(browser, site.pages["status"]) as view:
        charts = view.page.get_by_role("img")
        assert charts.count() == 5
        for number in range(5):
            chart = charts.nth(number)
            bars = [one.bounding_box() for one in chart.locator("rect").all()]
            assert len(bars) == 30
            assert all(bar and bar["width"] > 2 and bar["height"] >= 1 for bar in bars)
            frame = chart.bounding_box()
            assert frame and max(bar["height"] for bar in bars if bar) == pytest.approx(frame["height"], abs=2)
            assert "in all" in (chart.get_attribute("aria-label") or "")


def test_everybody_can_use_a_page_in_light_and_dark_and_on_a_phone(site, browser):
    """By axe-core: contrast, names, landmarks, headings, tables, and what scrolls is reached by keyboard."""
    axe = AXE.read_text()
    for name in PAGES:
        for size in (DESKTOP, PHONE):
            for scheme in ("light", "dark"):
                with opened(browser, site.pages[name], size, scheme) as view:
                    view.page.evaluate(axe)
                    told = view.page.evaluate("() => axe.run(document, {preload: false})")
                    found = [(one["id"], [node["html"] for node in one["nodes"]]) for one in told["violations"]]
                    assert found == [], (name, size, scheme)
                    assert "color-contrast" in {one["id"] for one in told["passes"]}


def test_a_phone_shows_a_page_without_scrolling_it_sideways(site, browser):
    for name in PAGES:
        with opened(browser, site.pages[name], PHONE) as view:
            assert view.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
            assert view.page.evaluate("window.innerWidth") == PHONE[0]


def test_the_keyboard_reaches_every_link_and_every_table_and_one_sees_where_it_is(site, browser):
    with opened(browser, site.pages["status"], PHONE) as view:
        page = view.page
        there = page.locator("a, .scroll").count()
        reached = set()
        for _ in range(there):
            page.keyboard.press("Tab")
            told = page.evaluate(
                "() => { const one = document.activeElement, style = getComputedStyle(one);"
                " return [[...document.querySelectorAll('a, .scroll')].indexOf(one), style.outlineStyle] }"
            )
            assert told[1] == "solid"
            reached.add(told[0])
        assert reached == set(range(there))
        table = page.get_by_role("region", name="Findings")
        table.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("() => document.querySelector('[aria-label=Findings]').scrollLeft > 0")
        page.get_by_role("link", name="Findings").press("Enter")
        assert page.url.endswith("#findings")


def test_pictures_are_taken_of_the_pages(site, browser):
    PICTURES.mkdir(exist_ok=True)
    for picture, name, size, scheme, part in (
        ("status", "status", DESKTOP, "light", (None, "#runs")),
        ("status-checks", "status", DESKTOP, "light", ("#runs", None)),
        ("status-dark", "status", DESKTOP, "dark", (None, "#runs")),
        ("status-phone", "status", PHONE, "light", (None, "#runs")),
        ("qa", "report", DESKTOP, "light", (None, None)),
        ("readiness", "readiness", DESKTOP, "light", (None, "tbody tr:nth-child(12)")),
    ):
        with opened(browser, site.pages[name], size, scheme) as view:
            top, end = (one and view.page.locator(one).bounding_box() for one in part)
            begin = top["y"] - 8 if top else 0
            height = (end["y"] - 8 if end else view.page.evaluate("document.documentElement.scrollHeight")) - begin
            clip = {"x": 0, "y": begin, "width": size[0], "height": min(height, 1500)}
            path = PICTURES / f"{picture}.png"
            view.page.screenshot(path=path, full_page=True, clip=clip)  # type: ignore[arg-type]
            assert 10_000 < path.stat().st_size < 200_000, picture
