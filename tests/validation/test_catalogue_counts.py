"""Every config of the catalogue builds with transformers and has exactly the ledger's number of parameters."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers.models.auto.configuration_auto import AutoConfig

from calc import Scenario, estimate
from calc.catalogue import CatalogueModel, models
from tests.validation.families import NOT_BUILT
from validation.models import MODEL_CLASSES, from_config


def num_parameters(model: CatalogueModel) -> int:
    """Parameters of the real model, tied ones once; nothing is allocated."""
    with torch.device("meta"):
        auto_class = MODEL_CLASSES[model.config["model_type"]]
        return from_config(auto_class, AutoConfig.for_model(**model.config)).num_parameters()


BUILT = [model for model in models() if model.config["model_type"] not in NOT_BUILT]


@pytest.mark.parametrize("model", BUILT, ids=lambda model: model.name)
def test_the_real_model_has_as_many_parameters_as_the_ledger(model: CatalogueModel):
    """Where a number is published, tests/calc/test_catalogue.py holds the ledger to it."""
    assert num_parameters(model) == estimate(Scenario(model=model.name)).parameters.total
