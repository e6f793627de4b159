"""`bert_pld.finetune_glue` in subprocesses, and a tokenizer for the synthetic task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from runs import VOCABULARY, clean_environment, free_port, run_forked

SETTINGS = ["--epochs", "3", "--batch_size", "16", "--max_seq_length", "32", "--learning_rates", "3e-3"]


def finetune_command(glue_dir, model, output_dir, *arguments, ranks=1):
    """Return the command: a plain process for one rank, the `deepspeed` launcher for several."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        deepspeed = Path(sys.executable).parent / "deepspeed"
        launcher = [str(deepspeed), "--num_gpus", str(ranks), "--master_port", str(free_port()), "--module"]
    paths = ["--glue_dir", str(glue_dir), "--model", str(model), "--output_dir", str(output_dir)]
    return [*launcher, "bert_pld.finetune_glue", "--task", "SST-2", *paths, *SETTINGS, *arguments]


def finetune(glue_dir, model, output_dir, *arguments, ranks=1, expect=0):
    """Fine-tune and check the exit code; a single rank starts from the server of `forked_runs`."""
    command = finetune_command(glue_dir, model, output_dir, *arguments, ranks=ranks)
    if ranks == 1:
        done = run_forked(command)
    else:
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == expect, done.stderr[-3000:]
    return done


def result_of(output_dir, seed=1, rate="0.003"):
    """Return the result of a fine-tuning."""
    return json.loads((output_dir / "SST-2" / f"lr_{rate}_seed_{seed}" / "result.json").read_text())


def write_tokenizer(folder):
    """Save a transformers tokenizer for the words of the synthetic corpus."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(folder)
