"""Decides what to cut, pad or permute: one file a planner; plans are carried out by the passes."""
