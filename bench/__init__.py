"""Measures the mirror beside other servers that give the same bytes: `python -m bench`."""
