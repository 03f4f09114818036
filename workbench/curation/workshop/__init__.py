"""FiftyOne, where people look and tag. The only place that imports it."""
