"""HTTP in: parse, ask, answer."""
