"""What the HTTP service does, as plain classes over ledger, store and ports. Knows neither FastAPI nor Ray."""
