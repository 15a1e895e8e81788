"""Somebody else's HTTP APIs: bounded requests, and what went wrong in words. Knows no job, no node, no Ray."""
