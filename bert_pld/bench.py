"""The former name of `python -m benchmarks`."""

import sys

if __name__ == "__main__":
    sys.exit("error: bert_pld.bench has moved; from a checkout, run: python -m benchmarks SUBJECT")
