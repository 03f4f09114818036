"""Whether a notebook is fit for production: read, run on its fixture, watched, and receipted.

``check.run`` is the whole of it; ``receipts.fresh`` is what promotion asks.
"""
