"""Schedules for systems that people already run; there is no scheduler of our own."""
