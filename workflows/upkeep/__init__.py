"""Looking after state and store: what may go, what is copied away, what is brought back. Knows no Ray and no model."""
