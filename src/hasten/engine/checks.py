"""What an engine can say against a request before anything of it exists."""

from __future__ import annotations

from hasten.engine.kv.pool import BlockPool
from hasten.engine.request import BadRequest, Request


def check(request: Request, pool: BlockPool, max_length: int, vocabulary: int, constrains: bool, saved: int = 0) -> None:
    """BadRequest, naming the parameter, unless an engine with these properties can serve `request`.

    `max_length`: positions of its context. `constrains`: it has a constraint policy. `saved`: by how many positions the
    prompt's tokens need less than one each."""
    sampling = request.sampling
    length = len(request.prompt)
    if saved and length - saved >= max_length:
        raise BadRequest(
            f"the prompt has {length} tokens at {length - saved} positions, its contexts beside each other, and the context "
            f"holds {max_length}, one at least for output",
            "prompt",
        )
    if length - saved >= max_length:
        raise BadRequest(
            f"the prompt has {length} tokens and the context holds {max_length}, one at least for output", "prompt"
        )
    if -(-(length + 1) // pool.block_size) > pool.blocks:
        raise BadRequest(f"the prompt has {length} tokens, more than the KV memory holds", "prompt")
    if int(request.prompt.max()) >= vocabulary:
        raise BadRequest(f"the prompt holds a token id beyond the vocabulary of {vocabulary}", "prompt")
    for name, tokens in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
        if any(token >= vocabulary for token in tokens):
            raise BadRequest(f"{name} names a token id beyond the vocabulary of {vocabulary}", name)
    if request.adapter is not None:
        raise BadRequest(f"no adapter is called {request.adapter!r}", "adapter")
    if sampling.constraint is not None and not constrains:
        raise BadRequest("this engine runs without a constraint policy", "constraint")
    if sampling.constraint is not None and sampling.ignore_eos:
        raise BadRequest("ignore_eos and a constraint cannot go together: its text ends where it must", "ignore_eos")
