"""Record types and the store: what stages exchange."""
