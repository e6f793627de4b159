"""Tables in Markdown for results whose own report is not the table of a page; tables.py writes them into the pages."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.hugging_face import HUGGING_FACE
from benchmarks.markdown import markdown_table
from bert_pld.pld.schedule import Schedule

_GATES = ("no PLD", "batch, θ 0.5")
_SHARES = (("kept", 0), ("unknown", 2), ("copies_found", 0))
_PHENOMENA = ("quotation", "ellipsis", "abbreviation", "number", "other")


def segmenters(result: dict[str, Any]) -> str:
    """Return the table of sentence segmenters on the held-out paragraphs, from `compare_segmenters.py`."""
    held_out, development = (result["gold"][name]["segmenters"] for name in ("held_out", "development"))
    rows = []
    for name, of in held_out.items():
        faults = (of["by_phenomenon"].get(kind, {"missed": 0, "wrong": 0}) for kind in _PHENOMENA)
        rows.append(
            [
                f"`{name}`" if name == "data_prep" else name,
                *(f"{value:.3f}" for value in (of["precision"], of["recall"], of["f1"], development[name]["f1"])),
                *(f"{fault['missed']} + {fault['wrong']}" for fault in faults),
                f"{result['speed'][name]['mb_per_s']:.1f}",
            ]
        )
    return markdown_table(["", "precision", "recall", "F1", "F1, development", *_PHENOMENA, "MB/s"], rows)


def deduplication(result: dict[str, Any]) -> str:
    """Return the table of planted near duplicates that were found, from `measure_deduplication.py`."""
    found = {(one["words_changed"], one["fewest_words"]): one for one in result["planted"]}
    changed = sorted({words for words, _ in found})
    shortest, longer = sorted({words for _, words in found})
    rows = [
        [
            "copies",
            *(f"{100 * min(found[c, words]['copies_found'] for c in changed):.0f} %" for words in (shortest, longer)),
            f"{100 * max(one['others_lost'] for one in found.values()):.0f} %",
        ]
    ]
    for c in changed:
        share = (f"{100 * found[c, words]['edited_found']:.1f} %" for words in (shortest, longer))
        lost = max(found[c, words]["others_lost"] for words in (shortest, longer))
        rows.append([f"{100 * c:.0f} % of the words changed", *share, f"{100 * lost:.0f} %"])
    return markdown_table(["planted, 10 % each", "found", f"found, of at least {longer} words", "others lost"], rows)


def scripts(result: dict[str, Any]) -> str:
    """Return the table of ten scripts by kind of source, from `measure_scripts.py`."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in result["builds"]:
        rows.setdefault(one["language"], []).append(one)
    cells = [
        [
            f"`{language}`",
            *(" / ".join(f"{100 * one[name]:.{digits}f}" for one in of) + " %" for name, digits in _SHARES),
            of[-1]["accents"],
        ]
        for language, of in rows.items()
    ]
    return markdown_table(["", "characters kept", "[UNK]", "copies found", "accents"], cells)


def step_times(result: dict[str, Any]) -> str:
    """Return predicted over measured step times by ZeRO stage, from `benchmarks communication --parts steps`."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for one in result["steps"]["settings"]:
        size, _, precision, *rest = one["name"].split(", ")
        rows.setdefault(", ".join([size, precision, *rest]), {})[one["stage"]] = one
    stages = sorted({one["stage"] for one in result["steps"]["settings"]})
    cells = [[name, *(_predicted(by_stage[stage]) for stage in stages)] for name, by_stage in rows.items()]
    return markdown_table(["", *(f"ZeRO-{stage}" for stage in stages)], cells)


def _predicted(one: dict[str, Any]) -> str:
    low, median = (1e3 * value for value in (one["measured_range_s"][0], one["measured_median_s"]))
    return f"**{one['ratio']:.2f}** of {1e3 * one['measured_s']:.0f} ({low:.0f}–{median:.0f})"


def bytes_sent(result: dict[str, Any]) -> str:
    """Return bytes a step with and without layer dropping, from `benchmarks communication --parts bytes`."""
    settings = {one["name"]: one for one in result["settings"] if one["overlap_comm"] is None}
    rows = []
    for stage in range(4):
        whole, dropping = (_mean_step(settings[f"ZeRO-{stage}, fp32, {what}, 1 × 4"]) for what in _GATES)
        rows.append([f"{stage}", *(f"{value:,.0f}" for value in (whole[0], *dropping))])
    return markdown_table(["ZeRO", "gradients, no PLD", "gradients, batch, θ 0.5", "of them zeros", "parameters"], rows)


def _mean_step(setting: dict[str, Any]) -> list[float]:
    keys = ("gradient_bytes", "gradient_zero_bytes", "parameter_bytes")
    return [statistics.fmean(step[key] for step in setting["steps"]) for key in keys]


def quickstart(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Compare both runs of `quickstart.sh`, given as name → lines of `metrics.jsonl`, PLD first."""
    ends = [[line for line in run if "eval_mlm_loss" in line][-1] for run in runs.values()]
    trained = [[line for line in run if "theta" in line] for run in runs.values()]
    limit = 1.01 * min(line["theta"] for line in trained[0])
    first, *_, last = (i for i, line in enumerate(trained[0]) if line["theta"] <= limit)
    later = [
        1e3 * (run[last]["seconds"] - run[first]["seconds"]) / (run[last]["samples"] - run[first]["samples"])
        for run in trained
    ]
    rows = [
        _ratio("held-out MLM loss, nats", [end["eval_mlm_loss"] for end in ends], 3),
        _ratio("training, seconds", [end["seconds"] for end in ends], 1),
        _ratio("ms a sample, θ within 1 % of its limit", later, 2),
    ]
    return markdown_table(["", *runs, "ratio"], rows)


def _ratio(name: str, values: list[float], digits: int) -> list[str]:
    return [name, *(f"{value:.{digits}f}" for value in values), f"{values[0] / values[1]:.3f}"]


def trainer(result: dict[str, Any]) -> str:
    """Return the table of `finetune_glue` beside transformers' `Trainer`, from `compare_with_trainer.py`."""
    seeds = result["seeds"]
    rows = []
    for name, label in (("bert_pld", "`bert_pld.finetune_glue`"), ("trainer", "transformers' `Trainer`")):
        scores = result["scores"][name]
        deviation = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        rows.append([label, *(f"{score:.1f}" for score in scores), f"{statistics.fmean(scores):.1f}{deviation}"])
    error = "one seed" if result["standard_error"] is None else f"± {result['standard_error']:.1f}"
    difference = f"{result['difference']:+.1f} {error}"
    rows.append(["difference, its standard error", *("" for _ in seeds), difference])
    return markdown_table([result["task"], *(f"seed {seed}" for seed in seeds), "mean"], rows)


def theta(num_blocks: int = 12) -> str:
    """Return executed blocks and the saved share at the limit, for several θ, computed from the schedule."""
    rows = []
    for value in (0.9, 0.8, 0.7, 0.6, 0.5, 0.3):
        schedules = [Schedule(num_blocks, value, temporal="constant", keep_first_block=one) for one in (False, True)]
        depths = [schedule.expected_depth(0) for schedule in schedules]
        saved = [f"{100 * (1 - depth / num_blocks):.1f} %" for depth in depths]
        rows.append([f"**{value}**" if value == 0.5 else f"{value}", f"{depths[0]:.2f}", *saved])
    return markdown_table(["θ", "executed blocks", "saved", "with `keep_first_block`"], rows)


def training_steps(result: dict[str, Any]) -> str:
    """Return the table of training steps, from files of `benchmarks train` or of its version with a plain optimizer."""
    rows = []
    for one in result["contenders"]:
        over = _ratios_of_older_version(one) if "speed_over" not in one else _ratios(one)
        predicted = one.get("predicted_of_gates_drawn")
        cells = ["–" if value is None else f"{value:.{digits}f}" for value, digits in zip(over, (2, 3), strict=True)]
        cells.append("–" if predicted is None else f"{predicted:.3f}")
        rows.append([one["name"], one["dtype"], f"{one['tokens_per_s']:,.0f}", *cells])
    header = ["", "", "tokens/s", "× Hugging Face in this dtype", "time over `reference`", "FLOPs predict"]
    return markdown_table(header, rows)


def _ratios_of_older_version(one: dict[str, Any]) -> tuple[float | None, float | None]:
    return one["speed_over_hugging_face_same_dtype"], one.get("time_over_reference")


def _ratios(one: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the speed over the faster of Hugging Face's eager classes, and a PLD contender's time over `reference`."""
    over = one["speed_over"][one["dtype"]]
    dropping = "predicted_of_gates_drawn" in one and "reference" in over
    peers = (speed for name, speed in over.items() if name in HUGGING_FACE)
    return min(peers, default=None), 1 / over["reference"] if dropping else None


def scale_search(result: dict[str, Any]) -> str:
    """Return the table of the runs that decided the CPU scale: settings, loss at two million tokens and at the end."""
    rows = []
    for one in result["runs"]:
        by_two_million = [e for e in one["evaluations"] if e["tokens"] <= 2.05e6][-1]
        end = one["evaluations"][-1]
        rows.append(
            [
                "PLD, by sample" if one["variant"] == "pld_sample" else "Pre-LN",
                f"{one['rows_a_step']} × {one['seq_length']}",
                f"{one['mask_probability']}",
                f"{one['peak_lr']:g}",
                f"{one['initializer_range']}",
                ", ".join(_unusual(one)) or "–",
                f"{by_two_million['loss']:.2f}",
                f"{end['loss']:.2f} at {end['tokens'] / 1e6:.1f} M",
            ]
        )
    header = ["", "rows × tokens a step", "masked", "peak rate", "deviation", "also", "loss by 2 M tokens", "last"]
    return markdown_table(header, rows)


def _unusual(one: dict[str, Any]) -> list[str]:
    found = ["sinusoidal positions"] if one["position_initialization"] == "sinusoidal" else []
    found += [f"width {one['hidden_size']}"] if one["hidden_size"] != 128 else []
    found += ["no sentence pairs"] if one["objective"] == "mlm" else []
    return found + (["bf16"] if one["precision"] == "bf16" else [])


def continued(result: dict[str, Any]) -> str:
    """Return the table of going on with a saved model, from `compare_continued_pretraining.py`."""
    names = {"bert_pld": "`bert_pld.pretrain`", "trainer": "transformers' `Trainer`"}
    slowest = max(result["tokens_per_s"]["trainer"])
    rows = [
        [
            names[name],
            *(f"{result['losses'][name][step]:.4f}" for step in (0, -1)),
            f"{max(speeds):,.0f}",
            f"{max(speeds) / slowest:.2f}",
        ]
        for name, speeds in result["tokens_per_s"].items()
    ]
    steps = len(result["losses"]["trainer"])
    table = markdown_table(["", "loss, step 1", f"loss, step {steps}", "tokens/s", "× Trainer"], rows)
    return f"{table}\nThe losses of all {steps} steps differ by at most {result['largest_difference']:.0e}.\n"


def filled_masks(result: dict[str, Any]) -> str:
    """Return the table of masked tokens in ten languages, from `measure_filled_masks.py`."""
    rows = [
        [
            f"`{one['language']}`",
            f"{one['tokens']:,}",
            f"{one['masked']:,}",
            f"{100 * one['accuracy']:.1f} / {100 * one['most_frequent_accuracy']:.1f} %",
            f"{one['loss']:.2f} / {one['frequencies_loss']:.2f}",
            one["sentence"],
            ", ".join(f"`{token or ' '}` {share:.2f}" for token, share in one["guesses"]),
        ]
        for one in result["languages"]
    ]
    names = ["", "tokens", "masked", "accuracy", "loss", "sentence", "guesses"]
    return markdown_table(names, rows)
