"""Evaluation: metrics by class and slice with confidence intervals, release gates, and plots."""
