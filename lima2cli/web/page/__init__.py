"""The page for browsers. What it shows and says is worked out without Bokeh, which draws it."""
