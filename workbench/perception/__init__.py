"""What several stages need to see with: boxes, the preprocessing contract, detector, predictors."""
