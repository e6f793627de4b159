"""Fill [MASK] with an exported model; needs transformers and torch alone.

python scripts/fill_mask.py MODEL_DIR "A sentence with [MASK]." …
"""

from __future__ import annotations

import sys

from transformers import logging, pipeline

logging.set_verbosity_error()
fill = pipeline("fill-mask", sys.argv[1])
for sentence in sys.argv[2:]:
    guesses = ", ".join(f"{guess['token_str']} {guess['score']:.2f}" for guess in fill(sentence, top_k=5))
    print(f"{sentence}\n    {guesses}")
