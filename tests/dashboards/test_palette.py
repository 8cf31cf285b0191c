from itertools import pairwise

import pytest

from dashboards.palette import COLOURS, TEXTURES, stylesheet

AA_TEXT, AA_GRAPHICS = 4.5, 3.0


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_what_wcag_says():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
class TestTheme:
    @pytest.mark.parametrize("ground", ["ground", "raised"])
    @pytest.mark.parametrize("text", ["ink", "muted", "accent", "good", "bad"])
    def test_text_is_readable(self, theme, text, ground):
        assert contrast(COLOURS[text][theme], COLOURS[ground][theme]) >= AA_TEXT

    @pytest.mark.parametrize("part", TEXTURES)
    def test_names_are_readable_on_their_parts(self, theme, part):
        assert contrast(COLOURS["ground"][theme], COLOURS[part][theme]) >= AA_TEXT

    def test_edges_of_controls_are_seen(self, theme):
        assert contrast(COLOURS["control"][theme], COLOURS["ground"][theme]) >= AA_GRAPHICS


def test_neighbours_differ_without_their_hue():
    large = [part for part in TEXTURES if part not in ("buffers", "inputs")]
    for one, other in pairwise(large):
        assert TEXTURES[one] != TEXTURES[other]


def test_the_stylesheet_has_every_colour_once():
    css = stylesheet()
    assert all(css.count(f"--{name.replace('_', '-')}: light-dark(") == 1 for name in COLOURS)
