"""FLOPs of a few rows, each product's four sizes a different prime."""

from calc.attention import SCORES_PRODUCT, VALUES_PRODUCT
from calc.dtype import DType
from calc.flops import FLOPS_PER_PRODUCT, causal_flops, products
from calc.ledger import Kind, Product, Region, Row, Section, Tensor
from calc.lifetimes import Context, lifetimes
from calc.primitives import matmul, scale, softmax
from calc.sizes import Counts, Measures, Sizes, number_of

SIZES = Sizes(B=3, S=5, H=7, F=11, N=2, D=13)
PRODUCT = Product((), ("B", "S"), ("F",), ("H",))
FLOPS = 2 * 3 * 5 * 11 * 7
X, A, Y = (Tensor(name, ("B", "S", "H"), DType.FP32) for name in "xay")
W = Tensor("w", ("F", "H"), DType.FP32, Kind.PARAMETERS, trainable=True)


def summed(counts: Counts) -> int:
    elements = Measures(counts).table(SIZES)
    return sum(times * elements[number] for number, times in counts.items())


def flops_of(*rows: Row, input_required: bool = True, checkpointed: bool = False) -> dict[str, int]:
    region = Region(start=0, stop=len(rows)) if checkpointed else None
    section = Section(name="section", rows=rows, input=X, output=Y, region=region)
    done = products(rows, lifetimes(section, Context(input_required=input_required)))
    names = ("forward", "backward", "recompute", "needed", "needed_causal")
    return {name: FLOPS_PER_PRODUCT * summed(getattr(done, name)) for name in names} | {
        "elementwise": summed(done.elementwise)
    }


def test_a_product_and_its_two_gradients() -> None:
    done = flops_of(matmul("mm", X, W, Y, PRODUCT))
    assert (done["forward"], done["backward"], done["needed"]) == (FLOPS, 2 * FLOPS, 3 * FLOPS)
    assert (done["recompute"], done["needed_causal"], done["elementwise"]) == (0, 0, 0)


def test_a_gradient_nobody_wants_is_not_computed() -> None:
    assert flops_of(matmul("mm", X, W, Y, PRODUCT), input_required=False)["backward"] == FLOPS


def test_what_a_checkpoint_computes_again() -> None:
    twice = (matmul("mm", X, W, A, PRODUCT), matmul("mm", A, W, Y, PRODUCT))
    done = flops_of(*twice, checkpointed=True)
    # The second product's input is the last tensor a node keeps: only the first is done again.
    assert (done["forward"], done["recompute"], done["needed"]) == (2 * FLOPS, FLOPS, 6 * FLOPS)


def test_products_of_causal_attention_stand_apart() -> None:
    done = flops_of(matmul("scores", X, W, Y, SCORES_PRODUCT))
    assert (done["needed"], done["needed_causal"]) == (0, 3 * 2 * 3 * 2 * 5 * 5 * 13)


def test_what_a_kernel_computes_again_is_not_needed() -> None:
    row = Row(
        name="flash", reads=(X, W), writes=(Y,), gradients=matmul("", X, W, Y, PRODUCT).gradients[:1],
        products=(SCORES_PRODUCT,), backward_products=(SCORES_PRODUCT,), backward_rerun=(SCORES_PRODUCT,),
    )  # fmt: skip
    scores = 2 * 3 * 2 * 5 * 5 * 13
    done = flops_of(row)
    assert (done["backward"], done["needed_causal"]) == (FLOPS + 2 * scores, 2 * scores)


def test_elementwise_operations() -> None:
    done = flops_of(scale(X, A), softmax(A, Y))
    assert done["elementwise"] == (1 + 3) * 3 * 5 * 7


def test_half_of_a_causal_core() -> None:
    core = FLOPS_PER_PRODUCT * summed({number_of(product.shape): 1 for product in (SCORES_PRODUCT, VALUES_PRODUCT)})
    attended = 5 * (5 + 1) // 2  # token i attends to i tokens
    assert causal_flops(core, 5) == 2 * (2 * 3 * 2 * attended * 13)
