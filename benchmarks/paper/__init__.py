"""The paper's comparison: ways to train the same model on the same samples, run, tabulated and drawn."""
