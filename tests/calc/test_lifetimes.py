"""Lifetimes on sections of a few rows, each derived by hand: + is allocated, - is freed, ∂x is the gradient of x."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from calc import Adapter, Scenario, estimate
from calc.dtype import DType
from calc.gradients import gradient_of
from calc.ledger import Gradient, Kind, Product, Region, Row, Section, Tensor
from calc.lifetimes import Context, Event, Lifetimes, Needs, lifetimes, needs
from calc.operators import Numerics, linear
from calc.primitives import add, frame, matmul, multiply, scale, shift, unary, view

SHAPE = ("B", "S", "H")
FP32, BF16 = DType.FP32, DType.BF16


def tensor(name: str) -> Tensor:
    return Tensor(name, SHAPE, FP32)


X, A, B, C, Y = map(tensor, "xabcy")
W = Tensor("w", ("H", "H"), FP32, Kind.PARAMETERS, trainable=True)
V = replace(W, name="v")
PRODUCT = Product((), ("B", "S"), ("H",), ("H",))


def sin(x: Tensor, out: Tensor) -> Row:
    """Keeps its input."""
    return unary("sin", x, out)


def exp(x: Tensor, out: Tensor) -> Row:
    """Keeps its result."""
    return unary("exp", x, out, saves_output=True)


def times(weight: Tensor, x: Tensor, out: Tensor) -> Row:
    """Keeps x for the weight's gradient; both gradients arrive as views."""
    return matmul("times", x, weight, out, PRODUCT)


def life(*rows: Row, region: Region | None = None, **context: Any) -> Lifetimes:
    """Of a section from x to y, whose input needs a gradient unless `context` says otherwise."""
    section = Section(name="section", rows=rows, input=X, output=Y, region=region)
    return lifetimes(section, Context(**{"input_required": True, **context}))


def needed(*rows: Row, **context: Any) -> Needs:
    section = Section(name="section", rows=rows, input=X, output=Y)
    return needs(section, Context(**{"input_required": True, **context}))


def checkpointed(*rows: Row) -> Lifetimes:
    return life(*rows, region=Region(start=0, stop=len(rows), arguments=(X,)))


def backward(seen: Lifetimes) -> tuple[Event, ...]:
    return (*seen.before_rerun, *seen.rerun, *seen.rerun_end, *seen.backward)


def told(events: Iterable[Event]) -> str:
    return " ".join(f"{'+' if allocated else '-'}{each.name}" for each, allocated in events)


def names(tensors: Iterable[Tensor]) -> set[str]:
    return {each.name for each in tensors}


def test_a_saved_tensor_lives_to_its_node_and_a_temporary_to_its_last_reader() -> None:
    seen = life(exp(X, A), scale(A, B), scale(B, C), sin(C, Y))
    # exp keeps a, sin keeps c; b goes when c is made; x goes when a is made, for nothing keeps it.
    assert told(seen.forward) == "+a -x +b +c -b +y"
    # sin's node: ∂c from ∂y and c; scale's: ∂b, ∂a; exp's: ∂x from ∂a and a.
    assert told(seen.backward) == "+∂c -∂y -c +∂b -∂c +∂a -∂b +∂x -∂a -a"
    assert names(seen.saved) == {"a", "c"}


def test_what_no_node_keeps_is_a_temporary() -> None:
    seen = life(exp(X, A), scale(A, B), scale(B, Y))
    kinds = {each.name: each.kind for each, _ in seen.forward}
    assert kinds == {"a": Kind.ACTIVATIONS, "b": Kind.TEMPORARIES, "x": Kind.ACTIVATIONS, "y": Kind.ACTIVATIONS}


def test_the_last_reader_counts() -> None:
    assert told(life(scale(X, A), scale(A, B), add(A, B, Y)).forward) == "+a -x +b +y -a -b"


def test_a_python_frame_holds_its_variables() -> None:
    assert told(life(scale(X, A), scale(A, B), scale(B, Y), frame(A)).forward) == "+a -x +b +y -b -a"


def test_a_view_shares_the_storage_of_its_base() -> None:
    seen = life(scale(X, A), view(A, B), sin(B, Y))
    assert told(seen.forward) == "+a -x +y"  # b is a: kept by sin
    assert names(seen.saved) == {"a"}
    assert told(seen.backward) == "+∂b -∂y -a +∂x -∂b"  # view hands ∂b on as ∂a


def test_an_input_that_is_kept_is_not_freed_in_forward() -> None:
    seen = life(sin(X, Y))
    assert told(seen.forward) == "+y"
    assert told(seen.backward) == "+∂x -∂y -x"
    assert names(seen.saved) == names(needed(sin(X, Y)).kept_from_outside) == {"x"}


def test_an_input_that_a_frame_outside_holds() -> None:
    outside = tensor("inputs_embeds")
    assert told(life(scale(X, Y), held_input=outside).forward) == "+y"
    assert told(life(sin(X, Y), held_input=outside).backward) == "+∂x -∂y -inputs_embeds"


def test_temporaries_of_an_operation() -> None:
    busy = replace(sin(X, Y), temporaries=(A,), backward_temporaries=(B, C))
    seen = life(busy)
    assert told(seen.forward) == "+y +a -a"
    assert told(seen.backward) == "+∂x +b +c -b -c -∂y -x"


def test_gradients_that_meet_are_added_in_place() -> None:
    seen = life(scale(X, A), scale(X, B), add(A, B, Y))
    # add hands ∂y on as ∂a and ∂b. Each scale makes a ∂x; ∂y goes with the second one, which is added to the first.
    assert told(seen.backward) == "+∂x +∂x -∂y -∂x"


def test_a_residual_needs_one_gradient_more() -> None:
    seen = life(scale(X, A), add(X, A, Y))
    # add hands ∂y on as ∂x and ∂a; when the branch's ∂x comes, the buffer of x holds ∂y alone: added in place.
    assert told(seen.backward) == "+∂x -∂x"


def test_a_gradient_that_others_hold_too_is_not_added_to() -> None:
    seen = life(scale(X, A), add(X, A, B), add(X, B, Y))
    # Both adds hand on ∂y: for x it meets itself, while a's buffer holds it too: a third is made (of ∂y's shape).
    # Then scale makes ∂x and lets go of ∂y; ∂x is added to the third.
    assert told(seen.backward) == "+∂y +∂x -∂y -∂x"


def test_gradients_that_are_views_meet_in_a_third() -> None:
    seen = life(times(W, X, A), times(V, X, B), add(A, B, Y))
    # v's node: ∂x, ∂v. w's node: ∂x, ∂w; then ∂y and x go, and the two views are summed into a third ∂x.
    assert told(seen.backward) == "+∂x +∂v +∂x +∂w -∂y -x +∂x -∂x -∂x"


def test_a_gradient_is_summed_and_cast_before_it_meets() -> None:
    gain = Tensor("g", ("H",), FP32, Kind.PARAMETERS, trainable=True)
    seen = life(multiply(X, gain, Y))
    # g's gradient is first made in y's shape, then reduced to g's; ∂x has its shape at once.
    assert told(seen.backward) == "+∂x +∂g before sum and cast +∂g -∂g before sum and cast -∂y -x"


def test_frozen_weights_get_no_gradient_and_keep_no_input() -> None:
    seen = life(times(replace(W, trainable=False), X, Y))
    assert told(seen.forward) == "+y -x"
    assert told(seen.backward) == "+∂x -∂y"
    assert names(seen.required) == {"x", "y"}


def test_an_input_without_gradient_gets_none() -> None:
    assert told(life(times(W, X, Y), input_required=False).backward) == "+∂w -∂y -x"


def test_nothing_to_train_leaves_nothing_behind() -> None:
    rows = (times(replace(W, trainable=False), X, A), sin(A, Y))
    seen = life(*rows, input_required=False)
    assert told(seen.forward) == "+a -x +y -a"
    assert (seen.backward, seen.saved) == ((), set())
    assert not needed(*rows, input_required=False).output_required


def test_gradients_of_parameters_stay() -> None:
    assert told(life(times(W, X, Y)).backward) == "+∂x +∂w -∂y -x"
    kinds = {each.name: each.kind for each, _ in life(times(W, X, Y)).backward}
    assert (kinds["∂w"], kinds["∂x"]) == (Kind.GRADIENTS, Kind.TEMPORARIES)


def test_a_later_micro_batch_adds_its_gradients() -> None:
    assert told(life(times(W, X, Y), gradients_exist=True).backward) == "+∂x +∂w -∂y -x -∂w"


@pytest.mark.parametrize(("gradients_exist", "end"), [(False, ""), (True, " -∂w")])
def test_what_a_node_hands_on_to_a_parameter_is_its_gradient(gradients_exist: bool, end: str) -> None:
    one_more = replace(W, name="1 + w", kind=Kind.ACTIVATIONS, trainable=False)
    seen = life(shift(W, one_more), times(one_more, X, Y), gradients_exist=gradients_exist)
    # The optimizer frees ∂w: no other name may hold its storage.
    assert told(seen.backward) == "+∂x +∂w -∂y -1 + w -x" + end
    assert {each.kind for each, _ in seen.backward if each.name == "∂w"} == {Kind.GRADIENTS}


@pytest.mark.parametrize(
    ("context", "backward"),
    [
        # The head's gradient waits in the buffer of the tied weight.
        ({"waiting": frozenset({W})}, "+∂x +∂w -∂y -x"),
        # The embedding's is added to it in place,
        ({"meeting": frozenset({W})}, "+∂x +∂w -∂y -x -∂w"),
        # or into a third, where the waiting one is a view;
        ({"meeting": frozenset({W}), "meets_view": True}, "+∂x +∂w -∂y -x +∂w -∂w -∂w"),
        # and with a gradient of an earlier micro-batch the sum goes too.
        ({"meeting": frozenset({W}), "gradients_exist": True}, "+∂x +∂w -∂y -x -∂w -∂w"),
        ({"waiting": frozenset({W}), "gradients_exist": True}, "+∂x +∂w -∂y -x"),
    ],
)
def test_tied_weights(context: dict[str, Any], backward: str) -> None:
    assert told(life(times(W, X, Y), **context).backward) == backward


def test_a_weight_that_two_nodes_read_gets_the_sum_when_both_have_run() -> None:
    # Views are added into a third; what no gradient reaches is not waited for.
    both = life(times(W, X, A), times(W, A, Y)).backward
    assert told(both) == "+∂a +∂w -∂y -a +∂x +∂w -∂a -x +∂w -∂w -∂w"
    assert told(life(times(W, X, A), scale(X, Y)).backward) == "+∂x -∂y -x"
    assert told(life(times(W, X, Y), times(W, X, A)).backward) == "+∂x +∂w -∂y -x"


def test_a_listed_input_goes_with_the_stack_unless_a_node_keeps_it() -> None:
    def listed(*rows: Row, **context: Any) -> Lifetimes:
        section = Section(name="section", rows=rows, input=X, output=Y, lists_input=True)
        return lifetimes(section, Context(**{"input_required": True, **context}))

    assert (told(listed(scale(X, Y)).forward), told(listed(scale(X, Y)).stack_end)) == ("+y", "-x")
    assert told(listed(sin(X, Y)).stack_end) == ""
    assert told(listed(scale(X, Y), held_input=A).stack_end) == ""


def test_what_a_checkpoint_gets_by_keyword_no_hook_sees() -> None:
    seen = life(multiply(X, A, Y), region=Region(start=0, stop=1, arguments=(X,)), given=frozenset({A}))
    assert names(seen.saved) == {"x"}


def test_a_checkpoint_keeps_its_input_and_runs_again() -> None:
    seen = checkpointed(sin(X, A), sin(A, B), scale(B, Y))
    assert told(seen.forward) == "+a +b -a +y -b"
    # scale keeps nothing, so its ∂b comes first. sin's node asks for a: x -> a runs again, and stops early: b is not
    # needed. A checkpoint hands a out to the node alone: freed before ∂b, which the engine holds.
    assert told(backward(seen)) == "+∂b -∂y +a +∂a -a -∂b +∂x -x -∂a"
    assert [row.reads[0].name for row in seen.rows_run_again] == ["x"]
    assert names(seen.saved) == {"x"}


def test_a_checkpoint_that_keeps_its_last_result_runs_to_its_end() -> None:
    seen = checkpointed(sin(X, A), exp(A, Y))
    # Run again: a is needed only for y; y is what exp's node keeps.
    assert told(backward(seen)) == "+a +y -a +∂a -y -∂y +∂x -x -∂a"
    assert [row.name for row in seen.rows_run_again] == ["sin", "exp"]


def test_a_checkpoint_whose_nodes_want_only_its_input_computes_nothing_again() -> None:
    seen = checkpointed(sin(X, A), scale(A, B), scale(B, Y))
    assert told(backward(seen)) == "+∂b -∂y +∂a -∂b +∂x -x -∂a"
    assert seen.rows_run_again == ()


def test_a_checkpoint_without_nodes_that_save_keeps_nothing() -> None:
    seen = checkpointed(scale(X, A), scale(A, Y))
    assert told(seen.forward) == "+a -x +y -a"
    assert told(backward(seen)) == "+∂a -∂y +∂x -∂a"


def test_a_region_inside_a_section() -> None:
    core = Region(start=1, stop=3, arguments=(A,))
    seen = life(sin(X, A), sin(A, B), sin(B, C), sin(C, Y), region=core)
    # Kept: x and c by nodes outside, a as the region's input; b is made again when the second of its nodes wants it.
    assert told(seen.forward) == "+a +b +c -b +y"
    assert told(backward(seen)) == "+∂c -∂y -c +b +∂b -b -∂c +∂a -a -∂b +∂x -∂a -x"
    assert names(seen.saved) == {"x", "a", "c"}
    assert [row.writes[0].name for row in seen.rows_run_again] == ["b"]


def test_two_sections_of_one_region() -> None:
    """x -> y and again x -> y: the first keeps its input; both run again, one after the other, before any node."""
    begins, ends = Region(start=0, stop=2, goes_on=True, arguments=(X,)), Region(start=0, stop=2, has_begun=True)
    first = life(sin(X, A), sin(A, Y), region=begins, runs_again=True)
    second = life(sin(X, A), sin(A, Y), region=ends)
    assert told(first.forward) == "+a +y -a"
    assert told(second.forward) == "+a -x +y -a"  # what the first made is not kept
    assert (names(first.saved), names(second.saved)) == ({"x"}, set())
    assert told(first.rerun) == "+a +y"
    assert told(second.rerun) == "+a"  # x is wanted by its node; the last sine is not computed again
    assert told(second.backward) == "+∂a -a -∂y +∂x -x -∂a"
    assert told(first.backward) == "+∂a -a -∂y +∂x -x -∂a"
    assert first.before_rerun == second.before_rerun == first.rerun_end == second.rerun_end == ()


def test_a_region_that_begins_with_what_saves_nothing() -> None:
    begins, ends = Region(start=0, stop=1, goes_on=True), Region(start=0, stop=1, has_begun=True)
    first = life(scale(X, Y), region=begins, runs_again=True)
    second = life(sin(X, Y), region=ends, region_input=tensor("input of both"))
    assert told(first.forward) == "+y"
    assert told(first.rerun) == "+y"
    assert told(second.backward) == "+∂x -input of both -x -∂y"
    # Nothing runs again where none of them saves anything; the caller holds the input to the end.
    assert life(scale(X, Y), region=begins).rerun == ()
    assert told(life(scale(X, Y), region=ends, region_input=tensor("input of both")).forward) == "+y -x -input of both"


AUTOCAST = Numerics(weights=FP32, compute=BF16)
LOW_Y = Tensor("y", SHAPE, BF16)


def autocast_linear(**context: Any) -> Lifetimes:
    rows = tuple(linear("fc", X, LOW_Y, ("H",), ("H",), AUTOCAST))
    return lifetimes(Section(name="section", rows=rows, input=X, output=LOW_Y), Context(**context))


def test_autocast_keeps_casts_for_backward() -> None:
    seen = autocast_linear(input_required=True)
    assert told(seen.forward) == "+fc.weight cast +x cast for fc +y -x"
    assert seen.forward_end == ()
    made, summed = told(seen.backward).split(" -∂y ")
    assert made == "+∂x cast for fc +∂fc.weight cast"  # in the low type
    freed, cast_back = summed.split(" +∂x ")
    assert sorted(freed.removeprefix("-").split(" -")) == ["fc.weight cast", "x cast for fc"]  # both at once
    assert cast_back == "-∂x cast for fc +∂fc.weight -∂fc.weight cast"


def test_autocasts_cache_holds_a_weight_no_node_keeps_until_forwards_end() -> None:
    seen = autocast_linear(input_required=False)
    assert told(seen.forward) == "+fc.weight cast +x cast for fc +y -x"
    assert told(seen.forward_end) == "-fc.weight cast"


def test_a_leaf_lives_until_backward_ends() -> None:
    section = Section(name="embedding", rows=(scale(A, Y),), output=Y)
    seen = lifetimes(section, Context(input_required=False, leaves=frozenset({A})))
    assert told(seen.backward) == "+∂a -∂hidden_states -∂a"


def test_what_sections_share() -> None:
    """A table made here and read by later sections: freed by the one that is the last to need it."""
    table_is_kept = life(scale(X, A), scale(A, Y), exported=frozenset({A}), kept=frozenset({A}))
    assert told(table_is_kept.forward) == "+a -x +y"
    assert told(table_is_kept.backward).startswith("-a ")
    reader = life(add(X, A, Y), released=frozenset({A}))
    assert told(reader.forward) == "+y -x -a"
    last_in_backward = life(multiply(X, A, Y), freed_in_backward=frozenset({A}))
    assert told(last_in_backward.forward) == "+y -x"
    assert told(last_in_backward.backward) == "+∂x -∂y -a"


def test_a_row_whose_gradient_nobody_wants_frees_what_it_kept() -> None:
    unread = Row(name="aside", reads=(X,), writes=(A,), gradients=(Gradient(of=X),), saves=(X,))
    assert told(life(unread, scale(X, Y)).backward) == "+∂x -∂y -x"


@pytest.mark.parametrize(("attention", "is_fused"), [("flash", True), ("efficient", True), ("eager", False)])
def test_a_fused_kernel_makes_gradients_that_nobody_wants(attention: str, is_fused: bool) -> None:
    """Of LoRA on q alone in the first layer: flash and efficient make those of k and v all the same, and drop them."""
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    adapter = Adapter(target_modules=("q_proj",))
    asked: dict[str, Any] = {"precision": "bf16", "attention": attention, "sequence_length": 8, "adapter": adapter}
    (piece, _), *_ = estimate(Scenario(model=config, **asked)).step.runs[1].part.pieces
    kernels = [row for row in piece.section.rows if row.makes_all_gradients]
    assert bool(kernels) is is_fused
    for unwanted in (each for row in kernels for each in row.reads[1:3]):
        assert [made for event, made in piece.life.backward if event == gradient_of(unwanted)] == [True, False]
