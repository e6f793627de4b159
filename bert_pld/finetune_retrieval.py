"""Fine-tune for retrieval: `python -m bert_pld.finetune_retrieval --data_dir BEIR --model M --output_dir D`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import statistics
from pathlib import Path
from typing import Any

from bert_pld.cli import make_parser, run
from bert_pld.files import require_utf8, write_json
from bert_pld.finetune_glue import check_rates_and_seeds, hugging_face_folder


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        "bert_pld.finetune_retrieval",
        "Fine-tune an encoder to find the documents that answer a query, and report nDCG@10; finished fine-tunings are"
        " skipped.",
        "python -m bert_pld.finetune_retrieval --data_dir beir/scifact --model runs/base --output_dir runs/scifact"
        " --learning_rates 2e-5 5e-5 --seeds 1 2 3",
    )
    files = "folder in BEIR's format: corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv"
    parser.add_argument("--data_dir", required=True, type=Path, help=files)
    model = "a run, a checkpoint, an exported model, or any encoder transformers or sentence-transformers loads"
    parser.add_argument("--model", required=True, help=model)
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for the results and the models")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[5e-5], help="rates to try (default 5e-5)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="default 1")
    parser.add_argument("--epochs", type=int, default=1, help="default 1; 0 only evaluates the model as it is")
    pairs = "pairs in a batch, in which each query's answer must be the nearest (default 64)"
    parser.add_argument("--batch_size", type=int, default=64, help=pairs)
    parser.add_argument("--max_seq_length", type=int, default=128, help="tokens of a text (default 128)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="default fp32")
    return parser


def main(options: argparse.Namespace) -> None:
    """Run the fine-tunings that are not finished, and print the figures of the best learning rate."""
    require_utf8("--output_dir", options.output_dir)
    require_utf8("--model", Path(options.model))
    check_rates_and_seeds(options.learning_rates, options.seeds)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("bert_pld.finetune_retrieval: runs in one process; start it without a launcher")
    import sentence_transformers  # noqa: F401  # A missing package is said before anything is read.

    from bert_pld.finetuning.encoder import identify_weights
    from bert_pld.retrieval.data import read_retrieval
    from bert_pld.retrieval.training import RetrievalSettings

    settings = RetrievalSettings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_seq_length=options.max_seq_length,
        precision=options.precision,
    )
    settings.check()
    data = read_retrieval(options.data_dir)
    print(f"{options.data_dir.name}: {data.describe()}", flush=True)
    if settings.epochs and not data.training_pairs():
        raise ValueError(
            f"--data_dir {options.data_dir}: qrels/train.tsv has no answer whose query and document both have a text;"
            " add the texts, or use --epochs 0"
        )
    for split in data.judgements:
        if split != "train" and not data.evaluated(split):
            raise ValueError(
                f"--data_dir {options.data_dir}: qrels/{split}.tsv has no query with an answer whose text is in"
                " queries.jsonl; add the texts, or remove the file"
            )
    rates, seeds = dict.fromkeys(options.learning_rates), dict.fromkeys(options.seeds)
    if not settings.epochs:  # The model as it is depends on neither.
        rates, seeds = {0.0: None}, {options.seeds[0]: None}
    with hugging_face_folder(options.model) as folder:
        shared = {"weights": identify_weights(folder), "data": data.identity, **dataclasses.asdict(settings)}
        results = []
        for rate, seed in itertools.product(rates, seeds):
            conditions = {**shared, "learning_rate": rate, "seed": seed}
            results.append(_one(folder, options, data, settings, conditions))
    print(_summarize(options.output_dir, results), end="")


def _one(folder: str, options: argparse.Namespace, data: Any, settings: Any, conditions: dict[str, Any]) -> Any:
    """Return the result of one fine-tuning, from its folder or by doing it."""
    from bert_pld.finetuning.encoder import check_positions
    from bert_pld.finetuning.sweep import ResultFolder
    from bert_pld.retrieval.training import evaluate_rankings, load_text_encoder, train_on_pairs

    rate, seed = conditions["learning_rate"], conditions["seed"]
    path = options.output_dir / f"lr_{rate:g}_seed_{seed}"
    if (found := ResultFolder(path, options.model, conditions).read()) is not None:
        return found
    try:
        model = load_text_encoder(folder, settings.max_seq_length, seed)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model {options.model}: cannot be loaded ({' '.join(str(error).split())[:200]})") from None
    if model.transformers_model is not None:  # A saved model of sentence-transformers may be word vectors alone.
        check_positions(model.transformers_model.config, settings.max_seq_length)
    steps = train_on_pairs(model, data, settings, rate, seed) if settings.epochs else 0
    result = {"model": options.model, "conditions": conditions, "steps": steps}
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        return _write(path, {**result, "diverged_at_step": steps, "dev": {}})
    if settings.epochs:
        model.save(str(path / "model"))  # Before the evaluation, so that no error in it loses the training.
    figures = {
        split: evaluate_rankings(model, data, split, settings.batch_size)
        for split in data.judgements
        if split != "train"
    }
    return _write(path, {**result, "dev": figures})


def _write(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write a result to its folder, print a line about it and return it."""
    from bert_pld.finetuning.sweep import RESULT, diverged

    path.mkdir(parents=True, exist_ok=True)
    write_json(path / RESULT, result)
    figures = [f"{split} {name} {value:.2f}" for split, one in result["dev"].items() for name, value in one.items()]
    shown = "diverged; its weights are not finite, so it has no figures" if diverged(result) else ", ".join(figures)
    print(f"lr {result['conditions']['learning_rate']:g}, seed {result['conditions']['seed']}: {shown}", flush=True)
    return result


def _summarize(output_dir: Path, results: list[Any]) -> str:
    """Write `summary.json` and return the figures of the learning rate that is best on dev, or else on test.

    A rate at which a seed diverged does not count; a ValueError is raised if no rate is left.
    """
    from bert_pld.finetuning.sweep import scored_rates

    by_rate = {rate: [run["dev"] for run in runs] for rate, runs in scored_rates(results).items()}
    if not by_rate:
        raise ValueError("a fine-tuning diverged at every learning rate; give lower --learning_rates")
    splits = list(next(iter(by_rate.values()))[0])
    if not splits:
        return "no qrels/dev.tsv or qrels/test.tsv: nothing was evaluated\n"
    best = max(by_rate, key=lambda rate: statistics.fmean(one[splits[0]]["ndcg@10"] for one in by_rate[rate]))
    lines: list[str] = []
    summary: dict[str, dict[str, Any]] = {split: {} for split in splits}
    for split in splits:
        for name in by_rate[best][0][split]:
            values = [one[split][name] for one in by_rate[best]]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            summary[split][name] = {"mean": statistics.fmean(values), "deviation": deviation, "n": len(values)}
            lines.append(f"{split} {name}: {statistics.fmean(values):.2f} ± {deviation:.2f} ({len(values)} seed(s))\n")
    whole = {"learning_rate": best, "selected_on": splits[0], "splits": summary}
    write_json(output_dir / "summary.json", whole)
    return "".join(lines)


if __name__ == "__main__":
    run(main, build_parser())
