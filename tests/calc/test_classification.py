"""Classification heads: how they are asked for, what they own, what they are refused with."""

from typing import Any

import pytest

from calc import ConfigError, Estimate, Scenario, estimate
from calc.classification import CLASSIFIERS
from calc.families import FAMILIES
from tests.validation.families import NOT_BUILT, config_of

LABELS = 5


def gpt2(**fields: Any) -> Estimate:
    asked: dict[str, Any] = {"num_labels": LABELS, "sequence_length": 256} | fields
    return estimate(Scenario(model="gpt2", **asked))


def test_the_head_scores_hidden_states_and_has_no_bias() -> None:
    parameters = gpt2().parameters
    assert parameters.by_component["head"] == LABELS * 768
    assert parameters.total == 124_439_808 + LABELS * 768  # GPT-2's own head is its embedding


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({}, 2),
        ({"num_labels": 7}, 7),
        ({"id2label": {"0": "bad", "1": "fair", "2": "good"}}, 3),
        ({"id2label": {}}, 2),
        ({"problem_type": "single_label_classification"}, 2),
    ],
)
def test_a_config_names_its_head(fields: dict[str, Any], labels: int) -> None:
    config: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 1}
    named: dict[str, Any] = {"architectures": ["LlamaForSequenceClassification"]}
    answer = estimate(Scenario(model=config | named | fields, sequence_length=64))
    assert answer.architecture.num_labels == labels
    assert answer.parameters.by_component["head"] == labels * 4096


def test_the_field_is_worth_more_than_the_config() -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], "num_labels": 3}
    assert estimate(Scenario(model=config, num_labels=9)).architecture.num_labels == 9


def test_there_are_no_logits_over_the_vocabulary() -> None:
    classifier, language_model = (gpt2(num_labels=labels).memory for labels in (LABELS, None))
    logits_in_fp32, cast_weight = 256 * 50257 * 4, 50257 * 768 * 2
    spared = language_model.saved_activation_bytes - classifier.saved_activation_bytes
    assert spared > logits_in_fp32 + cast_weight


def test_labels_are_an_input() -> None:
    inputs = gpt2(micro_batch_size=100).memory.persistent_bytes["inputs"]
    assert inputs == 100 * 256 * 8 + 1024  # 100 labels of 8 bytes, rounded up


def test_an_adapter_trains_the_head_too() -> None:
    rank, head = 8, LABELS * 768
    lora_of_c_attn = 12 * rank * (768 + 3 * 768)
    assert gpt2(adapter={"rank": rank}).parameters.trainable == lora_of_c_attn + head
    named = gpt2(adapter={"rank": rank, "modules_to_save": ["score"]})
    assert named.parameters == gpt2(adapter={"rank": rank}).parameters
    assert gpt2(adapter={"target_modules": ["all-linear"]}).parameters.trainable > 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_labels": 1, "problem_type": "single_label_classification"}, "num_labels"),
        ({"num_labels": None, "problem_type": "regression"}, "problem_type"),
        ({"num_labels": 0}, "num_labels"),
        ({"loss": "chunked-cross-entropy"}, "loss"),
        ({"implementation": "megatron"}, "implementation"),
        ({"adapter": {"kind": "qlora"}}, "adapter.kind"),
        ({"adapter": {"kind": "p-tuning"}}, "adapter.kind"),
    ],
)
def test_what_it_does_not_go_with_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} = "):
        gpt2(**fields)


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - set(CLASSIFIERS)))
def test_other_families_are_refused_by_name(model_type: str) -> None:
    config = {"model_type": model_type} if model_type in NOT_BUILT else config_of(model_type)
    with pytest.raises(ConfigError, match=f"a classification head of {model_type} is not supported yet"):
        estimate(Scenario(model=config, num_labels=2))


def test_an_unknown_problem_is_refused() -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], "problem_type": "ranking"}
    with pytest.raises(ConfigError, match=r"^model\.problem_type = 'ranking': should be null or one of regression"):
        estimate(Scenario(model=config))


@pytest.mark.parametrize(
    ("fields", "choices", "problem"),
    [
        ({}, {"num_labels": 1}, "regression"),
        ({}, {"num_labels": 2}, "single_label_classification"),
        ({"problem_type": "regression"}, {"num_labels": 2}, "regression"),
        (
            {"problem_type": "regression"},
            {"num_labels": 2, "problem_type": "multi_label_classification"},
            "multi_label_classification",
        ),
    ],
)
def test_a_head_has_transformers_own_problem(fields: dict[str, Any], choices: dict[str, Any], problem: str) -> None:
    config = {"model_type": "gpt2", "n_layer": 1}
    assert estimate(Scenario(model=config | fields, sequence_length=8, **choices)).architecture.problem == problem


def test_labels_that_are_numbers_are_an_fp32_input() -> None:
    inputs = gpt2(micro_batch_size=100, problem_type="multi_label_classification").memory.persistent_bytes["inputs"]
    assert inputs == 100 * 256 * 8 + 2048  # 100 times 5 labels of 4 bytes, rounded up


def test_numbers_keep_their_logits_where_labels_keep_probabilities() -> None:
    """In bf16: log probabilities and the number of targets; logits, and the labels, which are an input."""
    fields: dict[str, Any] = {"micro_batch_size": 8, "num_labels": 1000, "precision": "bf16"}
    one, numbers = (gpt2(problem_type=problem, **fields).memory for problem in (None, "regression"))
    logits, labels = 16384, 32256  # 8·1000 of 2 and of 4 bytes, rounded up
    assert one.saved_activation_bytes - numbers.saved_activation_bytes == logits + 512  # the number of targets
    assert numbers.persistent_bytes["inputs"] - one.persistent_bytes["inputs"] == labels - 512


def test_the_notes_say_what_is_taken_for_granted() -> None:
    assert "padding token" in " ".join(gpt2().notes)
    assert "padding token" not in " ".join(gpt2(num_labels=None).notes)
