"""The physics that modules are made of: arrays, k-space, trajectories, spirals, their settings."""
