"""What a person does with the page Serve, in a real Chromium."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

ASKED = "/serve?task=inference&model=llama-3.1-8b&gpu=h100-sxm-80gb&batch_size=16&prompt_length=1536&output_length=512"


def complete(page: Page) -> None:
    """The last of the stages is there."""
    expect(page.locator("#capacity .heat .point").first).to_be_attached()


def test_the_first_visit_is_filled(page):
    page.goto("/serve")
    complete(page)
    expect(page.locator("#summary h1")).to_contain_text("Fits.")
    expect(page.locator(".speed-line")).to_contain_text("tokens a second")
    expect(page.locator("#throughput .point.current")).to_have_count(1)
    expect(page.locator("#capacity .contour")).to_have_count(1)
    expect(page.locator("#speed .operations")).to_have_count(2)
    expect(page.locator(".deployments tbody tr")).to_have_count(4)


def test_a_change_changes_every_figure_and_the_address(page):
    page.goto(ASKED)
    complete(page)
    shown = page.locator(".speed-line").inner_text()
    curve = page.locator("#throughput .frontier").get_attribute("points")
    page.fill("#output_length", "1024")
    expect(page.locator(".speed-line")).not_to_have_text(shown)
    expect(page.locator("#throughput .frontier")).not_to_have_attribute("points", curve)
    page.wait_for_url("**output_length=1024**")
    assert "task=inference" in page.url
    kept = page.locator(".speed-line").inner_text()
    page.reload()
    expect(page.locator(".speed-line")).to_have_text(kept)
    expect(page.locator("#output_length")).to_have_value("1024")


def test_a_cell_asks_its_batch_and_context(page):
    page.goto(ASKED)
    complete(page)
    cell = page.locator(".heat .point[data-key='5-1']")
    text = cell.get_attribute("aria-label")
    assert text is not None
    assert text.startswith("2 sequences of 32,768 tokens")
    cell.click()
    expect(page.locator("#batch_size")).to_have_value("2")
    expect(page.locator("#prompt_length")).to_have_value(str(32768 - 512))
    expect(page.locator(".heat .point.current")).to_have_attribute("data-key", "5-1")
    expect(page.locator("#summary h1")).to_contain_text("Fits.")


def test_the_map_is_one_stop_and_the_arrow_keys_walk_over_it(page):
    page.goto(ASKED)
    complete(page)
    points = page.locator(".heat .point")
    assert points.evaluate_all("all => all.filter((point) => point.tabIndex === 0).length") == 1
    start = page.locator(".heat .point[data-key='1-4']")  # the question's own
    start.focus()
    for key, then in (("ArrowUp", "2-4"), ("ArrowRight", "2-5"), ("ArrowDown", "1-5"), ("ArrowLeft", "1-4")):
        page.keyboard.press(key)
        expect(page.locator(f".heat .point[data-key='{then}']")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".heat .point[data-key='0-4']")).to_be_focused()


def test_why_opens_the_formulas(page):
    page.goto(ASKED)
    page.click("#why-time > summary")
    expect(page.locator(".why-formula")).to_have_count(3)
    expect(page.locator(".why-formula .statement").last).to_contain_text("2·L·B·T·K·d·b = 2·32·16·2048·8·128·2 =")
    page.locator("#summary .why-link", has_text="KV cache").click()
    expect(page.locator("#why-kv_cache")).to_be_visible()


def test_from_fit_and_back_with_the_model(page):
    page.goto("/?model=gpt2&gpu=rtx-4090&micro_batch_size=4&recompute=full")
    page.locator("header >> text=Serve").click()
    expect(page.locator("#model")).to_have_value("gpt2")
    expect(page.locator("#gpu")).to_have_value("rtx-4090")
    complete(page)
    page.locator("header >> text=Fit").click()
    expect(page.locator("#task input:checked")).to_have_value("inference")
    expect(page.locator("#model")).to_have_value("gpt2")


def test_what_is_wrong_is_said_and_the_old_answer_stays(page):
    page.goto("/serve?task=inference&model=gpt2&gpu=rtx-4090&prompt_length=500&output_length=100")
    complete(page)
    page.fill("#prompt_length", "1000")
    expect(page.locator("#problem-prompt_length")).to_contain_text("1000: should be at most 924")
    expect(page.locator("#answer")).to_have_class("late")
    page.fill("#prompt_length", "900")
    expect(page.locator("#problem-prompt_length")).to_be_empty()


def test_the_languages_say_the_same_numbers(page):
    page.goto(f"{ASKED}&lang=en")
    complete(page)
    numbers = re.findall(r"\d+\.\d", page.locator(".speed-line").inner_text())
    page.click("text=中文")
    complete(page)
    expect(page.locator("h1")).to_contain_text("放得下")
    assert re.findall(r"\d+\.\d", page.locator(".speed-line").inner_text()) == numbers


def test_without_a_script_everything_is_there(browser, address):
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{ASKED}&whole=1")
    expect(page.locator(".heat .point").first).to_be_attached()
    expect(page.locator("#throughput .point.current")).to_have_count(1)
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    for path in (
        ASKED,
        f"{ASKED}&lang=zh",
        "/serve?task=inference&model=gpt2",
        "/serve?model=mixtral-8x7b&gpu=rtx-4090",
    ):
        page.goto(path)
        complete(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(ASKED)
    complete(page)
    for details in ("#more", "#config-entry", "#why-time", "#python", "#capacity details"):
        page.click(f"{details} > summary")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
