"""Answers as a person reads them in a terminal. Only here rich is known; imported when a table is printed."""
