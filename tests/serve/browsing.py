"""A small collection behind a real server, and Debian's Chromium to look at it: what the tests of the page need."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image, ImageDraw

from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from avse.index import Index
from avse.model import AVSE
from avse.serve import create_app

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
EVIL = "<img src=x onerror=window.hacked=1><script>window.hacked=1<script>.png"
"""A file's name that is markup."""
ODD = 'o"d\\d, (not) in'
"""A folder's name that needs every quoting a filter has."""
# A picture as a paste or a drop carries it; the event is what a browser would send.
CARRY = """async ([kind, id]) => {
  const bytes = await (await fetch(`thumbnails/${encodeURIComponent(id)}?size=320`)).blob();
  const data = new DataTransfer();
  data.items.add(new File([bytes], "carried.png", { type: bytes.type }));
  const options = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, { ...options, clipboardData: data })
    : new DragEvent(kind, { ...options, dataTransfer: data }));
}"""
# The names in forms sent from here on; Chromium tells Playwright nothing of a body with a file.
FORMS = """() => { const ask = fetch; window.forms = [];
  window.fetch = (url, options) => {
    if (options.body instanceof FormData) window.forms.push([...options.body.keys()]);
    return ask(url, options); }; }"""
SHIFTS = """() => { window.shifts = [];
  const told = ({ value, startTime, hadRecentInput, sources }) =>
    [hadRecentInput ? 0 : value, startTime, sources.map(({ node }) => node?.outerHTML?.slice(0, 80))];
  new PerformanceObserver((list) => window.shifts.push(...list.getEntries().map(told)))
    .observe({ type: "layout-shift", buffered: true }); }"""
COLOURS = ("red", "green", "blue", "yellow", "white", "black")


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser, or skip with what is missing."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on the path: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Judge:
    """Stands for a calibration: a hit is weak where its score lies below `limit`; a test may set both."""

    limit, sure = -1e9, 0.65

    def judge(self, scores: Any, gallery: int, direction: str = "t2i") -> tuple[np.ndarray, np.ndarray]:
        """Return confidence and weak, both as many as the scores."""
        scores = np.asarray(scores, float)
        return np.full(scores.shape, self.sure), scores < self.limit


def make_pictures(root: Path) -> None:
    """Write 62 pictures of shapes and colours: four shapes of frame, two folders, two names that invite trouble."""
    random = np.random.default_rng(0)
    for at in range(60):
        size = ((120, 90), (90, 120), (100, 100), (180, 60))[at % 4]
        image = Image.new("RGB", size, tuple(int(part) for part in random.integers(0, 255, 3)))
        left, top = (int(part) for part in random.integers(5, 30, 2))
        ImageDraw.Draw(image).ellipse((left, top, left + 40, top + 30), fill=COLOURS[at % 6])
        file = root / ("sea" if at % 3 else "hills") / f"{COLOURS[at % 6]}_shape-{at:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    for folder, name, colour in ((".", EVIL, "red"), (ODD, "odd.png", "blue")):
        (root / folder).mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), colour).save(root / folder / name)


def make_model(vit: Path, bert: Path) -> AVSE:
    """Return an AVSE of random weights, always the same, with a `Judge`."""
    torch.manual_seed(0)
    config = ModelConfig(
        image_encoder=ImageEncoderConfig(source=str(vit)), text_encoder=TextEncoderConfig(source=str(bert)),
        embed_dim=16, block_width=8,
    )  # fmt: skip
    model = AVSE(config).eval()
    model.calibration = Judge()
    return model


class Site:
    """A server in a thread; it can be stopped, and started again on its port."""

    def __init__(self, index: Index, **options: Any) -> None:
        """Start it."""
        self.index, self._options = index, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        """Start, and return when it answers."""
        app = create_app(self.index, **self._options)
        config = uvicorn.Config(app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 20
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < until, "the server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop, and return when the port is free."""
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


class Visit:
    """One page of the browser, with what it asked for and complained of."""

    def __init__(self, page: Any, site: Site) -> None:
        """Listen to the page."""
        self.page, self.site = page, site
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(10_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))

    def open(self, search: str = "") -> Any:
        """Go to the page and return it when it shows results."""
        self.page.goto(self.site.url + search)
        self.page.wait_for_selector("#results li[data-id]")
        return self.page

    def until(self, expression: str, *, arg: Any = None, seconds: float = 10) -> None:
        """Wait for an expression to be true; Playwright's own way would want the policy to allow eval."""
        limit = time.monotonic() + seconds
        while not self.page.evaluate(expression, arg):
            assert time.monotonic() < limit, f"not true within {seconds} s: {expression}"
            self.page.wait_for_timeout(30)

    def ask(self, sentence: str) -> list[str]:
        """Type a sentence, and return the ids found."""
        with self.page.expect_response(lambda answer: "api/search" in answer.url and answer.ok):
            self.page.fill("#query", sentence)
        self.until("text => document.title.startsWith(text)", arg=sentence)
        self.page.wait_for_selector("#results:not(.old)[aria-busy=false] li .fit")
        return self.ids()

    def ids(self) -> list[str]:
        """Return the ids of what is shown, in order."""
        found: list[str] = self.page.eval_on_selector_all(
            "#results li[data-id]", "all => all.map((li) => li.dataset.id)"
        )
        return found

    def status(self) -> str:
        """Return what the live region says."""
        return str(self.page.inner_text("#status"))
