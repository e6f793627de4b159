"""Go on with the same saved model in bert_pld and in transformers' `Trainer`, on the same batches; compare both.

    python scripts/measure/compare_continued_pretraining.py --data_dir shards/ --model saved/ --steps 50 --json out.json

Without `--model`, a stock BERT of 4 blocks × 256 with random weights is saved and used. Both train in fp32 with the
same micro-batches, masks, AdamW, constant learning rate and clipping, and without dropout, so the losses of each step
must agree. Tokens/s leave out the first ten steps. Requires `accelerate` and at most one visible GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from bert_pld.cli import check_json_option, make_parser, require_positive, run
from bert_pld.config import BATCH_KEYS, DataConfig
from bert_pld.data.loader import training_batches
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows, resolve_data_dir
from bert_pld.data.shards import Manifest
from bert_pld.files import write_json

_FIRST_STEPS = 10
"""Steps that are slow for other reasons: memory is allocated, threads start."""
_SEED, _CLIPPING, _DECAY = 1, 1.0, 0.01


class _MicroBatches(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The micro-batches of a run, with the labels of transformers' classes."""

    def __init__(self, rows: ShardedRows, data: DataConfig, batch_size: int, steps: int, has_pairs: bool) -> None:
        self.rows, self.data, self.share = rows, data, BatchShare(batch_size, 1)
        self.steps, self.has_pairs = steps, has_pairs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for (batch,) in training_batches(self.rows, self.data, self.share, seed=_SEED, num_steps=self.steps):
            inputs = batch.model_inputs()
            labels = torch.full(inputs["input_ids"].shape, -100)
            labels.view(-1)[inputs["masked_positions"]] = inputs["masked_labels"]
            lengths = torch.as_tensor(batch.lengths)
            mask = torch.arange(labels.shape[1])[None, :] < lengths[:, None]
            values = {"input_ids": inputs["input_ids"], "attention_mask": mask.long(), "labels": labels}
            if self.has_pairs:
                values |= {"next_sentence_label": inputs["next_sentence_labels"]}
                values |= {"token_type_ids": inputs["token_type_ids"]}
            yield values


def by_trainer(folder: Path, batches: _MicroBatches, rate: float) -> tuple[list[float], float]:
    """Return the loss of each step and the tokens/s of `Trainer`."""
    kind = "AutoModelForPreTraining" if batches.has_pairs else "AutoModelForMaskedLM"
    no_dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, **no_dropout)
    losses: list[torch.Tensor] = []
    marks: list[tuple[float, int]] = []  # seconds and tokens at the end of each step

    class _Recording(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
            tokens = int(inputs["attention_mask"].sum()) + (marks[-1][1] if marks else 0)
            found = super().compute_loss(model, inputs, *arguments, **keywords)
            losses.append((found[0] if isinstance(found, tuple) else found).detach())
            marks.append((time.perf_counter(), tokens))
            return found

    with tempfile.TemporaryDirectory() as output:
        arguments = transformers.TrainingArguments(
            output_dir=output, seed=_SEED, max_steps=batches.steps, per_device_train_batch_size=1, learning_rate=rate,
            lr_scheduler_type="constant", weight_decay=_DECAY, adam_epsilon=1e-8, max_grad_norm=_CLIPPING,
            optim="adamw_torch", use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to="none",
            logging_strategy="no", disable_tqdm=True, remove_unused_columns=False, bf16=False,
        )  # fmt: skip
        trainer = _Recording(model=model, args=arguments, train_dataset=batches, data_collator=lambda each: each[0])
        trainer.train()
    (began, before), (ended, after) = marks[_FIRST_STEPS], marks[-1]
    # A mark is at the end of a step's forward, so both ends of the interval are at the same place of a step.
    return [loss.item() for loss in losses], (after - before) / (ended - began)


def by_us(folder: Path, data_dir: Path, config: dict[str, Any], output: Path) -> tuple[list[float], float]:
    """Return the loss of each step and the tokens/s of `pretrain --initialize_from`."""
    (output / "run.json").write_text(json.dumps(config))
    paths = ["--deepspeed_config", str(output / "run.json"), "--data_dir", str(data_dir), "--output_dir"]
    command = [sys.executable, "-m", "bert_pld.pretrain", *paths, str(output / "run"), "--initialize_from", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"bert_pld.pretrain failed: {' '.join(done.stderr.split())[-500:]}")
    lines = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    first, last = steps[_FIRST_STEPS], steps[-1]
    return [step["loss"] for step in steps], (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])


def save_stock_bert(folder: Path, data_dir: Path, manifest: Manifest, seq_length: int) -> None:
    """Save a stock BERT of 4 blocks × 256 with random weights and the tokenizer of the shards."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    config = transformers.BertConfig(
        **sizes, vocab_size=manifest.attributes.vocabulary_size, max_position_embeddings=max(seq_length, 8),
        initializer_range=0.0625, pad_token_id=manifest.special_tokens["pad"],
    )  # fmt: skip
    torch.manual_seed(_SEED)
    kind = "ForPreTraining" if manifest.attributes.objective == "mlm+nsp" else "ForMaskedLM"
    getattr(transformers, f"Bert{kind}")(config).save_pretrained(folder)
    special = {f"{role}_token": f"[{role.upper()}]" for role in manifest.special_tokens}
    file = str(data_dir / "tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=file, **special).save_pretrained(folder)


def main(options: argparse.Namespace) -> int:
    """Train with both, and print the largest difference of the losses and the tokens/s of both."""
    check_json_option(options.json)
    require_positive(options, "repeats", "batch_size", "seq_length")
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("transformers' Trainer requires accelerate; pip install accelerate")
    if torch.cuda.device_count() > 1:
        raise ValueError("CUDA_VISIBLE_DEVICES: several GPUs are visible, which Trainer would use; must be one")
    if options.steps <= _FIRST_STEPS + 1:
        raise ValueError(f"--steps {options.steps}: must be more than {_FIRST_STEPS + 1}")
    data_dir = resolve_data_dir(options.data_dir, options.seq_length)
    rows = ShardedRows(data_dir, "train")
    config: dict[str, Any] = {
        BATCH_KEYS[0]: options.batch_size,
        "gradient_clipping": _CLIPPING,
        "optimizer": {"type": "AdamW", "params": {"lr": options.learning_rate, "eps": 1e-8, "weight_decay": _DECAY}},
        "model": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
        "data": {"seq_length": options.seq_length},
        "training": {"max_steps": options.steps, "log_interval": 1, "eval_interval": 0, "checkpoint_interval": 0},
    }
    config["training"]["seed"] = _SEED
    figures: dict[str, list[float]] = {"bert_pld": [], "trainer": []}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model
        if folder is None:
            folder = Path(temporary) / "stock"
            save_stock_bert(folder, data_dir, rows.manifest, options.seq_length)
        for repeat in range(options.repeats):  # in turns, so that a busy machine slows both down
            output = Path(temporary) / f"repeat_{repeat}"
            output.mkdir()
            losses["bert_pld"], speed = by_us(folder, data_dir, config, output)
            figures["bert_pld"].append(speed)
            has_pairs = rows.attributes.objective == "mlm+nsp"
            data = DataConfig(seq_length=options.seq_length)
            batches = _MicroBatches(rows, data, options.batch_size, options.steps, has_pairs)
            losses["trainer"], speed = by_trainer(folder, batches, options.learning_rate)
            figures["trainer"].append(speed)
    pairs = list(zip(losses["bert_pld"], losses["trainer"], strict=True))
    difference = max(abs(ours - theirs) for ours, theirs in pairs)
    ratio = max(figures["bert_pld"]) / max(figures["trainer"])
    print(f"losses of {len(pairs)} steps: {pairs[0][0]:.4f} → {pairs[-1][0]:.4f}, largest difference {difference:.1e}")
    for name, speeds in figures.items():
        print(f"{name:10} {max(speeds):10,.0f} tokens/s")
    print(f"bert_pld over Trainer: {ratio:.2f}")
    if options.json is not None:
        result = {
            "losses": losses,
            "largest_difference": difference,
            "tokens_per_s": figures,
            "settings": {"batch_size": options.batch_size, "seq_length": options.seq_length, "steps": options.steps},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "threads": torch.get_num_threads(),
        }
        write_json(options.json, result)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Make the script's argument parser."""
    what = "Go on with a saved BERT in bert_pld and in transformers' Trainer, on the same batches."
    example = "python scripts/measure/compare_continued_pretraining.py --data_dir shards/ --steps 50"
    parser = make_parser("scripts.measure.compare_continued_pretraining", what, example)
    parser.add_argument("--data_dir", type=Path, required=True, help="shards made with the model's tokenizer")
    parser.add_argument("--model", type=Path, help="saved Bert model (default: 4 blocks × 256, random weights)")
    parser.add_argument("--seq_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, in turns; the fastest counts (default 1)")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    run(main, build_parser())
