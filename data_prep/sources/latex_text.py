r"""Formulas as text: `\alpha \in \mathbb{R}^2` becomes `α ∈ R²`, so that the sentence around a formula stays whole."""

from __future__ import annotations

import re

LONGEST_FORMULA_CHARACTERS = 200
"""A longer formula is left out."""

_WORDS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "vartheta": "θ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π",
    "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω",
    "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ",
    "Omega": "Ω", "infty": "∞", "times": "×", "cdot": "·", "pm": "±", "mp": "∓", "le": "≤", "leq": "≤", "ge": "≥",
    "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "equiv": "≡", "sim": "~", "propto": "∝", "in": "∈", "notin": "∉",
    "subset": "⊂", "subseteq": "⊆", "cup": "∪", "cap": "∩", "emptyset": "∅", "to": "→", "rightarrow": "→",
    "mapsto": "↦",
    "leftarrow": "←", "Rightarrow": "⇒", "leftrightarrow": "↔", "forall": "∀", "exists": "∃", "neg": "¬", "land": "∧",
    "wedge": "∧", "lor": "∨", "vee": "∨", "partial": "∂", "nabla": "∇", "sum": "∑", "prod": "∏", "int": "∫",
    "ldots": "…",
    "dots": "…", "cdots": "⋯", "hbar": "ħ", "ell": "ℓ", "circ": "∘", "degree": "°", "prime": "′", "langle": "⟨",
    "rangle": "⟩", "otimes": "⊗", "oplus": "⊕", "sin": "sin", "cos": "cos", "tan": "tan", "log": "log", "ln": "ln",
    "exp": "exp", "lim": "lim", "max": "max", "min": "min", "mod": "mod", "quad": " ", "qquad": " ", "sqrt": "√",
}  # fmt: skip
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{0,60})\}\s*\{([^{}]{0,60})\}")
_RAISED_NUMBER = re.compile(r"\^\s*\{?\s*(-?\d{1,3})\s*\}?")
_COMMAND = re.compile(r"\\([A-Za-z]+)\s*")
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def text_of_latex(formula: str) -> str:
    """A formula in one line of plain characters; empty for one that is long or has more than one line."""
    formula = " ".join(formula.split())
    if len(formula) > LONGEST_FORMULA_CHARACTERS or r"\begin" in formula or r"\\" in formula:
        return ""
    formula = _FRACTION.sub(r"\1/\2", formula)
    formula = _RAISED_NUMBER.sub(lambda match: match[1].translate(_RAISED), formula)
    formula = _COMMAND.sub(lambda match: _WORDS.get(match[1], ""), formula)
    for mark in ("{", "}", "$", "\\,", "\\;", "\\!", "\\:", "\\ ", "\\", "&"):
        formula = formula.replace(mark, " " if mark == "\\ " else "")
    return " ".join(formula.replace("~", " ").split())
