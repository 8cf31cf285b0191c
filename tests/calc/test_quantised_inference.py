"""Generations with quantised weights: what lies in memory, what products make, what is read, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from calc import ConfigError, Estimate, Scenario, checkpoint_weights, deployments, estimate, estimate_plan, solve
from calc.accuracy import likenesses
from calc.catalogue import checkpoints
from calc.dimensions import WrittenOut
from calc.dtype import DType
from calc.hardware import gpu_named
from calc.inference import WEIGHTS
from calc.quantisation.gguf import MOSTLY, uses_more_bits
from calc.quantisation.named import CONFIGS
from calc.scenario import Task, WeightDType
from calc.sizes import ALLOCATION_UNIT_BYTES
from calc.traffic import Holds, forward_work
from calc.units import GIB

LLAMA = "llama-3.1-8b"
LLAMA_LINEARS = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
"""Elements of the layers' matrices."""
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
OF_LLAMA = [each for each in (*CONFIGS, *MOSTLY) if each is not WeightDType.MXFP4]
TINY = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 512,
    "vocab_size": 200,
}


def asked(model: str | dict[str, Any] = LLAMA, **fields: Any) -> Scenario:
    return Scenario(model=model, task=Task.INFERENCE, **fields)


def generated(model: str | dict[str, Any] = LLAMA, **fields: Any) -> Estimate:
    return estimate(asked(model, **fields))


def weights(answer: Estimate) -> int:
    """Bytes of the weights with what belongs to them."""
    persistent = answer.memory.persistent_bytes
    return persistent["parameters"] + persistent["buffers"]


def own(model: dict[str, Any], **quantisation: Any) -> dict[str, Any]:
    return model | {"quantization_config": quantisation}


def test_every_type_of_weights_is_built() -> None:
    assert {*WEIGHTS, *CONFIGS, *MOSTLY} == set(WeightDType)


@pytest.mark.parametrize(
    ("weight_dtype", "bits"),
    [
        ("int8", 8 + 32 * 32 * (4096 * 2 + 1024 * 2 + 14336 * 2 + 4096) / LLAMA_LINEARS),
        ("nf4", 4 + 32 / 64),
        ("fp4", 4 + 32 / 64),
        ("nf4-double", 4 + 8 / 64 + 32 / 64 / 256),
        ("fp8", 8 + 32 / 128**2),
        ("awq-int4", 4 + 4 / 128 + 16 / 128),
    ],
)
def test_bits_of_a_weight(weight_dtype: str, bits: float) -> None:
    """Scales and zero points included; by hand."""
    saved = weights(generated()) - weights(generated(weight_dtype=weight_dtype))
    assert 16 - 8 * saved / LLAMA_LINEARS == pytest.approx(bits, rel=2e-4)


@pytest.mark.parametrize("weight_dtype", OF_LLAMA)
def test_there_are_as_many_parameters_as_before(weight_dtype: str) -> None:
    assert generated(weight_dtype=weight_dtype).parameters == generated().parameters


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda each: each.hub_id)
def test_a_checkpoint_lies_in_memory_as_in_its_files(checkpoint: Any) -> None:
    if checkpoint.quantization_config["quant_method"] == "compressed-tensors":
        with pytest.raises(ConfigError, match=r"compressed-tensors.*not supported yet with task = inference"):
            generated(checkpoint.hub_id)
        return
    answer, file = generated(checkpoint.hub_id), checkpoint_weights(checkpoint.hub_id)
    most_rounding = ALLOCATION_UNIT_BYTES * (1 + sum(row.count for row in file.tensors))
    assert 0 <= weights(answer) - file.total_bytes < most_rounding
    assert answer.parameters == generated(checkpoint.model).parameters


def test_a_model_of_70b_in_4_bits_fits_48_gb() -> None:
    sizes: dict[str, Any] = {"model": "llama-3.1-70b", "gpu": "rtx-a6000", "prompt_length": 2048, "output_length": 256}
    assert not generated(**sizes).memory.fits
    assert not generated(**sizes, weight_dtype="int8").memory.fits
    assert generated(**sizes, weight_dtype="nf4").memory.fits
    assert generated(**sizes, weight_dtype="awq-int4").memory.fits


@pytest.mark.parametrize("weight_dtype", ["gptq-int4", "awq-int4"])
def test_a_kernel_that_unpacks_makes_nothing(weight_dtype: str) -> None:
    sizes: dict[str, Any] = {"precision": "fp16", "prompt_length": 300, "output_length": 20, "batch_size": 3}
    plain, packed = (generated(**sizes, weight_dtype=each).memory for each in ("fp16", weight_dtype))
    freed = sum(plain.persistent_bytes.values()) - sum(packed.persistent_bytes.values())
    for before, after in zip(plain.phases, packed.phases, strict=True):
        assert before.peak_allocated_bytes - after.peak_allocated_bytes == freed
        assert before.end_allocated_bytes - after.end_allocated_bytes == freed


def test_a_weight_in_4_bits_is_written_out_for_more_than_four_tokens() -> None:
    largest = 2 * 4096 * 14336
    one, four, five = (
        generated(weight_dtype="nf4", batch_size=batch_size, prompt_length=1, output_length=0).memory
        for batch_size in (1, 4, 5)
    )
    beside = [each.peak_allocated_bytes - sum(each.persistent_bytes.values()) for each in (one, four, five)]
    assert beside[1] < 2 * 2**20
    assert largest <= beside[2] < largest + 2 * 2**20


@pytest.mark.parametrize(("tokens", "columns", "elements"), [(4, 128, 0), (5, 128, 7 * 128), (4, 96, 7 * 96)])
def test_what_is_written_out(tokens: int, columns: int, elements: int) -> None:
    assert WrittenOut((7, columns), (tokens,), (columns,)).size({}) == elements


def test_a_config_says_how_its_weights_are_kept() -> None:
    sizes: dict[str, Any] = {"prompt_length": 20, "output_length": 4}
    named = generated(TINY, weight_dtype="awq-int4", **sizes)
    read = generated(own(TINY, **AWQ), **sizes)
    assert read.memory.to_dict() == named.memory.to_dict()
    assert (read.scenario.weight_dtype, read.scenario.precision) == (None, "fp16")
    assert any("Weights of linear modules are in awq" in note for note in read.notes)


def test_modules_that_are_left_as_they_are_count_layer_by_layer() -> None:
    left_out = own(TINY, **AWQ, modules_to_not_convert=["model.layers.1.mlp"])
    all_quantised, partly = weights(generated(own(TINY, **AWQ))), weights(generated(left_out))
    numel = 3 * 256 * 512
    assert partly - all_quantised == numel * 2 - numel // 2 - 3 * 1024 * (2 + 1 / 2) * numel // (3 * 1024 * 128)


def test_a_head_that_the_config_names_is_quantised() -> None:
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "meta": {"quantizer": "gptqmodel"}}
    model = TINY | {"vocab_size": 256}
    without, with_head = (weights(generated(own(model, **gptq, lm_head=each))) for each in (False, True))
    numel = 256 * 256
    packed = numel // 2 + 512 + 2 * 256 * 2 + 256 * 4  # its zero points rounded up
    assert without - with_head == 2 * numel - packed
    tied = own(model | {"tie_word_embeddings": True}, **gptq, lm_head=True)
    assert weights(generated(tied)) == without - 2 * numel


def test_products_are_in_fp32_where_a_config_says_no_type() -> None:
    """BitsAndBytesConfig's default: the weight is written out in 4 bytes, its input and output are cast."""
    bnb = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    sizes: dict[str, Any] = {"prompt_length": 5, "output_length": 0}
    silent, said = (
        generated(own(TINY | {"hidden_size": 1024}, **bnb, **each), **sizes).memory.peak_allocated_bytes
        for each in ({}, {"bnb_4bit_compute_dtype": "bfloat16"})
    )
    assert silent - said >= 2 * 1024 * 1024


@pytest.mark.parametrize(
    ("model", "fields", "field", "problem"),
    [
        (own(TINY, **AWQ), {"weight_dtype": "nf4"}, "weight_dtype", "should be left out"),
        (own(TINY, **AWQ), {"precision": "bf16"}, "precision", "should be fp16 with weights in awq"),
        (TINY, {"weight_dtype": "fp8", "precision": "fp32"}, "precision", "should be bf16, fp16 with weights in fp8"),
        (TINY, {"weight_dtype": "fp8", "gpu": "a100-sxm-80gb"}, "gpu", "should have compute capability 8.9"),
        ("mixtral-8x7b", {"weight_dtype": "nf4"}, "weight_dtype", "mixture of experts"),
        (own(TINY, quant_method="fbgemm_fp8"), {}, "model.quantization_config.quant_method", "not supported yet"),
        (own(TINY, quant_method="hqq"), {}, "model.quantization_config.quant_method", "should be one of"),
        (TINY, {"weight_dtype": "int3"}, "weight_dtype", "awq-int4"),
        (TINY | {"num_hidden_layers": 257}, {"weight_dtype": "nf4"}, "model.num_hidden_layers", "at most 256"),
        ("gpt2", {"weight_dtype": "fp8"}, "weight_dtype", "not supported yet for gpt2"),
        ("gpt2", {"weight_dtype": "awq-int4"}, "weight_dtype", "not supported yet for gpt2"),
        ("bloom-560m", {"weight_dtype": "awq-int4"}, "weight_dtype", "not supported yet for bloom"),
        (TINY, {"weight_dtype": "mxfp4"}, "weight_dtype", "is for gpt_oss alone"),
        ("gpt-oss-20b", {"weight_dtype": "mxfp4", "gpu": "v100-sxm-32gb"}, "gpu", "compute capability 7.5"),
        ("gpt-oss-20b", {"weight_dtype": "nf4"}, "weight_dtype", "mixture of experts"),
        ("gpt2", {"weight_dtype": "q4_k_m"}, "weight_dtype", "not supported yet for gpt2; supported: llama"),
        ("mixtral-8x7b", {"weight_dtype": "q4_0"}, "weight_dtype", "mixture of experts"),
    ],
)
def test_what_is_refused(model: Any, fields: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refusal:
        generated(model, **fields)
    assert refusal.value.field == field


def test_records_of_other_weights_are_not_alike() -> None:
    assert all("weights in nf4" in each for each in likenesses("llama", generated(weight_dtype="nf4").step.plan))


def test_quantised_weights_are_not_trained() -> None:
    with pytest.raises(ConfigError, match="quantised weights are not trained"):
        estimate(Scenario(model=own(TINY, **AWQ)))


@pytest.mark.parametrize("weight_dtype", ["int8", "nf4", "fp8", "gptq-int4"])
def test_an_answer_asked_again_is_the_same(weight_dtype: str) -> None:
    answer = generated(gpu="h100-sxm-80gb", weight_dtype=weight_dtype)
    again = estimate(Scenario(**answer.to_dict(reserved=True)["scenario"]))
    assert again.to_dict() == answer.to_dict()
    assert answer.generation is not None
    planned = estimate_plan(answer.architecture, answer.step.workload, answer.step.plan)
    assert planned.scenario.weight_dtype == weight_dtype
    assert planned.memory.phases == answer.memory.phases


@pytest.mark.parametrize("weight_dtype", OF_LLAMA)
def test_a_token_reads_the_weights_as_they_are(weight_dtype: str) -> None:
    """All of them once, of the embedding one row."""
    answer = generated(gpu="h100-sxm-80gb", weight_dtype=weight_dtype)
    assert answer.time is not None
    assert answer.time.last_decode is not None
    embedding = next(each for each in answer.tensors if each.name == "embed_tokens.weight").bytes
    read = answer.time.last_decode.bytes_moved[Holds.WEIGHTS]
    assert read == pytest.approx(weights(answer) - embedding, rel=1e-4)
    plain = generated(gpu="h100-sxm-80gb").time
    assert plain is not None
    assert plain.seconds_per_output_token > answer.time.seconds_per_output_token > 0  # pyright: ignore


def test_writing_the_weights_out_takes_time() -> None:
    """Written and read again, beside the packed ones."""
    packed, written = (generated(gpu="h100-sxm-80gb", weight_dtype=each).time for each in ("gptq-int4", "nf4"))
    assert packed is not None
    assert written is not None
    moved = (sum(time.prefill.bytes_moved.values()) for time in (written, packed))
    assert next(moved) - next(moved) == pytest.approx(2 * 2 * LLAMA_LINEARS, rel=0.05)


@pytest.mark.parametrize(("weight_dtype", "dtype"), [("int8", DType.INT8), ("fp8", DType.FP8), ("nf4", DType.BF16)])
def test_products_are_of_the_type_their_kernel_multiplies(weight_dtype: str, dtype: DType) -> None:
    answer = generated(weight_dtype=weight_dtype, prompt_length=100)
    [found] = {
        done.work.dtype for done in forward_work(answer.step) if done.work.module == "mlp.up_proj" and done.flops
    }
    assert found is dtype


def test_the_smallest_gpu_is_one_that_multiplies_so() -> None:
    scenarios = (asked(prompt_length=2000, weight_dtype=each) for each in ("fp8", "int8"))
    fp8, int8 = (gpu_named(str(solve(each, minimise="gpu").value)) for each in scenarios)
    assert fp8.compute_capability == "8.9"
    assert int8.compute_capability != "8.9"


def test_more_sequences_fit() -> None:
    on_gpu: dict[str, Any] = {"gpu": "rtx-4090", "prompt_length": 1000}
    scenarios = (asked(**on_gpu, weight_dtype=each) for each in ("bf16", "nf4"))
    most = [solve(each, maximise="batch_size").value for each in scenarios]
    assert 0 < most[0] < most[1]  # pyright: ignore
    assert solve(asked("Qwen/Qwen3-32B-AWQ", **on_gpu), maximise="batch_size").value


def test_gpus_share_the_quantised_weights() -> None:
    scenario = asked("llama-3.1-70b", gpu="h100-sxm-80gb", weight_dtype="awq-int4")
    ways = {way.tensor_parallel: way for way in deployments(scenario)}
    assert set(ways) == {1, 2, 4, 8}
    one, eight = (weights(ways[ranks].estimate) for ranks in (1, 8))
    assert eight == pytest.approx(one / 8, rel=0.01)


@pytest.mark.parametrize(("weight_dtype", "ranks"), [(None, {1, 2, 4, 8}), ("awq-int4", {1, 2}), ("fp8", {1, 2})])
def test_gpus_share_whole_groups(weight_dtype: str | None, ranks: set[int]) -> None:
    """An MLP of 86 groups of 128 is shared by two, not by four."""
    scenario = asked("llama-2-7b", gpu="h100-sxm-80gb", weight_dtype=weight_dtype)
    assert {way.tensor_parallel for way in deployments(scenario)} == ranks


@pytest.mark.parametrize(("model", "published"), [("gpt-oss-20b", 13761264768), ("gpt-oss-120b", 65248815744)])
def test_experts_of_gpt_oss(model: str, published: int) -> None:
    """The bytes of the published files; each of at most 16 tensors a layer rounded up."""
    plain, answer = generated(model), generated(model, weight_dtype="mxfp4")
    layers = answer.architecture.num_layers
    assert 0 <= weights(answer) - published < ALLOCATION_UNIT_BYTES * (3 + 24 * layers)
    assert answer.parameters == plain.parameters
    assert (answer.flops.prefill, answer.flops.decode) == (plain.flops.prefill, plain.flops.decode)
    in_files = own({"model_type": "gpt_oss", "num_hidden_layers": 2}, quant_method="mxfp4")
    assert generated(in_files).scenario.precision == "bf16"


def test_one_token_reads_the_experts_it_is_sent_to() -> None:
    """4 of 32 of all matrices, with their scales."""
    answer = generated("gpt-oss-20b", weight_dtype="mxfp4", gpu="h100-sxm-80gb")
    [up] = [done for done in forward_work(answer.generation.decode) if done.work.name == "matmul_ogs"][:1]  # pyright: ignore
    read = up.bytes_moved[Holds.WEIGHTS]
    biases = 2 * 2880 * 2
    assert read == pytest.approx(4 * (2 * 2880 * 2880 * (1 / 2 + 1 / 32) + biases), rel=1e-3)


def test_experts_make_what_matmul_ogs_makes() -> None:
    """For each of a token's 4 experts an activation, and an output before they are summed."""
    step = generated("gpt-oss-20b", weight_dtype="mxfp4", prompt_length=10).step
    up, down = (row for row in step.step.parts[1].section.rows if row.name == "matmul_ogs")
    sizes = step.sizes[0]
    assert [tensor.nbytes(sizes) for tensor in up.writes] == [10 * 4 * 2880 * 2]
    assert [tensor.nbytes(sizes) for tensor in down.writes] == [10 * 2880 * 2]
    assert [tensor.nbytes(sizes) for tensor in down.temporaries] == [32 * 2880 * 4, 10 * 4 * 2880 * 2]


@pytest.mark.parametrize(
    ("model", "weight_dtype", "gib"),
    [
        (LLAMA, "q8_0", 7.95),
        (LLAMA, "q6_k", 6.14),
        (LLAMA, "q5_k_m", 5.33),
        (LLAMA, "q4_k_m", 4.58),
        (LLAMA, "q4_0", 4.33),
        ("llama-3.1-70b", "q4_k_m", 39.59),
        ("llama-2-7b", "q4_0", 3.56),
        ("llama-2-7b", "q4_k_m", 3.80),
        ("qwen2.5-7b", "q4_k_m", 4.36),
        ("qwen3-8b", "q4_k_m", 4.68),
    ],
)
def test_files_of_llama_cpp(model: str, weight_dtype: str, gib: float) -> None:
    """The size of all tensors as llama-bench prints it, quoted in public repositories ("llama 8B Q4_K - Medium")."""
    parameters = generated(model, weight_dtype=weight_dtype).memory.persistent_bytes["parameters"]
    assert round(parameters / GIB, 2) == gib


def test_layers_with_more_bits() -> None:
    """Of 16: two at either end, every third between."""
    assert [index for index in range(16) if uses_more_bits(index, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]


def test_matrices_of_odd_widths_have_small_blocks() -> None:
    """Rows of 896 are no multiple of 256: Q4_K becomes Q5_0, Q6_K and the tied output Q8_0."""
    answer = generated("qwen2.5-0.5b", weight_dtype="q4_k_m")
    types = {each.name: each.dtype for each in answer.tensors if each.kind == "parameters"}
    assert types["embed_tokens.weight"] == "q8_0"
    assert types["self_attn.q_proj.weight"] == "q5_0"
    assert types["input_layernorm.weight"] == types["self_attn.q_proj.bias"] == "fp32"


def test_rows_of_no_block_are_fp16() -> None:
    answer = generated(TINY | {"intermediate_size": 520}, weight_dtype="q8_0")
    types = {each.name: each.dtype for each in answer.tensors if each.kind == "parameters"}
    assert (types["mlp.down_proj.weight"], types["mlp.up_proj.weight"]) == ("fp16", "q8_0")


def weights_table() -> str:
    """As docs/quantised.md has it: GiB of all weights."""
    lines = ["| `weight_dtype` | Llama-3.1-8B | Llama-3.1-70B |", "|---|--:|--:|"]
    for weight_dtype in (each for each in WeightDType if each is not WeightDType.MXFP4):
        sizes = (weights(generated(model, weight_dtype=weight_dtype)) for model in (LLAMA, "llama-3.1-70b"))
        lines.append(f"| `{weight_dtype}` | {' | '.join(f'{size / GIB:.2f} GiB' for size in sizes)} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_current() -> None:
    assert weights_table() in (Path(__file__).parents[2] / "docs" / "quantised.md").read_text()
