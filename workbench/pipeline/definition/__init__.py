"""Pipeline files, and the graph of steps that one stands for."""
