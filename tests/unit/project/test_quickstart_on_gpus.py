"""The quickstart trains on one GPU, however many the host has."""

from __future__ import annotations

import re
import subprocess

from repository import REPOSITORY

from bert_pld.config import load_config


def test_quickstart_starts_the_only_rank_that_its_batch_has_room_for():
    script = (REPOSITORY / "scripts/quickstart.sh").read_text()
    function = re.search(r"^pretrain\(\) \{.*?^\}", script, flags=re.DOTALL | re.MULTILINE)
    (config,) = re.findall(r"^config=(\S+)", script, flags=re.MULTILINE)
    stubs = f'deepspeed() {{ echo "$@"; }}; gpus=4; bf16=true; out=runs; config={config}'
    done = subprocess.run(["bash", "-euc", f"{stubs}; {function[0]}; pretrain pld"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (ranks,) = re.findall(r"--num_gpus (\d+) ", done.stdout)
    assert load_config(REPOSITORY / config).batch_sizes(int(ranks)) == (64, 64, 1)
