"""Trials: presses at a steady rate while things break, and a checker that compares what everybody wrote down afterwards.

`python -m testkit.trial --help` runs one.
"""
