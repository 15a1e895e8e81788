"""Typed functions on video files and frame arrays. Knows no job, no store, no model."""
