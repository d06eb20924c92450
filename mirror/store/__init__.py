"""What we keep: bytes by digest in files, small records by name, and the budget that both share."""
