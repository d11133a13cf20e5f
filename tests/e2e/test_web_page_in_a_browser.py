# SPDX-License-Identifier: Apache-2.0
"""The page in headless Chromium: it talks, stops, asks for the key, shows tokens and the engine, and makes nothing but
text of what a model says. Needs Playwright for Python (``pip install 'linnet[browser]'``) and a Chromium."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from serving import LONG, NAME, Running, digest_model, eventually
from speaking import say, speaking
from tool_templates import THINKING

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
expect = sync_api.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
KEY = "first-secret-key"
ALLOWED = {
    *("P", "A", "CODE", "EM", "STRONG", "DEL", "BR", "H3", "H4", "H5", "H6", "UL", "OL", "LI", "BLOCKQUOTE", "HR"),
    *("PRE", "DIV", "SPAN", "BUTTON", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD"),
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=as_root)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model()) as running:
        yield running


@pytest.fixture
def page(chromium: Any, server: Running) -> Iterator[Any]:
    """The page of a server without keys. Anything it says in the console, or asks of anybody else, is a failure."""
    with chromium.new_context() as context:
        page, wrong = context.new_page(), []
        page.on("console", lambda message: "status of 400" in message.text or wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith(server.url) or wrong.append(request.url))
        server.llm.executable.delay_s = 0.0
        page.goto(server.url)
        expect(page.locator("#model-name")).to_contain_text(NAME)
        yield page
        assert not wrong
    server.llm.executable.delay_s = 0.0
    server.wait_settled()


def ask(page: Any, text: str, **parameters: object) -> Any:
    """Send a message with the keyboard; returns its answer's article."""
    for name, value in parameters.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    return page.locator("article.assistant").last


def complete(answer: Any) -> None:
    expect(answer).to_have_attribute("aria-busy", "false", timeout=20_000)


def test_a_conversation(page: Any, server: Running) -> None:
    sent: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(json.loads(request.post_data)))
    complete(ask(page, "the rain", max_tokens=8, temperature=0, seed=3))
    complete(ask(page, "a <b>hat</b>", system="in"))
    articles = page.locator("article")
    assert articles.count() == 4
    assert articles.nth(2).locator(".body").inner_text() == "a <b>hat</b>"
    first = sent[1]["messages"][2]["content"]
    plain = {**sent[0], "stream": False}
    del plain["stream_options"]
    assert server.http.post("/v1/chat/completions", json=plain).json()["choices"][0]["message"]["content"] == first
    assert [(one["max_tokens"], one["temperature"], one["seed"]) for one in sent] == [(8, 0, 3), (8, 0, 3)]
    assert [one["role"] for one in sent[1]["messages"]] == ["system", "user", "assistant", "user"]
    expect(articles.nth(1).locator(".foot")).to_contain_text(re.compile(r"^8 tokens · .* tokens/s · first after"))
    expect(page.locator("#news")).to_contain_text("The answer is complete")
    page.get_by_role("button", name="New conversation").click()
    assert articles.count() == 0
    complete(ask(page, "on"))
    assert [one["role"] for one in sent[2]["messages"]] == ["system", "user"]


def endless(server: Running, text: str) -> int:
    """A seed with which the answer to a first message does not end by itself within 200 tokens."""
    chat = {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 200}
    for seed in range(100):
        answer = server.http.post("/v1/chat/completions", json=chat | {"seed": seed}).json()
        if answer["choices"][0]["finish_reason"] == "length":
            return seed
    raise AssertionError("every answer ends early")


def test_escape_and_the_button_stop_an_answer_and_its_request(page: Any, server: Running) -> None:
    seed = endless(server, "the rain")
    server.llm.executable.delay_s = 0.05
    for stop in (lambda: page.keyboard.press("Escape"), page.get_by_role("button", name="Stop").click):
        aborted = server.metric("requests_aborted_total")
        page.get_by_role("button", name="New conversation").click()
        answer = ask(page, "the rain", max_tokens=200, seed=seed)
        expect(answer.locator(".foot")).to_contain_text("token")
        stop()
        complete(answer)
        expect(answer.locator(".foot")).to_contain_text("stopped")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        eventually(lambda before=aborted: server.metric("requests_aborted_total") == before + 1)  # type: ignore[misc]


def test_a_refusal_is_said_and_the_message_comes_back(page: Any) -> None:
    answer = ask(page, "the rain", top_p=7)
    expect(answer.get_by_role("alert")).to_contain_text("top_p")
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_have_value("the rain")
    complete(ask(page, "the rain", top_p=1, max_tokens=4))


def test_the_key_is_asked_for_until_it_is_right(chromium: Any) -> None:
    with Running(digest_model(), keys=(KEY,)) as server, chromium.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        dialog = page.get_by_role("dialog", name="API key")
        box = dialog.get_by_role("textbox")
        expect(box).to_be_focused()
        box.fill("another-wrong-key")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("does not accept this key")
        box.fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#model-name")).to_contain_text(NAME)
        expect(dialog).to_be_hidden()
        complete(ask(page, "the rain", max_tokens=4))
        assert KEY not in page.url + page.content()
        assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
        page.reload()
        expect(page.locator("#model-name")).to_contain_text(NAME)


def test_every_letter_of_an_answer_shows_its_token(page: Any) -> None:
    answer = ask(page, "the rain", max_tokens=24, temperature=1, seed=5)
    complete(answer)
    shown = answer.evaluate(
        """article => article.answer.tokens.spans.map(span =>
               [article.answer.text.slice(span.begin, span.end), span.probability, span.chosen])"""
    )
    text = answer.evaluate("article => article.answer.text")
    assert "".join(letters for letters, _, _ in shown) == text
    for letters, probability, chosen in shown:
        if "\ufffd" not in letters:  # bytes that are no UTF-8 belong to the letter they are shown by
            whole = b"".join(bytes(token["bytes"]) for token in chosen).decode(errors="replace")
            assert letters.strip() in whole
        assert 0 <= probability <= 1
    token = answer.locator(".token").nth(2)
    token.hover()
    hint = page.get_by_role("tooltip")
    expect(hint).to_be_visible()
    likely = [float(value.removesuffix(" %")) for value in hint.locator("td:last-child").all_inner_texts()]
    assert len(likely) in (5, 6)
    assert likely[:5] == sorted(likely[:5], reverse=True)
    assert hint.locator(".chosen").count() == 1
    page.mouse.move(0, 0)
    expect(hint).to_be_hidden()
    answer.locator(".body").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(answer.locator(".marked")).to_have_count(1)
    expect(page.locator("#news")).to_contain_text(re.compile(r", [\d.]+ %$"))


@pytest.fixture(scope="module")
def thinking(chromium: Any) -> Iterator[tuple[Any, Running]]:
    """The page of a model that thinks before it speaks."""
    with Running(speaking(THINKING)) as server, chromium.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#model-name")).to_contain_text(NAME)
        yield page, server


def begin(page: Any, server: Running, answer: str, *before: dict[str, str], pace_s: float = 0.0) -> Any:
    """A conversation's next answer will be this one."""
    if not before:
        page.get_by_role("button", name="New conversation").click()
    say(server, answer, messages=[*before, {"role": "user", "content": "the rain"}])
    server.llm.executable.delay_s = pace_s
    return ask(page, "the rain", temperature=0)


THOUGHT, SAID = "It *rains*; the hat\nis in.", "A **hat**, in the rain."
WHOLE = f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"


def test_thoughts_are_open_until_the_answer_begins(thinking: tuple[Any, Running]) -> None:
    page, server = thinking
    answer = begin(page, server, WHOLE, pace_s=0.05)
    thoughts = answer.locator("details.thoughts")
    expect(thoughts.locator("summary")).to_have_text("Thinking …")
    expect(thoughts).to_have_attribute("open", "")
    expect(page.locator("#news")).to_have_text("The model is thinking.")
    expect(thoughts.locator("summary")).to_have_text("Thoughts")
    assert answer.get_attribute("aria-busy") == "true"  # it speaks
    expect(thoughts).not_to_have_attribute("open", "")
    complete(answer)
    said = answer.locator(".body:not(.thought)")
    assert (said.inner_text(), said.locator("strong").inner_text()) == ("A hat, in the rain.", "hat")
    thoughts.locator("summary").focus()
    page.keyboard.press("Enter")
    group = page.get_by_role("group", name="Thoughts", exact=True).last
    expect(group).to_be_visible()
    assert group.inner_text() == "It rains; the hat is in."
    assert group.get_attribute("aria-live") == "off"
    expect(answer.locator(".foot")).to_contain_text(re.compile(r"^\d+ tokens, \d+ of them thoughts · "))


def test_thoughts_that_somebody_has_opened_or_closed_stay_so(thinking: tuple[Any, Running]) -> None:
    page, server = thinking
    answer = begin(page, server, WHOLE, pace_s=0.05)
    summary = answer.locator("details.thoughts summary")
    expect(summary).to_have_text("Thinking …")
    summary.press("Enter")
    summary.press("Enter")
    complete(answer)
    expect(answer.locator("details.thoughts")).to_have_attribute("open", "")


def test_letters_of_thoughts_show_their_tokens_and_are_sent_back(thinking: tuple[Any, Running]) -> None:
    page, server = thinking
    sent: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(json.loads(request.post_data)))
    answer = begin(page, server, WHOLE)
    complete(answer)
    spans = answer.evaluate(
        "one => one.answer.tokens.spans.map(span => one.answer.source.all.slice(span.begin, span.end))"
    )
    assert "".join(spans) == THOUGHT + SAID
    for name, text in ((".body:not(.thought)", "A hat, in the rain."), (".thought", "It rains; the hat\nis in.")):
        letters = answer.locator(name).locator(".token").all_text_contents()
        assert "".join(letters) == text
    turn = {"role": "assistant", "content": SAID, "reasoning_content": THOUGHT}
    complete(begin(page, server, WHOLE, {"role": "user", "content": "the rain"}, turn))
    assert sent[1]["messages"][1] == turn


def test_an_answer_that_ends_in_thoughts_is_an_answer(thinking: tuple[Any, Running]) -> None:
    page, server = thinking
    answer = begin(page, server, f"<think>\n{THOUGHT}")
    complete(answer)
    expect(answer.locator("details.thoughts summary")).to_have_text("Thoughts")
    assert page.evaluate("document.querySelector('#message').value") == ""
    assert answer.locator(".body:not(.thought)").inner_text() == ""


CALLS = "\n".join(
    f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    for name, arguments in (("get_weather", '{"city": "Bern"}'), ("now", "{}"))
)
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "now")
]


def test_calls_are_shown_and_their_results_written(thinking: tuple[Any, Running]) -> None:
    page, server = thinking
    sent: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(json.loads(request.post_data)))
    page.get_by_role("button", name="New conversation").click()
    page.locator("#tools").fill("[{")
    problem = ask(page, "the rain", temperature=0)
    expect(problem.get_by_role("alert")).to_have_text("the tools are no list as JSON")
    page.locator("#tools").fill(json.dumps(TOOLS))
    say(server, f"Well.\n{CALLS}", messages=[{"role": "user", "content": "the rain"}], tools=TOOLS)
    answer = ask(page, "the rain")
    complete(answer)
    assert answer.locator(".body").inner_text() == "Well."
    shown = [answer.get_by_role("group", name=f"Call of {name}") for name in ("get_weather", "now")]
    assert [one.locator("code").inner_text() for one in shown] == ['{"city": "Bern"}', "{}"]
    for name, result in (("get_weather", "21 degrees"), ("now", "noon")):
        box = page.get_by_role("textbox", name=f"Result of {name}", exact=True)
        expect(box).to_have_attribute("placeholder", f"Result of {name}")
        box.fill(result)
        box.press("Enter")
    complete(page.locator("article.assistant").last)
    said = sent[-1]["messages"]
    assert [one["role"] for one in said] == ["user", "assistant", "tool", "tool"]
    calls = said[1]["tool_calls"]
    assert [one["function"] for one in calls] == [
        {"name": "get_weather", "arguments": '{"city": "Bern"}'}, {"name": "now", "arguments": "{}"}
    ]  # fmt: skip
    assert [(one["tool_call_id"], one["content"]) for one in said[2:]] == [
        (calls[0]["id"], "21 degrees"), (calls[1]["id"], "noon")
    ]  # fmt: skip
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_be_visible()
    page.locator("#tools").fill("")


TOKENS = {  # bytes of each token, the text -> [letters, tokens of them]
    "whole letters": ([b"a", b" b\xc3\xa9"], "a b\xe9", [["a", [0]], [" b\xe9", [1]]]),
    "a letter of two": ([b"\xc3", b"\xa9", b"c"], "\xe9c", [["\xe9", [0, 1]], ["c", [2]]]),
    "a letter that breaks off": ([b"\xcf", b"\xcf", b"\xa3"], "\ufffd\u03e3", [["\ufffd", [0]], ["\u03e3", [1, 2]]]),
    "one token in two letters": ([b"a\xcf", b"\xa3"], "a\u03e3", [["a", [0]], ["\u03e3", [0, 1]]]),
    "a special token that is not shown": ([b"a", b"<|end|>", b"b"], "ab and more", [["a", [0]], ["b", [2]]]),
    "a space that the text leaves out": ([b" a", b" b"], "a b", [["a", [0]], [" b", [1]]]),
    "white space where thoughts end": ([b"a", b" .\n", b"\n", b"b"], "a .b", [["a", [0]], [" .", [1]], ["b", [3]]]),
    "an end within a letter": ([b"a", b"\xe2\x82"], "a\ufffd", [["a", [0]], ["\ufffd", [1]]]),
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_find_their_letters(renderer: Any, name: str) -> None:
    tokens, text, expected = TOKENS[name]
    found = renderer.evaluate(
        """async ([all, text]) => {
            const { Tokens } = await import("/page/tokens.js");
            const tokens = new Tokens();
            tokens.add(all.map((bytes, index) => ({ bytes, index, logprob: 0 })));
            tokens.end();
            tokens.follow(text);
            return tokens.spans.map((span) =>
                [text.slice(span.begin, span.end), span.chosen.map((token) => token.index)]);
        }""",
        [[list(token) for token in tokens], text],
    )
    assert found == expected


def test_the_picture_of_the_engine_is_the_engine(page: Any, server: Running) -> None:
    server.llm.executable.delay_s = 0.03
    with server.http.stream(
        "POST",
        "/v1/completions",
        json=LONG | {"stream": True, "prompt": ["the rain", "a hat", "on"], "max_tokens": 100},
    ) as stream:
        lines = stream.iter_lines()  # kept: without it the answer is not read on, and aborted
        next(lines)
        expect(page.locator("#running")).to_have_text("3")
        expect(page.locator("#generated")).to_have_text(re.compile(r"^[1-9][\d,.]*$"))
        used = int(page.locator("#used").inner_text())
        assert 0 < used <= server.metric("kv_blocks_used")
        parts = [int(page.locator(f"#{name}").inner_text()) for name in ("used", "cached", "free")]
        assert sum(parts) == server.metric("kv_blocks_total")
        expect(page.get_by_role("img", name=re.compile("KV blocks: [1-9][0-9]* used"))).to_be_visible()
    expect(page.locator("#running")).to_have_text("0")


def test_everything_has_a_name_and_the_keyboard_reaches_it(page: Any) -> None:
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select")].filter(one =>
               !one.labels.length || !one.labels[0].textContent.trim()).map(one => one.id)"""
    )
    assert unnamed == []
    page.locator(".skip").focus()
    seen = []
    for _ in range(24):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className || '-'"))
    order = ["new", "conversation", "message", "send", "system", "temperature", "logprobs"]
    assert [name for name in seen if name in order][: len(order)] == order


@pytest.fixture(scope="module")
def renderer(chromium: Any, server: Running) -> Iterator[Any]:
    """A page whose markdown is called directly."""
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        yield page


def html(page: Any, source: str, every: int = 0) -> Any:
    """What the renderer makes of a markdown text, at once or as a stream of ``every`` letters at a time."""
    return page.evaluate(
        """async ([source, every]) => {
            const { render } = await import("/page/markdown.js");
            const node = document.createElement("div");
            const leaf = (placed) => {
                for (let i = 0; i < placed.text.length; i += 1) {
                    if (placed.text[i] !== source[placed.at[i]]) throw Error(`letter ${i} of ${placed.text} is lost`);
                }
                return [document.createTextNode(placed.text)];
            };
            for (let end = every || source.length; ; end += every) {
                render(node, source.slice(0, end), leaf);
                if (end >= source.length) break;
            }
            const all = [...node.querySelectorAll("*")];
            return { html: node.innerHTML, text: node.textContent, tags: all.map((one) => one.tagName),
                links: all.filter((one) => one.href !== undefined).map((one) => one.href),
                attributes: all.flatMap((one) => one.getAttributeNames()) };
        }""",
        [source, every],
    )


CASES = {
    "one\ntwo\n\nthree": "<p>one\ntwo</p><p>three</p>",
    "a  \nb": "<p>a<br>b</p>",
    "## Title ##\ntext": "<h4>Title</h4><p>text</p>",
    "*a* **b** ***c*** _d_ __e__ ~~f~~": "<p><em>a</em> <strong>b</strong> <strong><em>c</em></strong> <em>d</em> "
    "<strong>e</strong> <del>f</del></p>",
    "snake_case_name 2 * 3 * 4 **open": "<p>snake_case_name 2 * 3 * 4 **open</p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "`a*b*` ``c`d`` `open": "<p><code>a*b*</code> <code>c`d</code> `open</p>",
    r"\*a\* \\ \x": r"<p>*a* \ \x</p>",
    "- a\n- b\n  - c\n  - d\n- e": "<ul><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li><li>e</li></ul>",
    "3. a\n4. b\n   - c": '<ol start="3"><li>a</li><li>b<ul><li>c</li></ul></li></ol>',
    "* a\n\n* b": "<ul><li><p>a</p></li><li>b</li></ul>",
    "> a\n> - b\n\nc": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "a | b\n--|--\n`c` | d \\| e": '<div class="table" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
    "<tbody><tr><td><code>c</code></td><td>d | e</td></tr></tbody></table></div>",
    "```python\nx < 1\n\n# *a*\n```\nafter": '<div class="code"><span>python</span><button type="button" '
    'class="copy quiet">Copy</button><pre tabindex="0"><code>x &lt; 1\n\n# *a*</code></pre></div><p>after</p>',
    "<b>x</b> &amp; <!-- c -->": "<p>&lt;b&gt;x&lt;/b&gt; &amp;amp; &lt;!-- c --&gt;</p>",
}


@pytest.mark.parametrize("source", CASES)
def test_markdown(renderer: Any, source: str) -> None:
    expected = CASES[source]
    assert html(renderer, source)["html"] == expected
    assert html(renderer, source, every=1)["html"] == expected


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,x) [d](vbscript:x) [e](file:///etc/passwd)",
    '[a](https://x.example/"onmouseover="alert(1)) <https://x.example/><svg/onload=alert(1)>',
    "![pixel](https://x.example/pixel.png?secret) ![](https://x.example)",
    "[a](https://x.example/\u202egnp.exe) [ [b] ](//x.example)",
    "```<script>\n</code></pre><script>alert(1)</script>\n```",
    "| <iframe srcdoc=x> | `</td><script>` |\n|---|---|\n| <style>*{}</style> | <base href=//x> |",
    "[x]: javascript:alert(1)\n\n[x] ![x]",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_nothing_but_text_comes_of_what_a_model_says(renderer: Any, source: str) -> None:
    for every in (0, 1):
        made = html(renderer, source, every)
        assert set(made["tags"]) <= ALLOWED
        assert set(made["attributes"]) <= {"class", "href", "target", "rel", "type", "tabindex", "start"}
        assert all(re.match(r"(https?://|mailto:)", address) for address in made["links"])


@pytest.mark.parametrize(
    "source",
    ["*a " * 20_000, "`" * 40_001, "[" * 50_000, "> " * 20_000, "_a *b ~c " * 8_000, "- " * 20_000, "\\" * 50_000,
     "|" * 9_000 + "\n" + "|-" * 9_000, "```" + "`x" * 20_000, "h" * 50_000, "https://" * 8_000,
     "`a ``b ```c " * 5_000],
    ids=lambda source: source[:6],
)  # fmt: skip
def test_no_text_holds_up_the_page(renderer: Any, source: str) -> None:
    took = renderer.evaluate(
        """async (source) => {
            const { render } = await import("/page/markdown.js");
            const began = performance.now();
            render(document.createElement("div"), source, (placed) => [document.createTextNode(placed.text)]);
            return performance.now() - began;
        }""",
        source,
    )
    assert took < 3000
