"""The embeddings of models whose layers know the positions: no table of them is added."""

from calc.ledger import Component, Row, Section
from calc.lifetimes import NEXT
from calc.operators import POSITION_IDS, Numerics, dropped, embedding, parameter, stamped
from calc.rotary import tables_row

from .facts import INPUT_IDS, ModelFacts, hidden_states, mask_rows
from .positions import made_tables


def token_embeddings(
    weight: str, module: str, facts: ModelFacts, numerics: Numerics, *, holds_dropped: bool = False
) -> Section:
    """Token embeddings, mask, dropout, rotary tables where the model makes them for its layers.

    The model's frame goes on holding the embeddings: as looked up, or (`holds_dropped`) after dropout.
    """
    tokens = hidden_states(numerics, "inputs_embeds")
    name = "inputs_embeds after dropout" if holds_dropped else f"{NEXT}hidden_states"
    dropping, output = dropped(tokens, name, on=facts.embedding_dropout)
    made = made_tables(facts, numerics)
    rows = [
        embedding(parameter(weight, ("V", "H"), numerics, num_columns=1), INPUT_IDS, tokens),
        Row(name="arange", reads=(), writes=(POSITION_IDS,)),
        *mask_rows(facts.masks),
        *dropping,
        *map(tables_row, made),
    ]
    tables = (each for pair in made for each in pair)
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, module)),
        output=output,
        held=(output if holds_dropped else tokens, POSITION_IDS, *tables, *facts.masks),
        leaves=(tokens,),
    )
