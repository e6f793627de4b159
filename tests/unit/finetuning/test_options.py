"""Options that all fine-tuning commands share are checked before anything else is done."""

from __future__ import annotations

import pytest

from bert_pld import finetune_glue, finetune_retrieval, finetune_tokens
from bert_pld.finetune_glue import check_rates_and_seeds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1", "-1"], r"^--seeds -1: must be in \[0, 2\^32\)$"),
        (["--seeds", "4294967296"], r"^--seeds 4294967296: must be in \[0, 2\^32\)$"),
        (["--learning_rates", "1"], r"^--learning_rates 1: must be in \(0, 1\)$"),
        (
            ["--learning_rates", "5e-5", "5.0000001e-5"],
            r"^--learning_rates 5e-05 5.0000001e-05: must differ within six digits$",
        ),
    ],
)
@pytest.mark.parametrize("command", [finetune_glue, finetune_tokens, finetune_retrieval])
def test_seed_or_rate_out_of_range_is_one_line_in_every_command(command, arguments, message, tmp_path):
    paths = ["--model", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]
    if command is finetune_glue:
        paths += ["--task", "CoLA", "--glue_dir", str(tmp_path)]
    else:
        if command is finetune_tokens:
            pytest.importorskip("seqeval")
        paths += ["--data_dir", str(tmp_path)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.txt").write_text("Peter B-PER\n")
    with pytest.raises(ValueError, match=message):
        command.main(command.build_parser().parse_args([*paths, *arguments]))


def test_smallest_and_largest_seed_are_allowed():
    check_rates_and_seeds([5e-5], [0, 2**32 - 1])
