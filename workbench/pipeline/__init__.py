"""Notebooks as pipeline steps: their contract, their keys, what will run and why, and the running.

``step`` is what a notebook sees; ``plan`` and ``run`` are what the command line calls; everything
between them exchanges the frozen values of ``contract`` and ``definition``.
"""
