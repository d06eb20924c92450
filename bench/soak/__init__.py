"""A long run: a mirror with little room, an upstream in trouble, clients of all kinds, and whether anything grows."""
