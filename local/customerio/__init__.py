"""A stand-in for Customer.io's Track and App APIs, for development and tests only. See README.md for what it is not."""
