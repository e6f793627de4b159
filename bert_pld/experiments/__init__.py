"""The paper's comparison: eight ways to train the same model on the same samples, run, tabulated and drawn."""
