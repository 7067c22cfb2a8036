"""Replicas of a text model in virtual time: the real router and scheduler, steps of measured cost.

`load` draws the requests, `replica` is one worker, `cluster` runs them together, `experiments` says
which runs make the numbers of docs/SCALING.md.
"""
