"""Settings and model cards. Knows pydantic and yaml; knows nothing of how they are used."""
