"""Training: recipes, the loop, load balance, checkpoints that survive anything."""
