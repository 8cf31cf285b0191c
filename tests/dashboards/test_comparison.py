import calc
from dashboards.comparison import DEFAULT_RANK, alternatives, nearest_that_fits


def compared(**question):
    scenario = calc.Scenario(**question)
    estimate = calc.estimate(scenario)
    return scenario, estimate, {row.key: row for row in alternatives(scenario, estimate)}


def test_each_row_is_the_users_scenario_with_one_thing_changed():
    scenario, _, rows = compared(model="gpt2", micro_batch_size=3, optimizer="sgd", adapter={"kind": "lora", "rank": 4})
    assert list(rows) == ["full_training", "selective", "full", "lora", "lora_full"]
    assert {row.scenario.optimizer for row in rows.values()} == {"sgd"}
    assert {row.scenario.micro_batch_size for row in rows.values()} == {3}
    assert rows["lora"].scenario == scenario
    assert [key for key, row in rows.items() if row.is_current] == ["lora"]
    assert rows["full_training"].scenario.adapter is None


def test_a_lora_row_has_a_rank_where_the_user_chose_none():
    _, _, rows = compared(model="gpt2")
    assert rows["lora"].scenario.adapter == calc.Adapter(rank=DEFAULT_RANK)


def test_half_the_micro_batch_keeps_the_tokens_of_a_step():
    _, estimate, rows = compared(model="gpt2", micro_batch_size=8, gradient_accumulation_steps=2)
    halved = rows["half_batch"]
    assert (halved.scenario.micro_batch_size, halved.scenario.gradient_accumulation_steps) == (4, 4)
    assert halved.estimate.flops.total == estimate.flops.total


def test_every_answer_is_that_of_its_scenario():
    _, _, rows = compared(model="gpt2", micro_batch_size=2, gpu="rtx-4090")
    for row in rows.values():
        assert row.estimate.memory == calc.estimate(row.scenario).memory


def test_the_nearest_that_fits_is_the_first_that_does():
    _, estimate, rows = compared(model="llama-3.1-8b", gpu="a100-sxm-80gb", micro_batch_size=4)
    assert estimate.memory.fits is False
    nearest = nearest_that_fits(list(rows.values()))
    assert nearest is not None
    assert nearest.estimate.memory.fits
    before = list(rows)[: list(rows).index(nearest.key)]
    assert not any(rows[key].estimate.memory.fits for key in before)
