"""A run: which step is next, its records, its journal, what people see of it."""
