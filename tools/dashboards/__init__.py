"""Grafana's dashboards in `docker/grafana/dashboards`, made from a list of panels.

`python -m tools.dashboards` writes the files.
"""
