"""What the tests of the page share: a real browser (Chromium, as Debian has it), and what they do and look at on the page."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
DESKTOP, PHONE = {"width": 1100, "height": 800}, {"width": 360, "height": 740}
# Of each visible text: its colour, and that of the nearest opaque background.
COLOURS = """
() => {
  const behind = (node) => {
    const colour = node ? getComputedStyle(node).backgroundColor : "rgb(255, 255, 255)";
    return colour.startsWith("rgba(") ? behind(node.parentElement) : colour;
  };
  const texts = [...document.querySelectorAll("p, label, h2, dt, button, .quiet")].filter((node) => node.offsetParent);
  return texts.map((node) => [getComputedStyle(node).color, behind(node)]);
}
"""


def fill(page, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)


def answer(page):
    """The part of the page with the answer, once it is there."""
    page.wait_for_selector("section details, section .error")
    return page.locator("section")


def seen_text(element) -> str:
    """The text of an element without what screen readers alone say."""
    return element.evaluate(
        "node => { const seen = node.cloneNode(true); seen.querySelectorAll('.spoken').forEach(part => part.remove()); "
        "return seen.textContent; }"
    )


def fits(page) -> bool:
    """Whether nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 'rgb(R, G, B)', by the formula of WCAG 2."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)
