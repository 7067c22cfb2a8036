"""The contract between the server and its engines: requests, answers, settings and rules."""
