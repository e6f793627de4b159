"""Tag words: `deepspeed --module bert_pld.finetune_tokens --data_dir CONLL --model M --output_dir D`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bert_pld.cli import make_parser, run_as_rank
from bert_pld.files import require_utf8
from bert_pld.finetune_glue import add_training_options, finetune


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        "bert_pld.finetune_tokens",
        "Fine-tune an encoder to tag words (names, parts of speech), over learning rates and seeds; finished"
        " fine-tunings are skipped.",
        "deepspeed --num_gpus 1 --module bert_pld.finetune_tokens --data_dir conll2003/ --model runs/base"
        " --output_dir runs/names --learning_rates 3e-5 5e-5 --seeds 1 2 3",
    )
    files = "folder with train.txt, dev.txt and maybe test.txt in CoNLL's format: a word and its tag in each line"
    parser.add_argument("--data_dir", required=True, type=Path, help=files)
    add_training_options(parser, "5e-5")
    return parser


def main(options: argparse.Namespace) -> int:
    """Run the fine-tunings that are not finished and print their figures."""
    for name in ("model", "output_dir"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name}: required")
    require_utf8("--output_dir", options.output_dir)
    require_utf8("--model", Path(options.model))
    import seqeval  # noqa: F401  # A missing package is said before the training.

    from bert_pld.tagging.summary import write_summary
    from bert_pld.tagging.task import TaggingSource, read_task

    task = read_task(options.data_dir)

    def source(encoder: Any, settings: Any) -> TaggingSource:
        return TaggingSource(options.data_dir, encoder.tokenizer, settings.max_seq_length, settings.max_train_rows)

    return finetune(
        options, [task], source, lambda results: write_summary(options.output_dir, task, results[task.name])
    )


if __name__ == "__main__":
    run_as_rank(main, build_parser())
