"""Check whether a notebook is ready for production: read it, run it on its fixture, sign a receipt.

`checking.check.check_notebook` is the whole check; `checking.receipts.fresh_receipt` is what
promotion requires.
"""
