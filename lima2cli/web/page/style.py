"""Colours and style sheets of the page: fonts are those of the machine."""

TEXT = "#3b4252"

NOT_MEASURED = "#a02828"
"""Colour of pixels that are masked, or are no number."""

COLOURS = ("#d6336c", "#1c7ed6", "#f08c00", "#2f9e44", "#7048e8", "#0c8599", "#e8590c", "#868e96")
"""Colours of regions, and of lines in plots."""

PAGE = """
:root { --font: system-ui, "DejaVu Sans", sans-serif; }
html, body { margin: 0; height: 100%; background: #fff; color: #3b4252; font: 14px var(--font); }
body { padding: 12px 16px; box-sizing: border-box; }
"""

TEMPLATE = """
{% block preamble %}<link rel="icon" href="data:,">{% endblock %}
"""
"""The frame of the page, of Bokeh, with an empty icon."""

WIDGETS = """
:host { font: 13px system-ui, "DejaVu Sans", sans-serif; color: #3b4252; }
label { color: #7a8294; font-size: 12px; }
.bk-btn { border-radius: 4px; }
"""

TEXTS = """
:host { font: 13px system-ui, "DejaVu Sans", sans-serif; color: #3b4252; }
h1 { font-size: 18px; font-weight: 600; margin: 0; }
p { margin: 2px 0; }
b { font-weight: 600; }
:host > div { width: 100%; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 400; color: #7a8294; font-size: 12px; padding: 2px 6px; }
td { text-align: right; padding: 3px 6px; border-top: 1px solid #e8eaef; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.state { color: #7a8294; margin-left: 10px; font-size: 14px; font-weight: 400; }
.bar { background: #e8eaef; border-radius: 2px; height: 6px; width: 60px; display: inline-block; }
.bar > span { background: #1c7ed6; border-radius: 2px; height: 6px; display: block; }
.bad { color: #c92a2a; font-weight: 600; }
.note { color: #7a8294; }
table + table { margin-top: 8px; }
.warning { background: #fff4e0; border-left: 3px solid #f08c00; padding: 4px 8px; margin: 3px 0; }
"""
