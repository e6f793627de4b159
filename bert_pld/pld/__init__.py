"""Progressive Layer Dropping: schedule → gates → engine.

The schedule and the gates are pure functions. `initialize` returns an engine of DeepSpeed that passes the gates to any
model whose forward accepts them.
"""

from bert_pld.pld.engine import LayerDropper, initialize
from bert_pld.pld.gates import BlockGate, Gates, draw_gates, merge_same_tokens, run_gated
from bert_pld.pld.schedule import Schedule

__all__ = [
    "BlockGate",
    "Gates",
    "LayerDropper",
    "Schedule",
    "draw_gates",
    "initialize",
    "merge_same_tokens",
    "run_gated",
]
