"""What a user of the commands has to fix."""


class EvaluationProblem(Exception):
    """What was asked for cannot be done. `str(problem)` is one line."""


def needs_extra(what: str, package: str) -> EvaluationProblem:
    """The problem of an optional package that is not installed."""
    return EvaluationProblem(
        f"{what} needs the package {package}, which is not installed; "
        "run `pip install 'tandem-server[eval]'`"
    )
