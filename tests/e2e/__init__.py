"""The mirror as a process, between real clients and a real registry."""
