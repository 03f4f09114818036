"""Record types and the store that keeps them: the only things that stages hand to each other."""
