"""The pages in a real browser: onboarding to its end, chat, why, export, erase; by key, on a phone, in the dark."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.server_support import COOKING, Live, live

expect.set_options(timeout=20_000)  # a busy machine may take its time

PAGES = Path(__file__).parents[1] / "src" / "palate" / "server" / "pages"


@pytest.fixture(scope="module")
def server():
    with live() as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed; on Debian or Ubuntu: apt install chromium")
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(accept_downloads=True)
    problems: list[str] = []
    one = context.new_page()
    one.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    one.on("pageerror", lambda error: problems.append(str(error)))
    yield one
    context.close()
    assert not [text for text in problems if "status of 4" not in text], problems


def enter(page: Page, server: Live, user: str) -> None:
    with server.http() as http:
        page.goto(http.post(f"/v1/users/{user}/link").json()["url"])


def accessible(page: Page) -> None:
    """Nothing that axe-core finds serious."""
    found = Axe().run(page).response["violations"]
    assert not [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


def answer_all(page: Page, how: str) -> None:
    for number in range(10):
        expect(page.get_by_label(f"{number} of 10 answered")).to_be_visible()
        if how == "keys":
            page.keyboard.press("ab"[number % 2])
        elif how == "tab":
            expect(page.locator(".prompt")).to_be_focused()  # htmx gives a new question the focus once it has settled
            page.locator("button.side").first.focus()
            page.keyboard.press("Enter")
        else:
            page.locator("button.side").nth(number % 2).tap() if how == "touch" else page.locator("button.side").nth(
                number % 2
            ).click()
        expect(page.get_by_label(f"{number + 1} of 10 answered")).to_be_visible()


@pytest.mark.parametrize("how", ["click", "keys", "tab"])
def test_onboarding_to_its_end(page, server, how):
    enter(page, server, f"ob-{how}")
    expect(page).to_have_url(f"{server.url}/me/onboarding")  # the key has left the address
    accessible(page)
    answer_all(page, how)
    expect(page.get_by_text("That is enough.")).to_be_visible()
    accessible(page)
    user = server.service.store.user(f"ob-{how}")
    assert user and len(server.service.store.evidence(user)) == 10
    page.get_by_role("link", name="See your taste").click()
    expect(page.locator("ul.evidence li")).to_have_count(10)


def test_onboarding_goes_on_where_it_stopped_and_works_without_a_script(browser, server):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    enter(page, server, "plain")
    page.locator("button.side").first.click()
    expect(page.get_by_text("1 of 10 answered")).to_be_visible()
    page.reload()
    expect(page.get_by_text("1 of 10 answered")).to_be_visible()
    context.close()


def test_on_a_phone_in_the_dark(browser, server):
    context = browser.new_context(
        viewport={"width": 360, "height": 720}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    page = context.new_page()
    enter(page, server, "phone")
    accessible(page)
    first, second = (page.locator("button.side").nth(i).bounding_box() for i in (0, 1))
    assert first and second and second["y"] > first["y"] + first["height"] - 1  # one above the other
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in dark[4:-1].split(",")) < 60
    answer_all(page, "touch")
    for path in ("/me", "/me/chat"):
        page.goto(server.url + path)
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()


def test_chat_why_more_like_this_and_what_was_typed(page, server):
    enter(page, server, "talker")
    page.get_by_role("link", name="Chat").click()
    page.get_by_label("Message").fill(COOKING)
    page.keyboard.press("Enter")
    expect(page.locator(".turn.answer")).to_have_count(1)
    page.get_by_role("button", name="Why this answer?").click()
    expect(page.locator(".why")).to_contain_text("answers your taste likes this one best")
    page.get_by_role("button", name="More like this").click()
    expect(page.get_by_text("Noted.")).to_be_visible()
    page.get_by_label("Message").fill("Ugh, far too stiff and formal, I hate that tone.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn.answer")).to_have_count(2)
    expect(page.locator(".turn.you .note")).to_contain_text("pleased")
    accessible(page)
    page.get_by_role("button", name="Begin anew").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_label("Message").fill("zzqx?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.problem")).to_contain_text("There is no answer")
    user = server.service.store.user("talker")
    assert user and len(server.service.store.evidence(user, include_provisional=True)) == 2


def test_texts_are_shown_as_texts(page, server):
    enter(page, server, "attacker")
    page.goto(f"{server.url}/me/chat")
    page.get_by_label("Message").fill('<img src=x onerror="window.hit = 1"><script>window.hit = 1</script> {{7*7}}')
    page.keyboard.press("Enter")
    expect(page.locator(".turn.you")).to_contain_text("<img src=x")
    assert page.evaluate("window.hit") is None and "49" not in page.locator(".turn.you").inner_text()


def test_pause_take_back_export_and_erase(page, server, tmp_path):
    enter(page, server, "leaver")
    for number in range(2):
        page.keyboard.press("a")
        expect(page.get_by_label(f"{number + 1} of 10 answered")).to_be_visible()
    page.get_by_role("link", name="My taste").click()
    accessible(page)
    page.get_by_role("button", name="Take back").first.click()
    expect(page.locator("ul.evidence li")).to_have_count(1)
    page.get_by_role("button", name="Pause learning").click()
    expect(page.get_by_text("Learning is paused.")).to_be_visible()
    page.get_by_role("button", name="Learn again").click()
    expect(page.get_by_text("Learning is paused.")).to_have_count(0)
    with page.expect_download() as started:
        page.get_by_role("link", name="Take it along").click()
    whole = json.loads(Path(started.value.path()).read_text("utf-8"))
    assert whole["profile"]["id"] == "leaver" and len(whole["evidence"]) == 2
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Begin anew").click()
    expect(page.get_by_text("Nothing yet.")).to_be_visible()
    page.get_by_label("Erase all that is kept of me").check()
    page.get_by_role("button", name="Erase").click()
    expect(page.get_by_text("Nothing of it is left in the database's files.")).to_be_visible()
    assert server.service.store.user("leaver") is None
    page.goto(f"{server.url}/me")
    expect(page.locator("body")).to_contain_text("link")


def test_the_operator_sees_figures_and_nobody_else_does(page, server):
    page.goto(f"{server.url}/operator")
    page.get_by_label("API key").fill("pk-wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("unknown or revoked")
    page.get_by_label("API key").fill(server.key_of(scopes=("chat",)))
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("scope admin")
    page.get_by_label("API key").fill(server.key)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", name="Does personalising help?")).to_be_visible()
    assert page.locator("svg").count() >= 2
    accessible(page)
    assert page.goto(f"{server.url}/me").status == 403  # an operator is nobody's person


# What a browser need not be there for


@contextmanager
def session(server: Live, user: str) -> Iterator[httpx.Client]:
    with server.http() as http:
        link = http.post(f"/v1/users/{user}/link").json()["url"]
    with httpx.Client(base_url=server.url, follow_redirects=True) as one:
        assert one.get(link).status_code == 200
        yield one


def test_pages_need_a_session_and_forms_their_own_token(server):
    with httpx.Client(base_url=server.url) as nobody:
        for path in ("/me", "/me/chat", "/me/onboarding", "/me/export"):
            assert nobody.get(path).status_code == 401
        assert nobody.get("/me?key=forged").status_code == 401
        assert nobody.post("/me/erase", data={"sure": "yes"}).status_code == 401
    with session(server, "csrf") as person:
        assert person.post("/me/erase", data={"sure": "yes"}).status_code == 403
        assert person.post("/me/change", data={"reset": "true", "csrf": "guess"}).status_code == 403
        assert person.get("/operator").status_code == 401
    assert server.service.store.user("csrf") is not None


def test_pages_are_small_quick_and_let_no_foreign_script_in(server):
    with session(server, "quick") as person:
        begun = time.perf_counter()
        first = person.get("/me/onboarding")
        assets = [person.get(f"/static/{name}") for name in ("palate.css", "palate.js", "htmx.min.js", "icon.svg")]
        seconds = time.perf_counter() - begun
    assert all(one.status_code == 200 for one in assets)
    assert sum(len(one.content) for one in [first, *assets]) <= 200_000 and seconds < 60
    policy = first.headers["content-security-policy"]
    assert "unsafe" not in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert first.headers["cache-control"] == "no-store"
    for template in (PAGES / "templates").glob("*.html"):
        text = template.read_text("utf-8")
        assert " style=" not in text and "onclick" not in text and "<script>" not in text, template.name


def test_one_person_does_not_see_another_s_answers(server):
    said = server.chat(COOKING, user="first").json()
    with session(server, "second") as person:
        assert person.get(f"/me/why/{said['id']}").status_code == 404
