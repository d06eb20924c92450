"""The Helm chart, rendered by the helms that people have."""
