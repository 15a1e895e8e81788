"""The durable core: what a film is, how it is planned, run and stored. Knows no Ray, no torch, no HTTP."""
