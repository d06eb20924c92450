"""A mirror at work in a few seconds: pulls, a herd and an outage, and what all that cost the upstream."""
