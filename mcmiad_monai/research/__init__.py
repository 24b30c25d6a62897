"""Tables of the paper, BMAD, robustness, prompts."""
