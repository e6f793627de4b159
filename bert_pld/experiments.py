"""The former name of `python -m benchmarks paper`."""

import sys

if __name__ == "__main__":
    sys.exit("error: bert_pld.experiments has moved; from a checkout, run: python -m benchmarks paper {run|summarize}")
