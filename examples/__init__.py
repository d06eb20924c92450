"""Examples: client configurations to copy, and a demonstration to run."""
