"""The page in a real browser: empty, choosing, waiting, result, errors, keyboard, phone, recording."""

from __future__ import annotations

import struct
import zlib

import pytest
from chromium import Browser, chromium
from media_files import write_clip

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")

#: Elements whose text is hard to read: contrast below 4.5 to 1 with the nearest background.
FAINT = """
(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("p,label,h1,h2,h3,button,dt,dd,td,th,summary,span,small,a,q")]
    .filter((node) => node.innerText && node.offsetParent && ![...node.children].some((child) => child.innerText))
    .map((node) => {
      const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
      return [node.innerText.slice(0, 40), (a + 0.05) / (b + 0.05)];
    })
    .filter(([, ratio]) => ratio < 4.5);
})()
"""
#: Controls that no one could name: without a text, a label or an aria-label.
NAMELESS = """
[...document.querySelectorAll("button,input,textarea,select,a,[role=slider],progress,[role=img]")].filter((node) =>
  !node.innerText && !node.getAttribute("aria-label") && !node.getAttribute("aria-labelledby") &&
  !(node.labels && node.labels.length)).map((node) => node.outerHTML)
"""


@pytest.fixture(scope="module")
def server(start):
    running = start(upload_bytes=400_000)
    running.wait_until_ready()
    return running


@pytest.fixture(scope="module")
def window():
    found = Browser()
    yield found
    found.close()


@pytest.fixture
def page(window, server):
    window.messages.clear()
    window.open(server.address)
    window.wait("document.getElementById('limits').textContent")
    return window


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "<b>me & you.webm", 4.0)


def score(page, clip) -> None:
    page.choose("file", clip)
    page.wait("!document.getElementById('preview').hidden")
    page.click("send")
    page.wait("!document.getElementById('result').hidden || !document.getElementById('error').hidden")


def test_the_empty_page_says_what_to_do(page):
    assert "Toy on toys" in page.text("run") and "Nothing has been scored yet." in page.text("status")
    assert "Up to 391 KiB and 120 seconds" in page.text("limits")
    assert page.run("document.getElementById('result').hidden && document.getElementById('preview').hidden")
    page.click("send")
    assert "nothing to score" in page.text("error")
    assert page.run(NAMELESS) == [] and page.run(FAINT) == [] and page.messages == []


def test_a_clip_becomes_a_score_with_reasons(page, clip):
    score(page, clip)
    assert page.text("chosen").startswith("<b>me & you.webm")
    assert page.text("score").startswith("+0.6") and "Done: score +0.6" in page.text("status")
    assert "How far each part moves the score" in page.text("change") and "words" in page.text("change")
    assert "50 %" in page.text("gates") and "70 %" in page.text("experts")
    assert "a high, lively voice" in page.text("reasons") and "I did not expect that at all" in page.text("words")
    assert "read from the clip" in page.text("notes") and "model 0.00 s" in page.text("spent")
    assert page.run("document.querySelectorAll('#timeline .word').length") == 7
    lanes = page.run("[...document.querySelectorAll('#timeline .names div')].map((cell) => cell.firstChild.data)")
    assert lanes[:3] == ["words", "pitch", "loudness"] and len(lanes) == 8  # four of six faces' signals, and the axis
    assert page.run("document.activeElement.id") == "result"
    assert page.run(NAMELESS) == [] and page.run(FAINT) == [] and page.messages == []


def test_nothing_the_server_sends_becomes_part_of_the_page(page, clip):
    score(page, clip)
    assert "<img src=x onerror=" in page.text("reasons")
    assert page.run("document.querySelectorAll('img, #chosen b').length") == 0 and "broken" not in page.run(
        "document.title"
    )


def test_the_time_line_follows_the_keyboard_the_pointer_and_the_clip(page, clip):
    score(page, clip)
    page.wait("document.getElementById('video').readyState > 1")
    slider = "document.querySelector('#timeline [role=slider]')"
    page.run(f"{slider}.focus()")
    page.key("End", 35)
    assert page.run(f"{slider}.getAttribute('aria-valuenow')") == "4.00"
    page.key("Home", 36)
    page.key("ArrowRight", 39)
    assert page.run(f"{slider}.getAttribute('aria-valuetext')") == "0.3 seconds, “I”"
    assert page.run("document.getElementById('video').currentTime") == 0.25
    page.run("document.getElementById('video').currentTime = 2.1")
    page.wait(f"{slider}.getAttribute('aria-valuenow') === '2.10'")
    assert page.run("document.querySelector('#timeline .word.now title').textContent").startswith("expect")
    page.run("document.querySelector('#signals input').click()")
    assert page.run("document.querySelectorAll('#timeline .names div').length") == 7


def test_a_clip_that_starts_before_its_time_line_was_laid_out(page):
    page.run(
        """(async () => {
            const { Timeline } = await import("/timeline.js");
            const media = document.createElement("video");
            const host = document.body.appendChild(document.createElement("div"));
            new Timeline(host, media, { seconds: 2, words: [["now", 0, 1]], signals: [] });
            media.dispatchEvent(new Event("loadedmetadata"));
            document.body.dataset.laid = host.querySelector(".word.now") ? "yes" : "no";
        })()"""
    )
    page.wait("document.body.dataset.laid")
    assert page.run("document.body.dataset.laid") == "yes" and page.messages == []


def test_a_text_alone_is_scored(page):
    page.run("document.getElementById('text').value = 'what a lovely day'")
    page.click("send")
    page.wait("!document.getElementById('result').hidden")
    assert "what a lovely day" in page.text("words") and "no voice" in page.text("notes").lower()
    assert page.run("document.getElementById('timeline').hidden")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"REFUSE x", "The clip is 999 s long"), (b"CRASH x", "The decoder stopped while it read the clip")],
)
def test_errors_of_the_server_are_shown_and_the_page_goes_on(page, tmp_path, content, said):
    (tmp_path / "bad.mp4").write_bytes(content)
    score(page, tmp_path / "bad.mp4")
    assert said in page.text("error") and page.run("document.getElementById('result').hidden")
    assert page.text("status") == "No result." and not page.run("document.getElementById('send').disabled")
    assert page.run("document.getElementById('unplayable').hidden") is False and page.run(FAINT) == []


def test_a_clip_that_is_too_large_is_not_even_sent(page, tmp_path):
    (tmp_path / "large.mp4").write_bytes(bytes(500_000))
    score(page, tmp_path / "large.mp4")
    assert "The clip has 489 KiB, and the server takes 391 KiB" in page.text("error")


def test_waiting_can_be_seen_and_cancelled(page, tmp_path, server):
    (tmp_path / "slow.mp4").write_bytes(b"SLOW x")
    page.choose("file", tmp_path / "slow.mp4")
    page.click("send")
    assert page.run("document.body.getAttribute('aria-busy')") == "true"
    assert page.run("!document.getElementById('progress').hidden && document.getElementById('send').disabled")
    page.click("cancel")
    page.wait("document.body.getAttribute('aria-busy') === 'false'")
    assert page.text("status") == "Cancelled." and page.run("document.getElementById('error').hidden")


def test_a_server_that_is_gone_is_told(page, clip):
    page.choose("file", clip)
    page.call("Network.enable")
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.click("send")
    page.wait("!document.getElementById('error').hidden")
    page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    assert "The connection broke off" in page.text("error")


def test_a_recording_is_made_and_scored(page):
    page.click("record")
    page.wait("document.getElementById('record').dataset.bytes > 20000")  # a busy machine needs a while to begin
    page.click("record")
    page.wait("document.getElementById('chosen').textContent.startsWith('recording.')")
    page.wait("document.getElementById('video').videoWidth > 0")
    page.click("send")
    page.wait("!document.getElementById('result').hidden")
    assert page.text("score").startswith("+0.6") and page.messages == []


def test_a_phone_in_the_dark_shows_all_of_it(server, clip, tmp_path):
    phone = Browser((360, 740), touch=True, scale=2.0, dark=True)
    try:
        phone.open(server.address)
        score(phone, clip)
        assert phone.run("document.documentElement.scrollWidth") <= 360
        assert phone.run(FAINT) == [] and phone.messages == []
        small = phone.run(
            "[...document.querySelectorAll('.button')].filter((b) => b.offsetParent && b.offsetHeight < 44).length"
        )
        assert small == 0
        phone.picture(tmp_path / "phone.png", whole=False)
        assert colours(tmp_path / "phone.png") > 20
    finally:
        phone.close()


def colours(path) -> int:
    """How many different bytes a PNG's picture data hold: an empty page has few."""
    data, place, packed = path.read_bytes(), 8, b""
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        packed += data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += 12 + length
    return len(set(zlib.decompress(packed)))
