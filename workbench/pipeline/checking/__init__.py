"""Check whether a notebook is ready for production: read it, run it on its fixture, sign a receipt."""
