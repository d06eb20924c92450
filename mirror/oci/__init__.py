"""The nouns of the OCI distribution and image specifications: pure values, no I/O and no clock."""
