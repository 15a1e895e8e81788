"""The embedded model: its scenes, its training recipe, its meter and its weights. Knows nothing of films or of Ray."""
