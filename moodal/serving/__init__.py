"""The prediction server: limits, batches, decoding apart from the server, and the page. Everything starts in ``run``."""
