"""The page: figures as plain data, templates, and the words and colours they share."""
