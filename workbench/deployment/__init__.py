"""Running a bundle as a car would: verified first, within a time budget, with an answer always."""
