"""The scheduling policies and waiting queues of every engine."""
