"""Export a checkpoint as a stock Hugging Face model: config, safetensors, tokenizer and model card.

    python -m bert_pld.export --checkpoint runs/base/checkpoints --output_dir exported

The exported model loads with `AutoTokenizer` and `AutoModelForPreTraining` (or `AutoModelForMaskedLM`), without
bert_pld.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pld.cli import explain_missing_package, make_parser
from bert_pld.cli import run as run_command
from bert_pld.files import STATE, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_FILES, VOCABULARY, require_utf8

with explain_missing_package("bert_pld.export"):
    from bert_pld.data.fast_tokenizer import FastTokenizer
    from bert_pld.data.tokenizer import SPECIAL_TOKENS, bert_template

if TYPE_CHECKING:
    from bert_pld.config import ModelConfig, RunConfig

EXPORTED_FILES = ("README.md", "config.json", "model.safetensors", *TOKENIZER_FILES)
_ASIDE = ".export_"
"""How the names of folders begin in which files are written before they replace others."""


def export_checkpoint(checkpoint: Path, output_dir: Path, *, overwrite: bool = False) -> None:
    """Write the model of a run's folder or of one checkpoint, with all blocks, as a stock Hugging Face model.

    The files of `output_dir` are replaced only after all of them have been written completely. A ValueError is raised
    if the checkpoint is missing or damaged, if its tokenizer does not match the model, or if `output_dir` contains
    files that no export wrote; with `overwrite`, these are kept.
    """
    from safetensors.torch import save_file

    from bert_pld.checkpoint.format import load_model, load_state, resolve_checkpoint
    from bert_pld.model.hugging_face import to_hugging_face

    _remove_leftovers(output_dir)
    _check_output_dir(output_dir, overwrite)
    checkpoint = resolve_checkpoint(checkpoint)
    model, run = load_model(checkpoint)
    tokenizer = _load_tokenizer(checkpoint, model.config)
    pad_id = tokenizer.special_ids()["pad"]
    hf_config, hf_state = to_hugging_face(model.state_dict(), model.config, pad_token_id=pad_id)
    hf_config.dtype = "float32"

    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=output_dir) as folder:
        aside = Path(folder)
        (aside / "config.json").write_text(hf_config.to_json_string(), encoding="utf-8")
        save_file({k: v.float() for k, v in hf_state.items()}, aside / "model.safetensors", metadata={"format": "pt"})
        has_types = getattr(hf_config, "type_vocab_size", 0) > 1
        tokenizer.save(aside, model.config.max_position_embeddings, has_types)
        if (checkpoint / VOCABULARY).is_file():
            shutil.copyfile(checkpoint / VOCABULARY, aside / VOCABULARY)
        mask = tokenizer.special_tokens["mask"]
        card = model_card(run, model.config, hf_config.architectures[0], load_state(checkpoint), mask)
        (aside / "README.md").write_text(card, encoding="utf-8")
        written = sorted(path.name for path in aside.iterdir())
        for name in written:
            os.replace(aside / name, output_dir / name)
    # An earlier export can have had another tokenizer, with files that this one lacks.
    for name in set(EXPORTED_FILES).difference(written):
        (output_dir / name).unlink(missing_ok=True)


def _remove_leftovers(output_dir: Path) -> None:
    """Remove what a killed export has left."""
    for path in output_dir.glob(f"{_ASIDE}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _check_output_dir(output_dir: Path, overwrite: bool) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir}: is a file; must be a directory")
    names = {path.name for path in output_dir.iterdir()} if output_dir.is_dir() else set()
    other_files = sorted(names - set(EXPORTED_FILES))
    if other_files and not overwrite:
        raise ValueError(
            f"--output_dir {output_dir}: contains {other_files[0]}, which no export wrote; give an empty or new"
            " directory, or --overwrite to keep it and write the export"
        )


def _load_tokenizer(checkpoint: Path, config: ModelConfig) -> FastTokenizer:
    """Load the checkpoint's tokenizer. BERT's gets a decoder and the template [CLS] A [SEP] B [SEP] if it has none."""
    path = checkpoint / TOKENIZER
    tokenizer = FastTokenizer.load(checkpoint) if (checkpoint / TOKENIZER_CONFIG).is_file() else _load_berts(path)
    assert config.vocab_size is not None
    entries = len(tokenizer.entries)
    if entries > config.vocab_size:
        raise ValueError(f"{path}: {entries} entries; must be at most the model's {config.vocab_size}")
    return tokenizer


def _load_berts(path: Path) -> FastTokenizer:
    from tokenizers import Tokenizer, decoders

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{path}: not a readable tokenizer ({error})") from error
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS.values()}
    missing = [token for token, index in ids.items() if index is None]
    if missing:
        raise ValueError(f"{path}: special tokens {', '.join(missing)} are missing; must contain {', '.join(ids)}")
    if tokenizer.decoder is None:
        tokenizer.decoder = decoders.WordPiece()
    if tokenizer.post_processor is None:
        tokenizer.post_processor = bert_template(ids)
    return FastTokenizer(tokenizer.to_str(), SPECIAL_TOKENS, path)


def model_card(
    run: RunConfig, model: ModelConfig, architecture: str, state: dict[str, Any], mask: str = SPECIAL_TOKENS["mask"]
) -> str:
    """Return the README.md of an exported model.

    `state` may have `step`, `tokens`, `since_record`, `data_source`, `initialized_from` and `origin`.
    """
    from bert_pld.cost.flops import parameter_count

    pld = run.progressive_layer_drop
    norm = {"pre": "pre-normalization (Pre-LN)", "post": "post-normalization (the original BERT)"}[model.normalization]
    objective = "masked language model" + (" and next sentence" if model.next_sentence_prediction else "")
    dropping = f"Progressive Layer Dropping (arXiv:2010.13369): {pld.describe()}"
    auto_class = "AutoModelForPreTraining" if model.next_sentence_prediction else "AutoModelForMaskedLM"
    size = (
        f"{model.num_layers} blocks × {model.hidden_size}, {model.num_attention_heads} heads,"
        f" {parameter_count(model) / 1e6:.1f} M parameters, vocabulary {model.vocab_size:,}"
    )
    rows = [
        ("Class", f"`{architecture}`, {norm}"),
        ("Size", size),
        ("Objective", objective),
        *([("Started from", f"the weights of {state['initialized_from']}")] if state.get("initialized_from") else []),
        ("Training data", state.get("data_source") or "not recorded"),
        ("Training", _training_row(run, state)),
        ("Sequence length", f"{run.data.seq_length} tokens (positions up to {model.max_position_embeddings})"),
        ("Layer dropping", dropping if pld.enabled else "no layer dropping"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    next_sentence = ", and whether one sentence follows another" if model.next_sentence_prediction else ""
    dropped = "Blocks were dropped in training only: the exported model runs all its blocks, unscaled.\n"
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
---

# BERT, pretrained with bert_pld

An encoder that was pretrained to predict masked tokens{next_sentence}. It is a stock class of transformers.
{dropped if pld.enabled else ""}
| | |
|---|---|
{table}

## How to load it

```python
from transformers import AutoTokenizer, {auto_class}, pipeline

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto_class}.from_pretrained(folder)

print(pipeline("fill-mask", folder)("The answer is {mask}."))
```

The model reproduces the errors and biases of its training data. It was not tested for either.
"""


def _training_row(run: RunConfig, state: dict[str, Any]) -> str:
    from bert_pld.data.order import Origin

    if "step" not in state:
        return "length not recorded"
    parts = [f"{state['step']:,} of {run.training.max_steps:,} optimizer steps"]
    if isinstance(run.deepspeed.get("train_batch_size"), int):
        # A branch has the samples of the run that it left, whose batches may have been of another size.
        origin = Origin.from_json(state.get("origin", {}), STATE)
        parts.append(f"{origin.samples_before(state['step'], run.deepspeed['train_batch_size']):,} samples")
    if "tokens" in state:
        # Up to the last record of the metrics, and since then.
        tokens = state["tokens"] + state.get("since_record", {}).get("tokens", 0)
        parts.append(f"{tokens:,.0f} tokens")
    return ", ".join(parts)


def main(options: argparse.Namespace) -> None:
    """Export a checkpoint and print the output directory."""
    require_utf8("--output_dir", options.output_dir)
    export_checkpoint(options.checkpoint, options.output_dir, overwrite=options.overwrite)
    print(f"exported {options.checkpoint} to {options.output_dir}")


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser of `python -m bert_pld.export`."""
    parser = make_parser(
        "bert_pld.export",
        "Export a checkpoint as a stock Hugging Face model: config, safetensors, tokenizer, model card.",
        "python -m bert_pld.export --checkpoint runs/base --output_dir exported",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run, checkpoints or step_N folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="new or empty directory, or an earlier export")
    parser.add_argument("--overwrite", action="store_true", help="allow other files in --output_dir; they are kept")
    return parser


if __name__ == "__main__":
    run_command(main, build_parser())
