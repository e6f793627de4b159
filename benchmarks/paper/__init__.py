"""The paper's comparison: variants of training on the same samples, run, tabulated and drawn."""
