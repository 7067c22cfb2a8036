"""One format for structlog and standard-library records, and nothing private in it."""

import io
import json
import logging
import warnings

import pytest
import structlog

from engine.processes.logs import configure_logging, resolve_log_format


@pytest.fixture(autouse=True)
def restore_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    config = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.configure(**config)
    for package in ("server", "engine", "kernels"):
        logging.getLogger(package).setLevel(logging.NOTSET)


@pytest.fixture
def configure():
    def start(log_format="json", log_level="info", **options):
        stream = io.StringIO()
        structlog.reset_defaults()
        configure_logging(log_format, log_level, stream=stream, **options)
        return stream

    return start


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_one_object_per_line_from_both_kinds_of_loggers(configure):
    stream = configure(fields={"worker": "m"})
    structlog.get_logger("engine.worker.loop").info("loaded", num_layers=30, text="two\nlines")
    logging.getLogger("uvicorn.error").warning("slow %s", "client")
    ours, theirs = lines(stream)
    assert ours["message"] == "loaded"
    assert (ours["level"], ours["logger"], ours["worker"]) == ("info", "engine.worker.loop", "m")
    assert (ours["num_layers"], ours["text"]) == (30, "two\nlines")
    assert ours["timestamp"].endswith("Z")
    assert (theirs["message"], theirs["level"], theirs["worker"]) == (
        "slow client",
        "warning",
        "m",
    )


def test_levels(configure):
    stream = configure(log_level="info")
    structlog.get_logger("server.app").debug("hidden")
    logging.getLogger("engine.any").debug("hidden")
    logging.getLogger("httpx").info("hidden: other people's chatter")
    assert stream.getvalue() == ""
    stream = configure(log_level="debug")
    structlog.get_logger("server.app").debug("shown")
    logging.getLogger("engine.any").debug("shown")
    logging.getLogger("httpx").debug("hidden")
    assert [line["message"] for line in lines(stream)] == ["shown", "shown"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_show_code_but_no_values(configure, log_format):
    stream = configure(log_format)
    log = structlog.get_logger("server.app")

    def fail(prompt):
        raise ValueError("broken")

    try:
        fail("my " + "secret")
    except ValueError:
        log.exception("request failed")
        logging.getLogger("engine.worker.loop").exception("again")
    text = stream.getvalue()
    assert text.count("ValueError: broken") == 2
    assert "def fail" in text or "in fail" in text
    assert "my secret" not in text


def test_console_is_readable(configure):
    stream = configure("console")
    structlog.get_logger("server.app").info("listening", url="http://x")
    assert "listening" in stream.getvalue()
    assert "url=http://x" in stream.getvalue()
    assert "\x1b[" not in stream.getvalue(), "colours in a file"


def test_warnings_are_logged(configure):
    stream = configure()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("look here", stacklevel=1)
    assert "look here" in lines(stream)[0]["message"]


def test_auto_is_for_people_on_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert resolve_log_format("auto", Terminal()) == "console"
    assert resolve_log_format("auto", io.StringIO()) == "json"
    assert resolve_log_format("json", Terminal()) == "json"


def test_what_cannot_be_written_as_json_does_not_break_the_line(configure):
    stream = configure()
    structlog.get_logger("server.app").info("odd", value=object(), lone="\ud800", nan=float("nan"))
    assert len(stream.getvalue().splitlines()) == 1
    json.loads(stream.getvalue())
