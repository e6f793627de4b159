"""bert_pld: pretraining BERT-family encoders with Progressive Layer Dropping inside the blocks' kernels.

`bert_pld.initialize` is the way in for a model of your own; `python -m bert_pld.pretrain` trains ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_pld.pld import BlockGate, Gates, Schedule, draw_gates, initialize, run_gated

__version__ = "0.1.0"
__all__ = ["BlockGate", "Gates", "Schedule", "__version__", "draw_gates", "initialize", "run_gated"]


def __getattr__(name: str) -> Any:
    # Loaded at first use: data preparation and `--help` need no torch.
    if name in __all__:
        import bert_pld.pld as pld

        return getattr(pld, name)
    raise AttributeError(f"module 'bert_pld' has no attribute {name!r}")
