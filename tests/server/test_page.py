"""The page in a headless Chromium, against a real server with the bundled pair.

`python tests/server/browser/install.py .venv/browser` puts the browser there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

PROMPT = "517+486=?\n"
DIRECTORY = Path(sys.prefix) / "browser"
# Chromium's own errands would be noise, and this machine's network must not matter.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
COUNT_CHANGES = """addEventListener("DOMContentLoaded", () => {
  window.growth = new Map();
  new MutationObserver((records) => {
    for (const { target } of records) {
      const article = target.closest?.(".text")?.closest(".answer");
      if (!article || article.querySelector(".token")) continue;
      const name = article.getAttribute("aria-label");
      growth.set(name, (growth.get(name) ?? new Set()).add(target.textContent.length));
    }
  }).observe(document.getElementById("answers"), { childList: true, subtree: true });
});"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    libraries = {
        "LD_LIBRARY_PATH": f"{DIRECTORY}/lib",
        "FONTCONFIG_FILE": f"{DIRECTORY}/fonts.conf",
    }
    home = {"HOME": str(tmp_path_factory.mktemp("home"))}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=DIRECTORY / "chromium", args=FLAGS, env=os.environ | libraries | home
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server):
    """Opens the page in a tab of its own; whatever went wrong in it fails the test."""
    contexts, wrong = [], []

    def open_page(hash_="", *, quiet=True, **options):
        options = {"viewport": {"width": 1280, "height": 900}} | options
        context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        context.add_init_script(COUNT_CHANGES)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: check_host(request.url))
        if quiet:
            page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{server}/{hash_}")
        expect(page.locator("#chips li")).not_to_have_count(0)
        return page

    def check_host(url):
        if urlsplit(url).netloc != urlsplit(server).netloc:
            wrong.append(f"left the host: {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def answers(page, count=3):
    """The texts of all columns, once every token is scored."""
    expect(page.locator(".answer")).to_have_count(count)
    for answer in page.locator(".answer").all():
        expect(answer.locator("footer")).to_contain_text("a token", timeout=60_000)
    return [text(answer) for answer in page.locator(".answer").all()]


def text(answer):
    return answer.locator(".text").inner_text()


def ask(page, prompt=PROMPT):
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    return answers(page)


def expected_tokens(server, strength):
    """What the API says of the same answer."""
    body = {
        "model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 64,
        "return_token_ids": True, "extrapolation": {"strength": strength, "plausibility": 0.05},
    }  # fmt: skip
    [choice] = httpx.post(f"{server}/v1/completions", json=body).json()["choices"]
    asked = {"input": [*choice["prompt_token_ids"], *choice["token_ids"]]}
    scored = httpx.post(f"{server}/v1/delta", json=asked).json()["tokens"]
    return scored[len(choice["prompt_token_ids"]) :]


def test_a_prompt_is_answered_at_three_strengths_and_every_token_tinted(visit, server):
    page = visit()
    base, rlvr, _ = ask(page)
    assert base != rlvr
    growth = page.evaluate("() => [...growth].map(([name, lengths]) => [name, lengths.size])")
    assert len(growth) == 3 and all(steps > 3 for _, steps in growth), "answers stream in"
    for answer, strength in zip(page.locator(".answer").all(), (-1, 0, 1), strict=True):
        expected = expected_tokens(server, strength)
        shown = answer.locator(".token").evaluate_all(
            """(tokens) => tokens.map((token) => ({
              delta: Number(token.dataset.delta),
              weight: Number(token.style.getPropertyValue("--weight")),
              colour: getComputedStyle(token).backgroundColor,
            }))"""
        )
        assert len(shown) == len(expected)
        for token, scored in zip(shown, expected, strict=True):
            assert token["delta"] == pytest.approx(scored["delta"], abs=1e-4)
            weight = min(1, (abs(scored["delta"]) / 4) ** 0.5)
            assert token["weight"] == pytest.approx(weight, abs=2e-3)
            assert_tint(token["colour"], scored["delta"])


def assert_tint(colour, delta):
    """Blue for what RLVR made likelier, orange for what it made rarer, more of it for more."""
    *channels, alpha = (
        float(part) for part in colour.split("(")[1].rstrip(")").replace("/", " ").split()[-4:]
    )
    if abs(delta) > 0.05:
        blueness = channels[2]  # oklab's b: negative is blue, positive is yellow
        assert (blueness < 0) == (delta > 0)
        assert alpha == pytest.approx(0.68 * min(1, (abs(delta) / 4) ** 0.5), abs=0.01)


def test_moving_the_slider_streams_another_answer(visit):
    page = visit()
    base, rlvr, beyond = ask(page)
    page.get_by_role("slider", name="Strength").focus()
    page.keyboard.press("Home")
    third = page.locator(".answer").nth(2)
    expect(third.get_by_role("heading")).to_have_text("−1")
    expect(third.locator(".text")).not_to_have_text(beyond)
    assert answers(page) == [base, rlvr, base]


def test_a_link_reproduces_the_view(visit):
    page = visit()
    page.locator("#settings summary").click()
    page.get_by_label("Temperature").fill("0.9")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Gate").select_option("delta")
    page.get_by_label("Threshold").fill("-0.1")
    page.get_by_label("Primary").select_option("base")
    shown = ask(page)
    expect(page.locator(".answer footer").first).to_contain_text("gate acts on")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#message")).to_have_text("Copied.")
    link = page.evaluate("() => navigator.clipboard.readText()")
    again = visit(f"#{urlsplit(link).fragment}")
    assert answers(again) == shown
    for name, value in (("Temperature", "0.9"), ("Seed", "5"), ("Threshold", "-0.1")):
        expect(again.get_by_label(name)).to_have_value(value)


def test_pointing_at_a_token_shows_what_both_models_say(visit, server):
    page = visit()
    ask(page)
    column = page.locator(".answer").nth(1)
    inspector = page.get_by_role("tooltip")
    expect(inspector).to_be_hidden()
    column.locator(".token").nth(2).hover()
    scored = expected_tokens(server, 0)
    expect(inspector).to_contain_text("log p of the token")
    expect(inspector).to_contain_text("likeliest")
    column.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    value = f"{abs(scored[1]['rlvr_logprob']):.3f}"
    expect(inspector.locator("table").first).to_contain_text(value)
    page.keyboard.press("Escape")
    expect(inspector).to_be_hidden()


@pytest.mark.parametrize("what", ["curl", "Python"])
def test_what_is_copied_gives_the_same_answer(visit, what):
    page = visit()
    *_, shown = ask(page)
    page.get_by_role("button", name=f"Copy as {what}").click()
    expect(page.locator("#message")).to_have_text("Copied.")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    if what == "Python":
        command = [sys.executable, "-c", copied]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.rstrip("\n") == shown.removesuffix("<eos>")
        return
    url = copied.split()[1]
    body = json.loads(copied.split("-d '")[1].rsplit("'", 1)[0].replace("'\\''", "'"))
    [choice] = httpx.post(url, json=body).json()["choices"]
    assert choice["text"] == shown.removesuffix("<eos>")


def test_a_chat_is_answered(visit):
    page = visit()
    page.get_by_text("Chat", exact=True).click()
    page.get_by_role("textbox", name="Message", exact=True).fill("517+486=?")
    page.get_by_role("button", name="Generate").click()
    base, rlvr, _ = answers(page)
    assert base and rlvr


def test_columns_come_and_go(visit):
    page = visit()
    ask(page)
    page.get_by_role("button", name="Add a column").click()
    assert len(answers(page, 4)) == 4
    page.get_by_role("button", name="Remove the column at base").click()
    headings = page.locator(".answer h2")
    assert headings.all_inner_texts() == ["0", "1", "1.5"]


def test_what_the_server_refuses_is_said_in_place(visit):
    page = visit(quiet=False)  # Chromium logs every 400
    page.locator("#settings summary").click()
    page.get_by_label("Tokens at most").fill("99999")
    page.get_by_role("textbox", name="Prompt").fill(PROMPT)
    page.get_by_role("button", name="Generate").click()
    for note in page.locator(".answer footer").all():
        expect(note).to_contain_text("400: ")
        expect(note).to_contain_text("max_tokens")
        expect(note).to_have_class("error")


def test_a_key_is_asked_for_where_the_server_wants_one(visit):
    def guard(route):
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": "Unauthorized"})

    page = visit(quiet=False)
    page.route("**/v1/*", guard)
    page.reload()
    expect(page.locator("#message")).to_have_text("401: Unauthorized")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Tab")
    expect(page.locator("#message")).to_have_text("")
    assert len(ask(page)) == 3
    assert "secret" not in page.url


def test_stop_ends_what_is_coming(visit):
    page = visit()
    page.route("**/v1/completions", lambda route: None)  # an answer that never comes
    page.get_by_role("textbox", name="Prompt").fill(PROMPT)
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_disabled()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".answer.running")).to_have_count(3)
    page.keyboard.press("Escape")
    expect(page.locator(".answer.running")).to_have_count(0)
    expect(page.locator(".answer footer").first).to_have_text("stopped after 0 tokens")
    expect(stop).to_be_disabled()


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (320, 640, "dark")],
)
def test_the_page_fits_every_width_and_can_be_read(visit, width, height, scheme):
    page = visit(viewport={"width": width, "height": height}, color_scheme=scheme)
    ask(page)
    page.locator(".answer").nth(1).locator(".token").nth(2).hover()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    covered = """() => {
      const [token, panel] = [document.querySelector(".token:hover"), inspector]
        .map((element) => element.getBoundingClientRect());
      return token.top < panel.bottom && panel.top < token.bottom;
    }"""
    assert not page.evaluate(covered), "what is shown of a token hides it"
    ink, paper = (
        page.evaluate(f"() => getComputedStyle(document.body).{property}")
        for property in ("color", "backgroundColor")
    )
    assert contrast(ink, paper) > 10
    quiet = page.locator("#subtitle").evaluate("(element) => getComputedStyle(element).color")
    assert contrast(quiet, paper) > 4.5
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=f"{os.environ['SCREENSHOTS']}/{width}-{scheme}.png", full_page=True)


def contrast(one, other):
    """WCAG's ratio of two colours written rgb(r, g, b)."""

    def luminance(colour):
        channels = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_allows_nothing_from_elsewhere(server):
    response = httpx.get(server)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http" not in response.text.split("</head>")[0].replace("http-equiv", "")
    for name in ("page.css", "page.js", "icon.svg"):
        assert httpx.get(f"{server}/page/{name}").headers["x-content-type-options"] == "nosniff"
    for name in ("../playground.py", "%2e%2e/playground.py", "nothing.js"):
        assert httpx.get(f"{server}/page/{name}").status_code == 404
