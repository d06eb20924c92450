"""Promises, one file each, shown on a whole mirror or on a whole side of it."""
