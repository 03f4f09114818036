"""What came from what: in the records, in MLflow, as a page, as events."""
