"""Advantage actor-critic as Stable-Baselines3 has it, with any RMSprop."""
