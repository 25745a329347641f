"""Training by several processes: sharded weights, parallel experts, checkpoints in parts."""
