#!/usr/bin/env python
"""Draw the pages anew for the documents: docs/images/page-*.png, and onboarding.gif, which moves.

A simulated person who likes brief, humorous answers goes through onboarding and chats, in a real browser against a real
server. Needs Chromium and the packages of the extra `dev`.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from palate.data import load_answers
from palate.store import Store
from palate.store.keys import SCOPES, Keys

IMAGES = Path(__file__).parent.parent / "docs" / "images"
LIKES = {"length": -1, "humour": 1}
SHOWN = {(one.prompt, one.text): one.attributes for one in load_answers()}


def main() -> None:
    """Start a server, go through its pages, save pictures."""
    with tempfile.TemporaryDirectory() as place, socket.socket() as free:
        database = f"sqlite:///{place}/palate.db"
        with Store.open(database) as store:
            key, _ = Keys(store).create(list(SCOPES))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        words = ["serve", "--port", str(port), "--database", database, "--generic", "0"]
        server = subprocess.Popen([sys.executable, "-m", "palate", *words], stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            wait(url)
            http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)
            link = http.post("/v1/users/ana/link").json()["url"]
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                light = browser.new_page(viewport={"width": 980, "height": 760})
                onboard(light, link)
                talk(light, url)
                light.goto(f"{url}/me")
                light.screenshot(path=IMAGES / "page-taste.png", full_page=True)
                phone = browser.new_context(
                    viewport={"width": 390, "height": 844},
                    color_scheme="dark",
                    storage_state=light.context.storage_state(),
                ).new_page()
                phone.goto(f"{url}/me/chat")
                phone.get_by_label("Message").fill(next(iter(SHOWN))[0])
                phone.get_by_role("button", name="Send").click()
                phone.locator(".turn.answer").wait_for()
                phone.screenshot(path=IMAGES / "page-phone.png")
                operator = browser.new_page(viewport={"width": 980, "height": 900})
                operator.goto(f"{url}/operator")
                operator.get_by_label("API key").fill(key)
                operator.get_by_role("button", name="Open").click()
                operator.screenshot(path=IMAGES / "page-operator.png", full_page=True)
                browser.close()
        finally:
            server.terminate()
            server.wait(60)


def wait(url: str) -> None:
    """Until the server answers."""
    for _ in range(1_200):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the server did not come up")


def onboard(page: Page, link: str) -> None:
    """Ten choices of somebody who likes brief, humorous answers; a frame of each."""
    page.goto(link)
    frames = []
    for number in range(10):
        frames.append(Image.open(BytesIO(page.screenshot())).convert("RGB").resize((735, 570)))
        prompt = page.locator(".prompt").inner_text()
        sides = [page.locator(".side .answer").nth(i).inner_text() for i in (0, 1)]
        likes = [sum(sign * shown(prompt, text).get(name, 0) for name, sign in LIKES.items()) for text in sides]
        if number == 3:
            page.screenshot(path=IMAGES / "page-onboarding.png")
        page.keyboard.press("a" if likes[0] > likes[1] else "b" if likes[1] > likes[0] else "t")
        page.get_by_text(f"{number + 1} of 10 answered").wait_for()
    frames.append(Image.open(BytesIO(page.screenshot())).convert("RGB").resize((735, 570)))
    few = [frame.quantize(64) for frame in frames]
    few[0].save(
        IMAGES / "onboarding.gif",
        save_all=True,
        append_images=few[1:],
        duration=[900] * 10 + [3_000],
        loop=0,
        optimize=True,
    )


def shown(prompt: str, text: str) -> dict[str, int]:
    """What an answer shows; a browser may change its white space."""
    plain = " ".join(text.split())
    found = (one for (asked, said), one in SHOWN.items() if asked == prompt and " ".join(said.split()) == plain)
    return dict(next(found, {}))


def talk(page: Page, url: str) -> None:
    """A question, why, and a complaint."""
    page.goto(f"{url}/me/chat")
    cooking = next(prompt for prompt, _ in SHOWN if "cook" in prompt)
    page.get_by_label("Message").fill(cooking)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Why this answer?").click()
    page.locator(".why").wait_for()
    page.get_by_label("Message").fill("Love it, that made me laugh out loud. Keep it this short!")
    page.get_by_role("button", name="Send").click()
    page.locator(".turn.answer").nth(1).wait_for()
    page.screenshot(path=IMAGES / "page-chat.png", full_page=True)


if __name__ == "__main__":
    main()
