"""Sending webhooks: where they may go, how they travel, who sends them. Knows the outbox, no Ray and no HTTP server."""
