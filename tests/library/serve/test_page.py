"""The page at / compares two texts and ranks a list, in a browser, on a phone and on a desk."""

from __future__ import annotations

import browser
import pytest


@pytest.mark.slow
def test_the_page_answers_and_fits_a_phone_and_a_desk(served, tmp_path):
    program = browser.find()
    if program is None:
        pytest.skip("needs chromium")
    flags = ["--batch-tokens", "64", "--max-tokens", "48", "--also", "other=none"]
    server = served("--model", "tiny", "--dtype", "float32", *flags)
    for width in (380, 1280):
        page = browser.Page(program, tmp_path, server.url, width)
        page.until("document.querySelectorAll('#model option').length == 2")
        page.evaluate("document.querySelector('#pair button').click()")
        page.until("document.querySelectorAll('#words-b span').length == 5")
        page.evaluate("document.querySelector('#list button').click()")
        page.until("document.querySelectorAll('#ranked li').length == 3")
        assert -1 <= float(page.evaluate("at('cosine').textContent")) <= 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("at('a').value = 'long '.repeat(99)")
        page.evaluate("document.querySelector('#pair button').click()")
        page.until("at('error').textContent.includes('input[0] has more than the 48 tokens')")
        assert all(" 400 " in line for line in page.said), page.said
        page.close()
