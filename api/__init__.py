"""The HTTP service: calc's answers under /v1, the page of dashboards at /."""
