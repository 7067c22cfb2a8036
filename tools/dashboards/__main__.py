"""Writes the dashboards."""

from tools.dashboards.files import FOLDER, files

for name, text in files().items():
    (FOLDER / name).write_text(text)
