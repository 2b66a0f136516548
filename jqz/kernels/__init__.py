"""Rules that compute on codes: one primitive family a file. Speed, never meaning.

Each file offers ``RULES``: primitive name to rule (see ``jqz._interpret``).
"""
