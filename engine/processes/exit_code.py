"""What the exit code of a process says."""


def cause_of_end(exit_code: int) -> str:
    """Say how a process ended; a negative code is the signal that ended it."""
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
