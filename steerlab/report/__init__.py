"""What a run leaves for people: the self-contained HTML page, figures as files and the table on the terminal."""

from __future__ import annotations

from steerlab.report.card import write_card
from steerlab.report.cells import csv_text
from steerlab.report.diff import Side, write_diff
from steerlab.report.page import write_report
from steerlab.report.pictures import write_figures
from steerlab.report.terminal import terminal_table

__all__ = ["Side", "csv_text", "terminal_table", "write_card", "write_diff", "write_figures", "write_report"]
