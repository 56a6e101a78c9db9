"""FastSwitch: cheap KV context switches under priorities that change while requests run.

FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving (Shen et al., 2024). Fair
serving takes memory from one request and gives it to another again and again, and block-by-block swapping makes that dear.
Three parts make it cheap, each of use alone: `block-groups` places a sequence's blocks in long runs, on both sides, so that a
switch is a few large copies; `follow-order` lets steps run beside the copies, and freed blocks are given away before they have
been copied, to whoever can wait for that copy; `kv.keep_copies` leaves what came back in the host tier too, so that only what
was written since is sent the next time. Exact. Complexity: see the parts.

It wants an order whose keys change (`priority-trace`, or a fair one) and a host tier (`kv.host_bytes`).
"""

from __future__ import annotations

from hasten.engine.technique import Technique

TECHNIQUE = Technique(
    name="fastswitch",
    seam="scheduling",
    summary="block groups, transfers beside steps, copies that stay: cheap switches between requests",
    exact=True,
    sets={"kv.allocator": "block-groups", "kv.keep_copies": True, "scheduling.residency": "follow-order"},
    paper="FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving, 2024",
)
