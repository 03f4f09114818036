"""Finding: which frames of a pool are worth a look, and by which signal."""
