"""Likelihood evaluation, sample quality metrics, solver studies, figures and reports."""
