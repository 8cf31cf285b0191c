"""Encoders: what they own, how their attention counts, what they are refused with."""

from typing import Any

import pytest

from calc import ConfigError, Estimate, Scenario, estimate, length_report
from calc.explain import formulas

BERT_BASE = {"model_type": "bert"}


def bert(config: dict[str, Any] | None = None, **fields: Any) -> Estimate:
    asked: dict[str, Any] = {"sequence_length": 128} | fields
    return estimate(Scenario(model=BERT_BASE | (config or {}), **asked))


def test_bert_base_has_its_published_parameters() -> None:
    pooler, next_sentence = 768 * 768 + 768, 2 * 768 + 2
    # https://huggingface.co/google-bert/bert-base-uncased holds those of BertForPreTraining, 110,106,428.
    assert bert().parameters.total == 110_106_428 - pooler - next_sentence
    assert bert(num_labels=2).parameters.total == 109_482_240 + 2 * 768 + 2  # BertModel and its classifier


def test_roberta_base_has_its_published_parameters() -> None:
    roberta = {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1}
    # https://huggingface.co/FacebookAI/roberta-base holds 124,697,947 numbers, 514 position_ids among them.
    assert estimate(Scenario(model=roberta)).parameters.total == 124_697_947 - 514
    assert estimate(Scenario(model=roberta)).scenario.sequence_length == 512  # none for the padding token and before


def test_modernbert_has_its_published_parameters() -> None:
    large = {"num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2624}
    # As the files of https://huggingface.co/answerdotai/ModernBERT-base and ModernBERT-large hold.
    for sizes, published in (({}, 149_655_232), (large, 395_881_664)):
        answer = estimate(Scenario(model={"model_type": "modernbert"} | sizes, sequence_length=512))
        assert answer.parameters.total == published


def test_a_modernbert_sees_all_in_every_third_layer() -> None:
    layers = estimate(Scenario(model={"model_type": "modernbert"}, sequence_length=512)).architecture.layers
    assert [(count, layer.sliding_window) for layer, count in layers[:4]] == [(1, None), (2, 64), (1, None), (2, 64)]
    assert [layer.kind.norms.before_attention for layer, _ in layers[:2]] == [None, "attn_norm"]


def test_a_modernbert_without_a_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.layer_types = "):
        estimate(Scenario(model={"model_type": "modernbert", "num_hidden_layers": 1}))


def test_labels_are_as_long_as_tokens() -> None:
    inputs = bert(micro_batch_size=4).memory.persistent_bytes["inputs"]
    assert inputs == 2 * (4 * 128 * 8)
    assert bert(micro_batch_size=4, num_labels=2).memory.persistent_bytes["inputs"] == 4 * 128 * 8 + 512


def test_no_score_is_computed_in_vain() -> None:
    flops = bert().flops
    assert flops.model_flops_per_token_causal == flops.model_flops_per_token
    assert "causal-attention" not in {formula.key for formula in formulas(bert())}


def test_eager_attention_makes_no_mask() -> None:
    assert "causal_mask" not in {tensor.name for tensor in bert(attention="eager").tensors}
    kept = {kernel: bert(attention=kernel).memory.saved_activation_bytes for kernel in ("eager", "flash")}
    assert kept["eager"] > kept["flash"]


def test_it_has_as_many_positions_as_its_table() -> None:
    assert bert(sequence_length=None).scenario.sequence_length == 512
    with pytest.raises(ConfigError, match=r"^sequence_length = 513: should be at most 512"):
        bert(sequence_length=513)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"loss": "chunked-cross-entropy"}, "loss"),
        ({"implementation": "megatron", "precision": "bf16"}, "implementation"),
        ({"use_liger_kernel": True}, "use_liger_kernel"),
        *[({"adapter": {"kind": kind}}, "adapter.kind") for kind in ("qlora", "adalora", "prefix-tuning", "p-tuning")],
    ],
)
def test_what_is_not_built_for_it_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} = "):
        bert(**fields)


@pytest.mark.parametrize(
    "config",
    [
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"tie_word_embeddings": False},
        {"chunk_size_feed_forward": 64},
        {"architectures": ["BertLMHeadModel"]},
        {"architectures": ["BertForPreTraining"]},
        {"architectures": ["BertForQuestionAnswering"]},
    ],
)
def test_other_makes_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^model.{next(iter(config))} = "):
        bert(config)


def test_a_config_names_its_head() -> None:
    assert bert({"architectures": ["BertForMaskedLM"]}).parameters == bert().parameters
    classifier = bert({"architectures": ["BertForSequenceClassification"], "num_labels": 5})
    assert classifier.parameters == bert(num_labels=5).parameters


def test_padding_is_not_compared_with_packing() -> None:
    with pytest.raises(ConfigError, match="is no causal language model"):
        length_report(Scenario(model=BERT_BASE, sequence_length=128), [5, 100])


def test_the_notes_say_what_it_is_given() -> None:
    assert "without padding" in " ".join(bert().notes)
    assert "padding token" not in " ".join(bert(num_labels=2).notes)
