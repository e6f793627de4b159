"""bert_pld: pretraining of BERT-family encoders with Progressive Layer Dropping inside fused kernels.

`bert_pld.initialize` adds Progressive Layer Dropping to your own model; `python -m bert_pld.pretrain` trains ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_pld.pld import BlockGate, Gates, Schedule, draw_gates, initialize, merge_same_tokens, run_gated

__version__ = "0.1.0"
__all__ = [
    "BlockGate",
    "Gates",
    "Schedule",
    "__version__",
    "draw_gates",
    "initialize",
    "merge_same_tokens",
    "run_gated",
]


def __getattr__(name: str) -> Any:
    # Imported at first use, because data preparation and `--help` need no torch.
    if name in __all__:
        import bert_pld.pld as pld

        return getattr(pld, name)
    raise AttributeError(f"module 'bert_pld' has no attribute {name!r}")
