"""Publish to FiftyOne, where people look at frames and tag them; the only importer of fiftyone."""
