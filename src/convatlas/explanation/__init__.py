"""Explanations: heat maps of what a network looks at, their faithfulness, feature views and diagnostics."""
