"""The container image: the real Dockerfile, built on a Debian of our own since no base image can be pulled here."""
