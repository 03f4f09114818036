"""What happened to models and production code: an append-only log with signed checkpoints."""
