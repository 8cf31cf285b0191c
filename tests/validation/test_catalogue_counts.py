"""Every config of the catalogue builds with transformers and has exactly the published number of parameters."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from calc.catalogue import CatalogueModel, models


def num_parameters(model: CatalogueModel) -> int:
    """Parameters of the real model, tied ones once; nothing is allocated."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**model.config)).num_parameters()


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
def test_the_real_model_has_the_published_number_of_parameters(model: CatalogueModel):
    counted = num_parameters(model)
    if model.published_parameters is None:
        assert counted > 0
    else:
        assert counted == model.published_parameters.total
