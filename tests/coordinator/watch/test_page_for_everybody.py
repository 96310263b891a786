"""The page without a mouse, without eyes, on a small screen and in the dark."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.strategies import FedBuff
from tests.browser import DESK, PHONE, Browser

OF_TABLES = {"table", "row", "columnheader", "rowheader", "cell"}
ASKS = {"button", "textbox", "searchbox", "checkbox", "spinbutton", "combobox", "link", "disclosuretriangle"}

# What can be reached and seen, in the document's order.
CONTROLS = """[...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')]
    .filter((at) => at.checkVisibility() && !at.closest('dialog')).map(named)"""
NAMED = """
    const named = (at) => at.id || [at.closest('tr')?.dataset.key, at.className, at.ariaLabel ?? at.textContent.trim()]
        .filter(Boolean).join(' ');
"""
# Where the focus is, and whether it can be seen there.
FOCUSED = """(() => {
    const at = document.activeElement, box = at.getBoundingClientRect(), style = getComputedStyle(at);
    const hit = document.elementFromPoint(box.x + Math.min(box.width, 40) / 2, box.y + box.height / 2);
    const isSeen = box.width > 0 && box.height > 0 && hit !== null && (at.contains(hit) || hit.contains(at));
    return at === document.body ? null : [named(at), isSeen, style.outlineStyle !== 'none'];
})()"""

ALL_DRAWN_AT_THEIR_SIZE = """[...document.querySelectorAll('svg')].every(
    (chart) => chart.viewBox.baseVal.width === chart.parentElement.clientWidth)"""
TOO_FULL = (
    """[...document.querySelectorAll('#fleet :is(th, td, .scroll)')].filter((at) => at.scrollWidth > at.clientWidth)"""
)

# Contrast by WCAG's formula, of every text against what is painted behind it, and of every mark and chart.
FAINT = """(() => {
    const parsed = (color) => color.match(/[0-9.]+/g).map(Number);
    const over = ([r, g, b, a = 1], back) => [r, g, b].map((part, at) => a * part + (1 - a) * back[at]);
    const behind = (at) => {
        if (!at) return [255, 255, 255];
        const color = parsed(getComputedStyle(at).backgroundColor);
        return color[3] === 0 ? behind(at.parentElement) : over(color, behind(at.parentElement));
    };
    const light = (color) => {
        const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = color.map((part) => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (color, at) => {
        const back = behind(at), [a, b] = [light(over(parsed(color), back)), light(back)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    const found = [];
    const check = (color, at, least, what) => {
        const ratio = contrast(color, at);
        checked.push(what);
        if (ratio < least) found.push(`${what}: ${ratio.toFixed(2)}, ${color}`);
    };
    for (const at of document.querySelectorAll('body *')) {
        if (!at.checkVisibility()) continue;
        const style = getComputedStyle(at), size = parseFloat(style.fontSize);
        const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const text = [...at.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join(' ').trim();
        const color = at instanceof SVGElement ? style.fill : style.color;
        if (text && at.tagName !== 'title') check(color, at, isLarge ? 3 : 4.5, `text ${text}`);
        if (at instanceof SVGRectElement || at instanceof SVGCircleElement) check(style.fill, at, 3, at.tagName);
        if (at instanceof SVGPolylineElement || at instanceof SVGPathElement) check(style.stroke, at, 3, at.tagName);
        if (at.matches('input')) check(style.borderTopColor, at.parentElement, 3, 'edge of an input');
        for (const pseudo of ['::before', '::after']) {
            const drawn = getComputedStyle(at, pseudo);
            if (!['none', 'normal'].includes(drawn.content)) check(drawn.color, at, 4.5, `${pseudo} ${drawn.content}`);
        }
    }
    return found;
})()"""


@pytest.fixture
def page(judged: Any, show: Callable[..., None], address: str, browser: Browser) -> Browser:
    """The page with alarms, a refused node, one that is away, one shut out, and the forms for orders."""
    show(judged.facts())
    browser.open(address)
    browser.see(NAMED + "var checked = []; $('operate').hidden = false; lock(false); stream.close()")
    browser.see("document.querySelector('details').open = true")
    return browser


def spoken(browser: Browser, inside: str = "body") -> list[tuple[str, str]]:
    """What a screen reader is told of a part of the page: roles and names, in order."""
    browser.ask("Accessibility.enable")
    root = browser.ask("Runtime.evaluate", expression=f"document.querySelector('{inside}')")["result"]["objectId"]
    nodes = browser.ask("Accessibility.queryAXTree", objectId=root)["nodes"]
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored", False)
    ]


def test_on_every_screen_the_fleet_is_a_table_to_those_who_hear_it(page: Browser) -> None:
    heard = []
    for screen in (DESK, PHONE):
        page.on(screen)
        heard.append([(role, name) for role, name in spoken(page, "#fleet table") if role in OF_TABLES])
    assert heard[0] == heard[1]
    counts = Counter(role for role, _ in heard[0])
    assert counts == {"table": 1, "row": 6, "columnheader": 16, "rowheader": 5, "cell": 5 * 15}
    assert ("table", "Fleet") in heard[0] and ("columnheader", "staleness") in heard[0]


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_whatever_can_be_used_has_a_name_and_every_chart_says_what_it_shows(
    page: Browser, screen: dict[str, Any]
) -> None:
    page.on(screen)
    heard = spoken(page)
    assert [role for role, name in heard if role in ASKS and not name] == []
    charts = [name for role, name in heard if role in ("img", "image")]
    assert len(charts) == page.see("document.querySelectorAll('svg').length") == 3
    assert [name.split(" ")[0] for name in charts] == ["Loss", "Updates", "Share"]


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_the_tab_key_reaches_all_that_can_be_seen_and_nothing_else(page: Browser, screen: dict[str, Any]) -> None:
    page.on(screen)
    reached = []
    page.press("Tab")
    while (at := page.see(FOCUSED)) is not None:
        assert len(reached) < 200, reached
        reached.append(at)
        page.press("Tab")
    assert [name for name, _, _ in reached] == page.see(CONTROLS)
    assert [name for name, is_seen, has_outline in reached if not (is_seen and has_outline)] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_and_every_chart_stands_out_from_what_is_behind_it(page: Browser, scheme: str) -> None:
    for screen in (DESK, PHONE):
        page.on(screen, scheme)
        assert page.see(FAINT) == []
        page.see("confirmNode('kitchen')")
        assert page.see(FAINT) == []
        page.see("$('confirm').close(); connection(false); tell('no', true)")
        assert page.see(FAINT) == []
    assert page.see("new Set(checked).size") > 100


@pytest.mark.parametrize("is_locked", ["true", "false"])
def test_nothing_is_cut_off_or_broken_at_any_width(page: Browser, is_locked: str) -> None:
    page.see(f"lock({is_locked})")
    for width in (320, 390, 700, 900, 1250, 1280, 1600):
        page.on((PHONE if width < 500 else DESK) | {"width": width})
        page.until(f"innerWidth === {width} && {ALL_DRAWN_AT_THEIR_SIZE}")
        page.picture(f"width-{width}")
        assert page.see("document.documentElement.scrollWidth") <= width
        assert page.see(f"{TOO_FULL}.map((at) => at.textContent)") == []
        assert page.see("[...document.querySelectorAll('#tiles span')].every((at) => at.getClientRects().length === 1)")


def test_a_loss_that_was_measured_once_is_a_dot(federation: Any, show: Any, address: str, browser: Browser) -> None:
    here = federation(FedBuff(buffer_size=1))
    here.hears("kitchen")
    show(here.facts())
    browser.open(address)
    dot = "[...document.querySelectorAll('#loss circle')].map((at) => at.getAttribute('fill'))"
    assert browser.see(dot) == ["var(--second)"]
    here.hears("kitchen")
    show(here.facts())
    browser.until("newest.head === 2")
    assert browser.see(dot) == []


def test_columns_are_sorted_by_keyboard_and_say_so(page: Browser) -> None:
    page.see("document.querySelector('[data-column=weight_share] button').focus()")
    page.press("Enter")
    assert page.see("document.querySelector('[data-column=weight_share]').ariaSort") == "descending"
    assert page.see("document.querySelector('#fleet-body tr').dataset.key") == "kitchen"
    page.press("Enter")
    assert page.see("document.querySelector('[data-column=weight_share]').ariaSort") == "ascending"
    assert page.see("document.querySelectorAll('[aria-sort]').length") == 1
