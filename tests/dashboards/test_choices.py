"""What the forms offer: every model and every GPU once, told apart."""

import re

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from calc import gpus, models
from dashboards.choices import gpu_choices, model_choices


def test_every_model_is_offered_once_in_the_catalogues_order():
    assert [name for name, _ in model_choices()] == [model.name for model in models()]


def test_a_model_comes_with_its_size_and_its_hub_id():
    labels = dict(model_choices())
    assert labels["llama-3.1-8b"] == "8.03 B · meta-llama/Llama-3.1-8B"
    assert labels["gpt3-175b"] == ""


def test_every_gpu_is_offered_once_under_its_vendor_and_use():
    offered = [(name, vendor, segment) for vendor, segment, group in gpu_choices() for name, _ in group]
    assert offered == [(gpu.name, gpu.vendor, gpu.segment) for gpu in gpus()]
    groups = [(vendor, segment) for vendor, segment, _ in gpu_choices()]
    assert len(groups) == len(set(groups))


def test_a_gpu_comes_with_its_memory():
    labels = {name: label for _, _, group in gpu_choices() for name, label in group}
    assert labels["rtx-4090"] == "rtx-4090 · 24 GiB"


@pytest.mark.parametrize(("path", "selects"), [("/", 1), ("/compare", 3)])
@pytest.mark.parametrize(("language", "label"), [("en", "NVIDIA · data centre"), ("zh", "NVIDIA · 数据中心")])
def test_pages_offer_them_in_groups(path: str, selects: int, language: str, label: str):
    page = TestClient(create_app()).get(f"{path}?lang={language}").text
    assert page.count(f'<optgroup label="{label}">') == selects
    assert len(re.findall(r'<option value="h100-sxm-80gb"[^>]*>h100-sxm-80gb · 80 GiB</option>', page)) == selects
    assert page.count('<option value="llama-3.1-8b" label="8.03 B · meta-llama/Llama-3.1-8B">') == 1
