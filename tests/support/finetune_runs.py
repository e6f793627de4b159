"""`bert_pld.finetune_glue` in subprocesses, and a tokenizer for the synthetic task."""

from __future__ import annotations

import json

from runs import run_command, start_command, word_tokenizer

SETTINGS = ["--epochs", "3", "--batch_size", "16", "--max_seq_length", "32", "--learning_rates", "3e-3"]


def finetune_command(glue_dir, model, output_dir, *arguments, ranks=1):
    """Return the command of a fine-tuning run."""
    start = start_command("bert_pld.finetune_glue", ranks)
    paths = ["--glue_dir", str(glue_dir), "--model", str(model), "--output_dir", str(output_dir)]
    return [*start, "--task", "SST-2", *paths, *SETTINGS, *arguments]


def finetune(glue_dir, model, output_dir, *arguments, ranks=1, expect=0):
    """Fine-tune and check the exit code."""
    command = finetune_command(glue_dir, model, output_dir, *arguments, ranks=ranks)
    return run_command(command, ranks=ranks, expect=expect)


def result_of(output_dir, seed=1, rate="0.003"):
    """Return the result of a fine-tuning."""
    return json.loads((output_dir / "SST-2" / f"lr_{rate}_seed_{seed}" / "result.json").read_text())


def write_tokenizer(folder):
    """Save a transformers tokenizer for the words of the synthetic corpus."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), pad_token="[PAD]").save_pretrained(folder)
