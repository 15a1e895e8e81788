"""Model replicas: one diffusers call at a time on one GPU thread, watched through a tap on the scheduler."""
