"""The page in a real browser, over a real server, index and (random) model; only refusals are staged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import browsing  # noqa: E402
from browsing import CARRY, FORMS, SHIFTS  # noqa: E402

from avse.index import Index  # noqa: E402

PLACE = Path(__file__).parents[2]
SENTENCE = "a red circle on the beach"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def model(tiny_vit_folder, tiny_bert_folder):
    return browsing.make_model(tiny_vit_folder, tiny_bert_folder)


@pytest.fixture(scope="module")
def index(model, tmp_path_factory) -> Iterator[Index]:
    root = tmp_path_factory.mktemp("page")
    browsing.make_pictures(root / "pictures")
    with Index.create(root / "i.avse", model, store="memory") as made:
        made.add_images(root / "pictures", progress=False)
        yield made


@pytest.fixture(scope="module")
def best(index) -> list[Any]:
    """What the index itself answers, before a server's thread owns it."""
    return index.search(SENTENCE, k=62)


@pytest.fixture(scope="module")
def expected(best) -> list[str]:
    return [hit.id for hit in best]


@pytest.fixture(scope="module")
def site(index, expected) -> Iterator[browsing.Site]:
    made = browsing.Site(index)
    yield made
    made.stop()


@pytest.fixture
def context(browser) -> Iterator[Any]:
    made = browser.new_context(viewport={"width": 1100, "height": 800}, color_scheme="light")
    yield made
    made.close()


@pytest.fixture
def visit(context, site, model) -> browsing.Visit:
    model.calibration.limit, model.calibration.sure = -1e9, 0.65
    return browsing.Visit(context.new_page(), site)


def test_a_typed_sentence_finds_what_the_index_finds(visit, expected):
    page = visit.open()
    assert page.inner_text("#empty-title") == "Search 62 pictures"
    assert visit.ask(SENTENCE) == expected[:24]
    assert re.fullmatch(r"The best 24 of 62 pictures · \d+ ms", visit.status())
    assert page.is_hidden("#empty") and page.is_hidden("#weak")
    page.click("#more")
    visit.until("document.querySelectorAll('#results li[data-id]').length === 48")
    page.click("#more")
    visit.until("document.querySelectorAll('#results li[data-id]').length === 62")
    assert visit.ids() == expected and page.is_hidden("#more")
    assert visit.complaints == []


@pytest.mark.slow
def test_it_asks_when_typing_pauses_and_an_older_answer_is_never_shown(visit):
    page, held, sent = visit.page, [], []

    def hold(route):
        sent.append(route.request.post_data_json["query"])
        if sent[-1] == "a dog":
            held.append(route)  # answered after the newer question
        else:
            route.continue_()

    page.route("**/api/search", hold)
    visit.open()
    page.type("#query", "a dog", delay=15)
    page.wait_for_timeout(400)
    page.type("#query", " on grass", delay=15)
    visit.until("document.title.startsWith('a dog on grass')")
    page.wait_for_selector("#results li .fit")
    newest = visit.ids()
    held[0].fulfill(json={"hits": [], "weak": None, "gallery": 62, "upper": 2, "took_ms": 1, "notes": []})
    page.wait_for_timeout(200)
    assert sent == ["a dog", "a dog on grass"] and visit.ids() == newest and newest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_pasted_or_dropped_finds_itself(visit, expected, kind):
    page = visit.open()
    with page.expect_response("**/api/search"):
        page.evaluate(CARRY, [kind, expected[5]])
    page.wait_for_selector("#chip:not([hidden])")
    page.wait_for_selector("#results li .fit")
    assert visit.ids()[0] == expected[5]
    by_picture = visit.ids()
    page.evaluate(FORMS)
    page.fill("#query", SENTENCE)  # sentence and picture together
    visit.until("window.forms.length")
    assert page.evaluate("window.forms") == [["query", "k", "image"]]
    visit.until("ids => document.querySelector('#results li:nth-child(2)').dataset.id !== ids", arg=by_picture[1])
    page.click("#results li:first-child a")
    assert page.is_visible("#detail")
    page.keyboard.press("Escape")
    page.click("#chip-drop")
    visit.until("ids => document.querySelector('#results li').dataset.id === ids", arg=expected[0])
    assert page.is_hidden("#chip") and visit.complaints == []


@pytest.mark.slow
def test_filters_are_built_from_the_payload_and_quoted(visit, expected):
    page = visit.open()
    visit.ask(SENTENCE)
    page.click("#filters-toggle")
    with page.expect_request("**/api/search") as sent:
        page.get_by_label(re.compile('^o"d')).check()
    assert sent.value.post_data_json["where"] == r'"folder" in ("o\"d\\d, (not) in")'
    visit.until("document.querySelectorAll('#results li[data-id]').length === 1")
    assert visit.ids() == [f"{browsing.ODD}/odd.png"] and page.inner_text("#filters-count") == "1"
    with page.expect_response("**/api/search"):
        page.get_by_role("checkbox", name="hills").check()
    visit.until("document.querySelectorAll('#results li[data-id]').length === 21")
    with page.expect_request("**/api/search") as sent:
        page.get_by_label("width, at least").fill("170")
        page.get_by_label("width, at least").press("Enter")
    assert sent.value.post_data_json["where"].endswith('and "width" >= 170')
    visit.until("document.querySelectorAll('#results li[data-id]').length === 5")
    wide = [id for id in expected if id.startswith("hills/") and int(id[-6:-4]) % 4 == 3]
    assert visit.ids() == wide
    page.reload()
    page.wait_for_selector("#results li .fit")
    assert visit.ids() == wide
    page.click("#filters-toggle")
    page.get_by_role("button", name="Clear the filters").click()
    visit.until("document.querySelectorAll('#results li[data-id]').length === 24")
    assert visit.ids() == expected[:24] and visit.complaints == []


def painted(page: Any) -> list[int]:
    """Return the sum of the alpha and of the colours that lie upon the picture."""
    return page.evaluate("""() => { const heat = document.getElementById("heat"); if (heat.hidden) return [0, 0];
      const copy = new OffscreenCanvas(heat.width, heat.height).getContext("2d", { willReadFrequently: true });
      copy.drawImage(heat, 0, 0);
      const { data } = copy.getImageData(0, 0, heat.width, heat.height);
      let [alpha, colours] = [0, 0]; data.forEach((value, at) => at % 4 === 3 ? alpha += value : colours += value);
      return [alpha, colours]; }""")


@pytest.mark.slow
def test_the_explanation_says_which_part_of_the_picture_answered(visit, expected):
    page = visit.open()
    visit.ask("a red circle on 🏖 beach")  # a character of two UTF-16 units before a word
    page.click("#results li:nth-child(3) a")
    page.wait_for_selector("#why:not([hidden])")
    reason = page.evaluate(
        "asked => fetch(`api/explain?${new URLSearchParams(asked)}`).then((answer) => answer.json())",
        {"id": visit.ids()[2], "query": "a red circle on 🏖 beach"},
    )
    shown = page.eval_on_selector_all("#words .word", "all => all.map((word) => word.firstChild.data)")
    assert shown == [word["word"] for word in reason["words"]] and "beach" in shown
    assert page.locator("#matches tbody tr").count() == reason["upper"] == 2
    assert page.inner_text("#matches tbody tr >> nth=1 >> td >> nth=1") == f"{reason['matches'][1]['score']:.3f}"
    assert f"score {reason['score']:.3f} of 2" in page.inner_text("#judged")
    whole = painted(page)
    page.get_by_label("Part 2").check()
    part = painted(page)
    page.get_by_label("Strength").fill("20")
    faint = painted(page)
    page.get_by_label("Heat map").uncheck()
    assert page.is_hidden("#heat")
    assert whole[0] > 0 and part != whole and 0 < faint[0] < part[0]
    page.click("#similar")
    page.wait_for_selector("#chip:not([hidden])")
    visit.until("document.querySelector('#status').innerText.includes('by likeness')")
    assert page.is_hidden("#detail") and "like=" in page.url and visit.complaints == []


@pytest.mark.slow
def test_words_are_shaded_by_their_own_sign_and_percent_is_of_a_score_above_zero(visit, expected):
    page = visit.open()
    page.route("**/api/explain?*", lambda route: route.fulfill(json=told))
    for score, labels, shares in (
        (-0.2, ["+0.100", "-0.200"], ["", ""]),
        (0.2, ["50 %", "-100 %"], ["200 %", "-100 %"]),
    ):
        words = [{"word": w, "start": s, "end": s + 3, "score": p} for w, s, p in (("red", 0, 0.1), ("dog", 4, -0.2))]
        matches = [{"text_block": j, "image_block": 0, "view": 0, "score": p} for j, p in ((0, 0.4), (1, -0.2))]
        told = {"text": "red dog", "score": score, "upper": 2, "method": "exact", "matches": matches, "words": words}
        told |= {"heat": [[0.1]], "heats": [[[0.1]], [[0.0]]], "grid": [1, 1], "beyond": 0.0, "beside": 0.0}
        told |= {"frame": [0, 0, 1, 1], "boxes": None, "confidence": None, "weak": None}
        visit.ask(f"red dog {score}")
        page.click("#results li:nth-child(1) a")
        page.wait_for_selector("#why:not([hidden])")
        looks = "all => all.map((one) => [one.classList.contains('lowers'), one.style.getPropertyValue('--share')])"
        assert page.eval_on_selector_all("#words .word", looks) == [[False, "50%"], [True, "100%"]]
        assert page.eval_on_selector_all("#matches .share", looks) == [[False, "100%"], [True, "50%"]]
        titles = page.eval_on_selector_all("#words .word", "all => all.map((one) => one.title)")
        assert titles == [f"{label} of the score" for label in labels]
        assert [text.strip() for text in page.locator("#matches .share").all_inner_texts()] == shares
        page.keyboard.press("Escape")


@pytest.mark.slow
def test_everything_goes_by_keyboard(visit, expected):
    page = visit.open()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type(SENTENCE)
    page.wait_for_selector("#results li .fit")
    focused = "document.activeElement.parentElement.dataset.id"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == expected[0]
    across = page.evaluate("getComputedStyle(document.querySelector('#results')).gridTemplateColumns.split(' ').length")
    for press, at in (("ArrowRight", 1), ("ArrowDown", 1 + across), ("ArrowLeft", across), ("End", 23), ("Home", 0)):
        page.keyboard.press(press)
        assert page.evaluate(focused) == expected[at], press
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#why:not([hidden])")
    assert page.evaluate("document.activeElement.closest('dialog')?.id") == "detail"
    assert page.inner_text("#place") == "2 of 24"
    page.keyboard.press("ArrowRight")
    visit.until("document.querySelector('#place').innerText === '3 of 24'")
    page.keyboard.press("Escape")
    visit.until("!document.querySelector('#detail').open")
    visit.until(f"{focused} === {json.dumps(expected[2])}")
    reached = set()
    page.evaluate("document.activeElement.blur(); document.querySelector('.skip').focus()")
    for _ in range(40):
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        page.keyboard.press("Tab")
    assert {"skip", "brand", "theme", "query", "attach", "filters-toggle", "card", "more"} <= reached
    assert visit.complaints == []


@pytest.mark.slow
def test_no_request_leaves_the_server(visit, context):
    outside = []
    context.route(
        lambda url: not url.startswith((visit.site.url, "blob:", "data:")), lambda route: outside.append(route)
    )
    page = visit.open()
    visit.ask(SENTENCE)
    page.click("#results li:first-child a")
    page.wait_for_selector("#why:not([hidden])")
    page.wait_for_load_state("networkidle")
    assert outside == [] and all(url.startswith((visit.site.url, "blob:", "data:")) for url in visit.requests)
    assert len(visit.requests) > 20 and visit.complaints == []


@pytest.mark.slow
def test_no_good_match_is_said_and_shown(visit, model, best, expected):
    page = visit.open()
    model.calibration.limit, model.calibration.sure = 1e9, 0.19
    visit.ask("red tree on two boats")
    assert page.inner_text("#weak h3") == "No good match" and "“red tree on two boats”" in page.inner_text("#weak p")
    assert visit.status().startswith("No good match: the nearest 24 · ")
    model.calibration.sure = 0.36  # weak, and yet worth a look
    visit.ask("red tree on a boat")
    assert page.inner_text("#weak h3") == "Nothing here is a sure match"
    assert page.inner_text("#weak p") == "The best has a chance of 36 % to be right."
    assert visit.status().startswith("No sure match: the best 24 · ")
    assert page.locator("#results.faint li.weak").count() == 24
    model.calibration.limit = best[4].score  # the first five are good
    assert visit.ask(SENTENCE)[:5] == expected[:5] and page.is_hidden("#weak")
    assert page.locator("#results li.weak").count() == 19
    assert page.locator("#results li:nth-child(6).divider").inner_text() == "From here on, weak matches"


@pytest.mark.slow
def test_the_server_goes_and_comes_back(context, index):
    site = browsing.Site(index)
    visit = browsing.Visit(context.new_page(), site)
    page = visit.open()
    before = visit.ask("a dog")
    site.stop()
    page.fill("#query", SENTENCE)
    page.wait_for_selector("#banner.gone")
    assert "trying again" in page.inner_text("#banner")
    assert visit.ids() == before and page.locator("#results.old").count() == 1
    site.start()
    try:
        page.wait_for_selector("#banner", state="hidden", timeout=15_000)
        page.wait_for_selector("#results:not(.old)")
        assert visit.ids() != before and visit.status().startswith("The best 24")
    finally:
        site.stop()


@pytest.mark.slow
def test_back_and_reload_bring_back_what_was_asked(visit, expected):
    page = visit.open()
    visit.ask("a dog")
    page.press("#query", "Enter")
    visit.ask(SENTENCE)
    page.click("#results li:first-child a")
    page.wait_for_selector("#detail[open]")
    assert "id=" in page.url
    page.reload()
    page.wait_for_selector("#why:not([hidden])")  # opened again from its address
    assert page.inner_text("#place") == "1 of 24"
    page.go_back()
    page.wait_for_selector("#detail", state="hidden")
    assert visit.ids() == expected[:24] and page.input_value("#query") == SENTENCE
    page.go_back()
    visit.until("document.title.startsWith('a dog')")
    assert page.input_value("#query") == "a dog"
    page.go_back()
    page.wait_for_selector("#empty:not([hidden])")
    page.go_forward()
    visit.until("document.title.startsWith('a dog')")
    assert visit.complaints == []


@pytest.mark.slow
def test_markup_in_names_and_addresses_stays_text(visit):
    evil = "<img src=x onerror=window.hacked=1>\"'><script>window.hacked=1</script>"
    page = visit.open(f"?q={quote(evil)}&id={quote(browsing.EVIL)}")
    page.wait_for_selector("#detail[open]")
    page.wait_for_timeout(300)
    assert page.input_value("#query") == evil and page.evaluate("window.hacked") is None
    assert "onerror" in page.inner_text("#detail-title") and page.locator("main script, dialog script").count() == 0
    assert visit.site.url + "x" not in visit.requests


@pytest.mark.slow
def test_dark_light_and_the_choice_that_is_kept(visit):
    page = visit.open()
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    page.click("#theme")
    assert (
        light != dark
        and page.evaluate(paper) == light
        and page.get_attribute("#theme", "aria-label") == "Colours: light"
    )
    page.reload()
    assert page.evaluate(paper) == light
    page.wait_for_selector("#results li[data-id]")
    page.click("#theme")
    assert page.evaluate(paper) == dark


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_jumps_while_it_loads(visit, model, width):
    page = visit.page
    page.set_viewport_size({"width": width, "height": 900})
    page.add_init_script(f"({SHIFTS})()")
    page.route("**/thumbnails/**", lambda route: (page.wait_for_timeout(30), route.continue_()))
    visit.open()
    page.type("#query", SENTENCE)
    page.wait_for_selector("#results li .fit")
    page.click("#more")
    visit.until("document.querySelectorAll('#results li[data-id]').length === 48")
    model.calibration.limit = 1e9
    page.type("#query", " of two")
    page.wait_for_selector("#weak")
    page.wait_for_timeout(700)
    shifts = page.evaluate("window.shifts")
    assert sum(value for value, *_ in shifts) < 0.05, shifts
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, model, scheme):
    script = Path(os.environ.get("AVSE_AXE") or PLACE / "node_modules" / "axe-core" / "axe.min.js")
    if not script.is_file():
        pytest.skip(f"no axe-core at {script}: make browser, or AVSE_AXE=.../axe.min.js")
    page = visit.page
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def check(state: str) -> None:
        page.wait_for_load_state("networkidle")
        if not page.evaluate("Boolean(window.axe)"):
            page.evaluate(script.read_text())  # not by a script element, which the policy refuses
        found = page.evaluate("axe.run()")["violations"]
        assert [
            (state, one["id"], one["impact"], one["nodes"][0]["html"])
            for one in found
            if one["impact"] in ("serious", "critical")
        ] == []

    visit.open()
    check("empty")
    visit.ask(SENTENCE)
    page.click("#filters-toggle")
    check("results and filters")
    page.click("#results li:first-child a")
    page.wait_for_selector("#why:not([hidden])")
    check("detail")
    page.keyboard.press("Escape")
    model.calibration.limit = 1e9
    visit.ask("nothing of the kind")
    check("weak")
    page.route("**/api/**", lambda route: route.abort())
    page.fill("#query", "a cat")
    page.wait_for_selector("#banner.gone")
    check("gone")


@pytest.mark.slow
def test_refusals_in_human_words(visit, expected):
    page, answers = visit.open(), []

    def refuse(route):
        if not answers:
            return route.continue_()
        status, headers = answers.pop(0)
        return route.fulfill(status=status, headers=headers, json={"detail": "k=999: 1 to 200 are answered"})

    page.route("**/api/search", refuse)
    answers.append((429, {"Retry-After": "2"}))
    page.fill("#query", SENTENCE)
    page.wait_for_selector("#banner.wait")
    assert "too many questions" in page.inner_text("#banner") and "in 2 seconds" in page.inner_text("#banner")
    assert page.get_attribute("#banner small", "aria-hidden") == "true"  # a screen reader is told once
    page.wait_for_selector("#banner", state="hidden")  # asked again by itself
    assert visit.ids() == expected[:24]
    for status, words in (
        (413, "too large: at most"),
        (415, "no picture that can be read"),
        (422, "k=999"),
        (500, "k=999"),
    ):
        answers.append((status, {}))
        page.evaluate(CARRY, ["paste", expected[1]])
        visit.until("text => document.querySelector('#banner').innerText.includes(text)", arg=words)
        page.click("#banner button")
        assert page.is_hidden("#banner") or status == 500
    visit.until("document.querySelector('#banner').hidden")
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"})
    assert "no picture" in page.inner_text("#banner")


@pytest.mark.slow
def test_slowness_is_shown_and_the_layout_kept(visit):
    page = visit.open()
    before = visit.ask("a dog")
    page.route("**/api/search", lambda route: (page.wait_for_timeout(900), route.continue_()))
    page.fill("#query", SENTENCE)
    page.wait_for_selector("#progress:not([hidden])")
    assert visit.ids() == before and page.get_attribute("#results", "aria-busy") == "true"
    page.wait_for_selector("#progress", state="hidden")
    assert visit.ids() != before


@pytest.mark.slow
def test_what_was_overtaken_leaves_no_bar_behind(visit):
    page = visit.open()
    answer = {"hits": [], "weak": None, "gallery": 62, "upper": 2, "took_ms": 1, "notes": []}
    page.evaluate(
        """answer => { const at_once = Promise.resolve(new Response(JSON.stringify(answer)));
      window.fetch = (_, { body, signal }) => body.includes("a cat") ? at_once
        : new Promise((_, fail) => signal.addEventListener("abort", () => fail(signal.reason)));
      for (const sentence of ["a dog", "a cat"]) { document.querySelector("#query").value = sentence;
        document.querySelector("#form").requestSubmit(); } }""",
        answer,
    )
    visit.until("document.querySelector('#status').innerText === 'Nothing found.'")
    page.wait_for_timeout(400)
    assert page.is_hidden("#progress") and page.get_attribute("#results", "aria-busy") != "true"


@pytest.mark.slow
def test_a_refused_page_of_more_can_be_asked_for_again(visit, expected):
    page = visit.open()
    visit.ask(SENTENCE)
    page.route("**/api/search", lambda route: route.fulfill(status=500, json={"detail": "the disk is full"}))
    page.click("#more")
    page.wait_for_selector("#banner.wrong")
    assert page.is_visible("#more") and visit.ids() == expected[:24]
    page.unroute("**/api/search")
    page.click("#more")
    visit.until("document.querySelectorAll('#results li[data-id]').length === 48")
    assert visit.ids() == expected[:48]


@pytest.mark.slow
def test_odd_payloads_and_odd_answers(visit):
    page = visit.open()
    answer = {"weak": None, "gallery": 3, "upper": 2, "took_ms": 1, "notes": []}
    payloads = [{"name": 7}, {"name": ["a", "b"], "width": "wide", "height": {}}, {"title": {"a": 1}}]
    hits = [{"id": f"{at}.png", "score": 1.0, "payload": said} for at, said in enumerate(payloads)]
    page.route("**/thumbnails/**", lambda route: route.fulfill(status=204))
    page.route("**/api/search", lambda route: route.fulfill(json={**answer, "hits": hits}))
    page.fill("#query", "a dog")
    page.wait_for_selector("#results li .fit")
    assert page.locator("#results .name").all_inner_texts() == ["7", "a,b", "[object Object]"]
    page.click("#results li:nth-child(2) a")
    page.wait_for_selector("#detail[open]")
    page.keyboard.press("Escape")
    assert visit.complaints == [] or all("Failed to load resource" in said for said in visit.complaints)
    page.route("**/api/search", lambda route: route.fulfill(json={**answer, "hits": None}))
    page.fill("#query", "a cat")
    page.wait_for_selector("#banner.wrong")
    assert "went wrong" in page.inner_text("#banner") and any("TypeError" in said for said in visit.complaints)
    page.unroute("**/api/search")
    page.click("#banner button")
    page.wait_for_selector("#results:not(.old) li .fit")
    assert page.is_hidden("#banner") and len(visit.ids()) == 24


@pytest.mark.slow
def test_a_picture_that_could_not_be_looked_up_is_let_go_with_back(visit):
    page = visit.open(f"?q={quote(SENTENCE)}")
    page.wait_for_selector("#results li .fit")
    last = page.evaluate("fetch('api/images?limit=62').then((said) => said.json()).then(({entries}) => entries)")
    outside = next(entry["id"] for entry in last if entry["id"] not in visit.ids())
    page.route("**/api/images/**", lambda route: route.abort())
    page.route("**/healthz", lambda route: route.abort())
    page.goto(f"{visit.site.url}?q={quote(SENTENCE)}&id={quote(outside)}")
    page.wait_for_selector("#banner.gone")
    page.evaluate(
        "history.pushState({}, '', location.href.replace(/&id=.*/, '')); dispatchEvent(new Event('popstate'))"
    )
    page.unroute("**/healthz")
    page.wait_for_selector("#banner", state="hidden")
    assert page.is_hidden("#detail") and not [url for url in visit.requests if url.endswith("/api/images/null")]
    page.unroute("**/api/images/**")
    page.go_back()
    page.wait_for_selector("#detail[open]")
    assert page.is_hidden("#banner")


@pytest.mark.slow
def test_pictures_searched_with_are_let_go_of(visit, expected):
    page = visit.open()
    page.evaluate("""() => { window.gone = []; const revoke = URL.revokeObjectURL;
      URL.revokeObjectURL = (url) => { window.gone.push(url); revoke.call(URL, url); }; }""")
    for at in range(12):
        page.evaluate(CARRY, ["paste", expected[at]])
        visit.until("count => history.state.picture === count", arg=at)
    page.wait_for_selector("#results li .fit")
    gone = page.evaluate("window.gone")
    assert len(gone) == len(set(gone)) == 2 and page.get_attribute("#chip-image", "src") not in gone
    page.go_back()
    visit.until("id => document.querySelector('#results li').dataset.id === id", arg=expected[10])


@pytest.mark.slow
def test_dates_out_of_range_and_titles_in_filters(visit):
    page = visit.page

    def more(route):
        info = route.fetch().json()
        titles = [{"value": f"title {at}", "count": 1 + (at < 2)} for at in range(50)]
        date = {"name": "date", "kind": "date", "count": 62, "values": [], "min": "2019-01-01", "max": "2021-05-05"}
        info["fields"] += [date, {**date, "name": "title", "kind": "text", "values": titles}]
        route.fulfill(json=info)

    page.route("**/api/info", more)
    visit.open("?q=a+dog&f.date=..275760-09-12")
    page.wait_for_selector("#results li .fit")
    page.click("#filters-toggle")
    shown = [name.lower() for name in page.locator("#filters legend").all_inner_texts()]
    assert {"date", "folder", "width"} <= set(shown) and "title" not in shown
    asked = len(visit.requests)
    change = """value => { const input = document.querySelector("[aria-label='date, at most']"); input.value = value;
      input.dispatchEvent(new Event("change", { bubbles: true })); return input.validationMessage; }"""
    assert (
        page.evaluate(change, "12345-01-01")
        == page.evaluate(change, "9999-12-31")
        == ("A year from 1 to 9999 is wanted.")
    )
    assert len(visit.requests) == asked
    with page.expect_request("**/api/search") as sent:
        assert page.evaluate(change, "2019-12-31") == ""
    assert sent.value.post_data_json["where"] == '"date" < 2020-01-01' and visit.complaints == []


@pytest.mark.slow
def test_the_token_is_asked_for_once(context, index, expected):
    site = browsing.Site(index, token="correct-horse")
    try:
        page = (visit := browsing.Visit(context.new_page(), site)).page
        page.goto(site.url)
        page.wait_for_selector("#token[open]")
        page.fill("#token-input", "wrong pony")
        page.keyboard.press("Enter")
        visit.until("document.querySelector('#token-wrong').innerText === 'This is not the token.'")
        page.fill("#token-input", "correct-horse")
        page.keyboard.press("Enter")
        page.wait_for_selector("#results li img.there")
        assert visit.ask(SENTENCE) == expected[:24]
        page.reload()
        page.wait_for_selector("#results li img.there")
        assert page.is_hidden("#token")
    finally:
        site.stop()


@pytest.mark.slow
def test_an_index_of_texts_is_asked_by_a_picture(context, model, tmp_path):
    lines = ["a red circle", "a blue square on grass", "two dogs <b>run</b>", "a house near the river"]
    with Index.create(tmp_path / "t.avse", model, store="memory", side="texts") as made:
        made.add_texts(lines, progress=False)
        site = browsing.Site(made)
        try:
            page = (visit := browsing.Visit(context.new_page(), site)).open()
            assert page.inner_text("#empty-title") == "Search 4 sentences" and sorted(visit.ids()) == sorted(lines)
            data = (PLACE / "docs" / "images" / "scoring.png").read_bytes()
            with page.expect_response("**/api/search"):
                page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": data})
            page.wait_for_selector("#results.lines li .fit")
            assert sorted(page.locator("#results .name").all_inner_texts()) == sorted(lines)
            assert visit.status().startswith("The best 4 of 4 sentences") and visit.complaints == []
        finally:
            site.stop()
