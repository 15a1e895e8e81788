"""The HTTP face: FastAPI routers that read a request, call a plain class, and write its answer. Knows no Ray."""
