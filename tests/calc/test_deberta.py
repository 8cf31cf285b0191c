"""DeBERTa-v2: which configs are read; tests/validation/test_families.py traces steps."""

from typing import Any

import pytest

from calc import ConfigError, Scenario, estimate
from tests.validation.families import config_of

CONFIG = config_of("deberta-v2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("relative_attention", False),
        ("norm_rel_ebd", "none"),
        ("pos_att_type", "c2p"),
        ("position_buckets", None),
        ("conv_kernel_size", 3),
        ("legacy", False),
        ("embedding_size", 32),
        ("attention_head_size", 32),
        ("pooler_dropout", 0.1),
    ],
)
def test_what_is_not_modelled_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        estimate(Scenario(model=CONFIG | {field: value}))
    assert (raised.value.field, raised.value.value) == (f"model.{field}", value)


@pytest.mark.parametrize("spelling", ["P2C|c2p", ["c2p", "p2c"]])
def test_both_products_are_spelt_in_two_ways(spelling: Any) -> None:
    assert estimate(Scenario(model=CONFIG | {"pos_att_type": spelling})).parameters == (
        estimate(Scenario(model=CONFIG)).parameters
    )


def test_frozen_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="distances"):
        estimate(Scenario(model=CONFIG, frozen_layers=1))


def test_projections_of_their_own_are_two_more_linears_a_layer() -> None:
    shared, own = (
        estimate(Scenario(model=CONFIG | {"share_att_key": each})).parameters.total for each in (True, False)
    )
    width = CONFIG["hidden_size"]
    assert own - shared == CONFIG["num_hidden_layers"] * 2 * (width * width + width)
