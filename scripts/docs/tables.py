"""Compare the tables in docs/ with the result files in docs/results/ that they come from.

    python scripts/docs/tables.py            # check; exit code 1 and a line for each difference
    python scripts/docs/tables.py --write    # write the tables into the pages

A table is between two markers, `<!-- table of NAME: begin -->` and `end`.
"""

# ruff: noqa: E402 – imports follow the change of sys.path
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package

import full_run_tables
import kernel_tables
import result_tables

from benchmarks.checkpoint import command as checkpoint
from benchmarks.data import command as data
from benchmarks.gradient_noise import command as noise
from benchmarks.gradient_variance import command as variance
from benchmarks.operators import command as operators
from benchmarks.paper import claims, tables
from benchmarks.prediction import command as prediction
from benchmarks.quality import command as quality
from benchmarks.train import report as train
from bert_pld.cli import make_parser, run
from bert_pld.glue import summary


@dataclasses.dataclass(frozen=True)
class Shown:
    """A table in a page."""

    name: str
    page: str
    source: str | None
    """File in docs/results/; None for a table that is computed from formulas."""
    text: Callable[..., str]

    def render(self) -> str:
        """Return the table as Markdown."""
        if self.source is None:
            return self.text()
        return self.text(json.loads((ROOT / "docs" / "results" / self.source).read_text(encoding="utf-8")))


def _as_printed(report: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    return lambda result: f"```\n{report(result)}\n```\n"


def _of_part(part: str, table: Callable[..., str], *groups: str) -> Callable[[dict[str, Any]], str]:
    return lambda result: table(result[part], *groups)


_COMPARISON = _of_part("comparison", tables.table, "paper", "choices")
_RECIPE = _of_part("comparison", tables.recipe_table)
_CHOICES = _of_part("comparison", tables.choices_table)
_SHORT_COMPARISON = _of_part("comparison", tables.short_table)
_CLAIMS = _of_part("claims", claims.claims_table)
_LONG_RUNS = "docs/results/recipe_long_cpu.md"
_MASK_15 = "docs/results/recipe_mask_15_cpu.md"
_SAME_TOKENS = "docs/results/recipe_same_tokens_cpu.md"
_RECIPE_PAGES = {
    **dict.fromkeys(("4", "8", "12"), "docs/results/recipe_cpu.md"),
    **dict.fromkeys(("8_long", "8_long_repeat", "8_large_batch"), _LONG_RUNS),
    **dict.fromkeys(
        ("8_mask_15", "8_mask_15_repeat", "4_mask_15_short", "8_mask_15_short", "12_mask_15_short"), _MASK_15
    ),
    **dict.fromkeys(("4_same_tokens", "8_same_tokens", "8_rows_128"), _SAME_TOKENS),
}
_README = "docs/results/README.md"
_LAST_BLOCK = "docs/results/recipe_last_block_cpu.md"
SHOWN = (
    Shown("variants_cpu", "docs/results/paper_settings.md", "paper_cpu.json", _SHORT_COMPARISON),
    Shown("paper_cpu_scale_search", "docs/reproducing.md", "paper_cpu_scale_search.json", result_tables.scale_search),
    Shown("paper_cpu", "docs/results/paper_cpu.md", "paper_cpu.json", _COMPARISON),
    Shown("claims_cpu", "docs/results/paper_cpu.md", "paper_cpu.json", _CLAIMS),
    Shown("recipe_advice", "docs/pld.md", "recipe_cpu_8_same_tokens.json", _RECIPE),
    *(
        Shown(f"recipe_last_block_glue{kind}_cpu", _LAST_BLOCK, "recipe_last_block_glue_cpu.json", table)
        for kind, table in (("", summary.table), ("_differences", summary.differences_table))
    ),
    *(
        Shown(f"recipe_last_block{kind}_cpu_{size}", _LAST_BLOCK, f"recipe_last_block_cpu_{size}.json", table)
        for size in ("4", "8", "8_large_batch")
        for kind, table in (("", _RECIPE), ("_claims", _CLAIMS))
    ),
    *(
        Shown(f"recipe{kind}_cpu_{size}", page, f"recipe_cpu_{size}.json", table)
        for size, page in _RECIPE_PAGES.items()
        for kind, table in (("", _RECIPE), ("_claims", _CLAIMS))
    ),
    Shown("gradient_noise", _LONG_RUNS, "gradient_noise_cpu.json", lambda r: noise.report(r) + "\n"),
    Shown("paper_cpu_long", "docs/results/paper_cpu.md", "paper_cpu_long.json", _COMPARISON),
    Shown("choices_cpu", "docs/results/paper_settings.md", "paper_cpu.json", _CHOICES),
    Shown("glue_cpu", "docs/results/glue_cpu.md", "glue_cpu.json", summary.table),
    Shown("glue_differences_cpu", "docs/results/glue_cpu.md", "glue_cpu.json", summary.differences_table),
    *(
        Shown(f"{result}{kind}_cpu", "docs/results/recipe_glue_cpu.md", f"{result}_cpu.json", table)
        for result in ("recipe_glue", "recipe_glue_sst2", "recipe_glue_large_batch", "recipe_glue_mask_15")
        for kind, table in (("", summary.table), ("_differences", summary.differences_table))
    ),
    Shown("glue_few_cpu", "docs/results/glue_cpu.md", "glue_few_cpu.json", summary.table),
    Shown("trainer_cpu", "docs/results/glue_cpu.md", "trainer_cpu.json", result_tables.trainer),
    Shown("continued_cpu", "docs/continue_from_hugging_face.md", "continued_cpu.json", result_tables.continued),
    Shown("quality_cpu", "docs/results/peers_cpu.md", "quality_cpu.json", _as_printed(quality.report)),
    Shown("train_cpu", "docs/results/peers_cpu.md", "bench_train_peers_cpu.json", _as_printed(train.report)),
    Shown("gpu_base", "docs/results/gpu.md", "gpu_base_h200.json", _as_printed(train.report)),
    Shown("modernbert_cpu", "docs/results/peers_cpu.md", "bench_train_modernbert_cpu.json", _as_printed(train.report)),
    Shown("data_cpu", "docs/results/peers_cpu.md", "bench_data_peers_cpu.json", _as_printed(data.report)),
    Shown("full_run_work", "docs/reproducing.md", None, full_run_tables.work),
    Shown("published", "docs/reproducing.md", "published_throughput.json", full_run_tables.published),
    Shown("full_run_hours", "docs/reproducing.md", "published_throughput.json", full_run_tables.hours),
    Shown("theta", "docs/results/paper_settings.md", None, result_tables.theta),
    Shown("data_wikipedia_novels", _README, "bench_data_wikipedia_novels_cpu.json", _as_printed(data.report)),
    Shown("checkpoint_base", _README, "checkpoint_base_idle_cpu.json", _as_printed(checkpoint.report)),
    Shown("checkpoint_mini", _README, "checkpoint_mini_cpu.json", _as_printed(checkpoint.report)),
    Shown("steps_bf16", _README, "bench_train_8x256_bf16_cpu.json", result_tables.training_steps),
    Shown("steps_small", _README, "bench_train_small_cpu.json", result_tables.training_steps),
    Shown("steps_token", _README, "bench_train_small_token_cpu.json", _as_printed(train.report)),
    Shown("machine_code", "docs/kernels.md", "kernels.json", kernel_tables.machine_code),
    Shown("embedding_code", "docs/kernels.md", "kernels.json", kernel_tables.embeddings),
    Shown("operators", _README, "operators_cpu.json", operators.report),
    Shown("predicted_mfu", _README, "predicted_mfu.json", prediction.report),
    Shown("predicted_fp8", _README, "predicted_fp8.json", prediction.report),
    Shown("predicted_graphs", _README, "predicted_graphs.json", prediction.report),
    Shown("quickstart", _README, "quickstart.json", result_tables.quickstart),
    *(
        Shown(
            name,
            "docs/results/paper_settings.md",
            f"{name}_cpu.json",
            lambda result: variance.report(result).split("\n\n")[1] + "\n",
        )
        for name in ("gradient_variance", "gradient_variance_keep_first_block")
    ),
    Shown("bytes_sent", "docs/scaling.md", "communication_bytes_cpu.json", result_tables.bytes_sent),
    Shown("step_times", "docs/scaling.md", "communication_steps_cpu.json", result_tables.step_times),
    Shown("segmenters", "docs/data_preparation.md", "sentence_segmentation.json", result_tables.segmenters),
    Shown("scripts", "docs/data_preparation.md", "writing_systems_cpu.json", result_tables.scripts),
    Shown("filled_masks", "docs/data_preparation.md", "filled_masks_cpu.json", result_tables.filled_masks),
    Shown("deduplication", "docs/data_preparation.md", "deduplication_cpu.json", result_tables.deduplication),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    what = "Compare the tables in the docs with their result files."
    parser = make_parser("scripts.docs.tables", what, "python scripts/docs/tables.py")
    parser.add_argument("--write", action="store_true", help="write the tables into the pages")
    return parser


def main(options: argparse.Namespace) -> int:
    """Check or write; return 1 if a table differs from its result file."""
    differing = 0
    for shown in SHOWN:
        page, text = ROOT / shown.page, shown.render()
        if options.write:
            tables.put_into(page, shown.name, text)
        elif tables.found_in(page, shown.name) != text:
            source = f"docs/results/{shown.source}" if shown.source else "its formulas"
            print(f"{shown.page}: the table of {shown.name} differs from {source}; run with --write")
            differing += 1
    return 1 if differing else 0


if __name__ == "__main__":
    run(main, build_parser())
