"""Who may do what, and how much of it: keys, tokens, limits, certificates."""
