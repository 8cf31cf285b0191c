"""Generation: the forward pass over the prompt, and the one that adds the last token.

    cache = DynamicCache()
    outputs = model(prompt, past_key_values=cache, logits_to_keep=1)          # prefill
    for _ in range(output_length):
        token = outputs.logits[:, -1:].argmax(-1); del outputs
        outputs = model(token, past_key_values=cache, logits_to_keep=1)       # decode

in eval mode under torch.no_grad (transformers 5.23.0, generation/utils.py, _sample). Of the passes that add a token the
last needs the most, for each only lengthens the cache; the others are left out, and so is what a sampler makes of the
logits. The first of them may hold more where a window has cut the prompt off, but less than the prefill did.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from .dtype import DType
from .ledger import Kind, Section, Tensor
from .memory import StepMemory, Structure
from .plan import Plan
from .sizes import Sizes
from .step import KEPT_STRUCTURES
from .timeline import Phase, Program, Stretch, Surplus, Timeline, timeline

TOKEN = Tensor("token", ("B", 1), DType.INT64, Kind.INPUTS)
"""The last one generated, of each sequence."""


class Growth(NamedTuple):
    """Passes whose FLOPs and bytes grow by the same numbers from one to the next."""

    num_tokens: int
    first: StepMemory
    last: StepMemory


@dataclass(frozen=True)
class Generation:
    """Prefill and the last token's decoding, one after the other. Bytes are exact integers."""

    prefill: StepMemory
    growths: tuple[Growth, ...]
    """All passes that add a token; none where no token is generated."""

    @property
    def plan(self) -> Plan:
        return self.prefill.plan

    @property
    def decode(self) -> StepMemory | None:
        """The last of them."""
        return self.growths[-1].last if self.growths else None

    @property
    def passes(self) -> list[StepMemory]:
        return [each for each in (self.prefill, self.decode) if each is not None]

    @cached_property
    def sizes(self) -> list[Sizes]:
        """The different sizes of the passes' runs."""
        return [sizes for each in self.passes for sizes in each.sizes]

    @property
    def structure(self) -> Structure:
        """All that the counts of its tensors depend on beside sizes."""
        return tuple(item for each in self.passes for item in each.structure)

    @cached_property
    def origins(self) -> Mapping[str, str]:
        """What makes each tensor, by its name."""
        return {name: origin for each in self.passes for name, origin in each.origins.items()}

    def persistent(self) -> Iterator[Surplus]:
        """Everything alive before and after."""
        return self.prefill.persistent()

    @property
    def persistent_bytes(self) -> dict[Kind, int]:
        return self.prefill.persistent_bytes

    @cached_property
    def timeline(self) -> Timeline:
        return timeline(sum(self.persistent_bytes.values()), list(self._stretches()))

    @cached_property
    def cache_bytes(self) -> int:
        """Keys and values of prompt and output, all sequences, all layers."""
        last = self.passes[-1]
        held = (run.part.outputs_end.running_bytes(run.sizes)[-1] * run.count for run in last.runs)
        return -sum(held)

    def _stretches(self) -> Iterator[Stretch]:
        yield from self.prefill.forward(Phase.PREFILL)
        if self.decode is not None:
            yield from self._tokens_between(self.decode)
            yield from self.decode.forward(Phase.DECODE)

    def _tokens_between(self, decode: StepMemory) -> Iterator[Stretch]:
        """The prompt's logits are dropped, and the cache has grown to all tokens but the last."""
        ends, sizes = self.prefill.runs[-1].sizes, decode.runs[0].sizes
        yield _between(Program([(self.prefill.step.output, False)]), ends)
        for run in self.prefill.layers:
            yield _between(run.part.outputs_end, run.sizes, run.count)
        for run in decode.layers:
            yield _between(_found(run.part.section), run.sizes, run.count * run.part.num_layers)
        yield _between(Program([(TOKEN, True)]), sizes)


@lru_cache(maxsize=KEPT_STRUCTURES)
def _found(layer: Section) -> Program:
    """What a layer finds in its cache comes into being."""
    return Program([(each.tensor, True) for each in layer.lent])


def _between(program: Program, sizes: Sizes, count: int = 1) -> Stretch:
    return Stretch(
        phase=Phase.DECODE, label="tokens between", program=program, sizes=sizes, count=count, is_drawn=False
    )
