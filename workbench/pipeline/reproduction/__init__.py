"""Rebuild a model from its lineage alone, in an empty folder, and compare digests.

ancestry   the recorded steps that made it, in order, and the leaves that are copied
rebuild    run the recorded notebooks again and compare their outputs
report     the result: comparisons, report, and its text
"""
