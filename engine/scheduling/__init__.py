"""Whose turn it is: the policy and the waiting queue of every engine."""
