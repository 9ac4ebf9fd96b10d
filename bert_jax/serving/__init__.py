"""The server: predictions of runs over HTTP, for programs and, as a page, for people."""
