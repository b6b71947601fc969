"""Commands. The only place besides reporting that prints."""
