"""What a person does with the recorded cases, in a real Chromium."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect


def test_the_figure_is_one_stop_and_the_arrow_keys_walk_along_it(page):
    page.goto("/accuracy")
    points = page.locator(".scatter").first.locator(".marks").first.locator(".point")
    readout = page.locator(".readout").first
    assert points.count() > 40
    assert points.evaluate_all("all => all.filter((point) => point.tabIndex === 0).length") == 1
    points.first.focus()
    page.keyboard.press("ArrowRight")
    expect(points.nth(1)).to_be_focused()
    expect(readout).to_have_text(points.nth(1).get_attribute("data-text"))
    page.keyboard.press("End")
    expect(points.last).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(points.last).to_be_focused()
    page.keyboard.press("Home")
    expect(points.first).to_be_focused()
    key = points.first.get_attribute("data-key")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/accuracy/{key}")


def test_a_mark_that_is_pointed_at_is_shown_in_figure_and_strip(page):
    page.goto("/accuracy")
    point = page.locator(".marks .point").last
    key = point.get_attribute("data-key")
    point.locator(".target").hover(force=True)
    shown = page.locator(".scatter").first.locator(".shown")
    keys = set(shown.evaluate_all("all => all.map((point) => point.dataset.key)"))
    assert len(keys) == 1
    expect(shown).to_have_count(2)
    expect(page.locator(".readout").first).to_contain_text("recorded")
    assert key


def test_from_a_mark_to_its_record_to_the_same_step_in_fit(page):
    page.goto("/accuracy?lang=en")
    page.click(".records > summary")
    row = page.locator(".records tbody tr").first
    name, recorded = row.locator("a").inner_text(), row.locator("data").first.get_attribute("value")
    row.locator("a").click()
    expect(page.locator("h1")).to_contain_text(name)
    expect(page.locator("main")).to_contain_text(f"{int(recorded):,}")
    page.click("text=Open this step in Fit")
    expect(page.locator("#model")).to_have_value(name)
    gib = re.compile(re.escape(f"{int(recorded) / 2**30:.1f} GiB"))
    expect(page.locator(".plot text.peak")).to_have_text(gib)


def test_fit_leads_to_accuracy_and_back_with_the_question(page):
    page.goto("/?model=gpt2&gpu=rtx-4090")
    page.locator("header >> text=Accuracy").click()
    expect(page.locator("h1")).to_contain_text("on a GPU")
    page.locator("header >> text=Fit").click()
    expect(page.locator("#model")).to_have_value("gpt2")
    page.locator(".verdict .accuracy a").click()
    page.wait_for_url("**/accuracy?lang=en")


def test_without_a_script_every_mark_is_a_link(browser, address):
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    page.goto("/accuracy")
    point = page.locator(".marks .point").first
    point.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/accuracy/*")
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.goto("/accuracy")
    page.click(".records > summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".records a").last.click()
    page.wait_for_url("**/accuracy/*")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("scheme", "language"), [("light", "en"), ("dark", "zh")])
def test_axe_finds_nothing(page, scheme, language):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(f"/accuracy?lang={language}")
    page.click(".records > summary")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.locator(".records a").first.click()
    page.wait_for_url("**/accuracy/*")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
