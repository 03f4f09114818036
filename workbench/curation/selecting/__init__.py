"""Selecting: which of the found frames a budget is spent on, and the record of it."""
